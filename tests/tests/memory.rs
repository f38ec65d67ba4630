//! The file's pages are the weights: a model larger than the machine's memory loads and runs, and
//! resident memory is what was touched.

use trefoil_engine::backends::{BackendOptions, Backends};
use trefoil_engine::model::{Lowered, ModelOptions};
use trefoil_engine::runner::Outputs;
use trefoil_graph::gguf::{FileWriter, TensorSpec};
use trefoil_graph::{BlockType, Metadata, ModelFile};
use trefoil_telemetry::{Bytes, host_memory, resident_memory};

/// Copies a small model, its token table grown to `rows` rows by a hole in the file: zeros that take
/// no room on the disk. The head keeps its own small table.
fn grown_model(target: &std::path::Path, rows: u64) {
    let source = trefoil_tests::golden::data().join("models/qwen3moe/model-f32.gguf");
    let file = ModelFile::open(&source).expect("opens");
    let mut metadata = Metadata::new();
    for (key, value) in file.metadata.iter() {
        metadata.set(key, value.clone());
    }
    // The table comes last, so that the hole is the end of the file.
    let mut names: Vec<&str> = file.tensors.keys().map(|name| &**name).collect();
    names.sort_by_key(|name| *name == "token_embd.weight");
    let small = target.with_extension("small");
    let specs: Vec<TensorSpec> = names
        .iter()
        .map(|name| {
            let tensor = &file.tensors[*name];
            TensorSpec::new(*name, tensor.block, tensor.shape.clone())
        })
        .collect();
    let mut writer = FileWriter::create(&small, &metadata, &specs).expect("writes");
    for name in &names {
        writer.write(name, file.tensors[*name].bytes()).expect("writes");
    }
    writer.finish().expect("writes");
    // The same header with the large shape: shapes are fixed-width numbers, so the layout before the
    // last tensor's data is the same, and only the one number differs.
    let mut bytes = std::fs::read(&small).expect("reads");
    let old = file.tensors["token_embd.weight"].shape[0];
    let name = b"token_embd.weight";
    let at = bytes.windows(name.len()).position(|part| part == name).expect("in the header");
    // After the name: number of dimensions (4 bytes), columns (8 bytes), rows (8 bytes).
    let rows_at = at + name.len() + 4 + 8;
    assert_eq!(bytes[rows_at..rows_at + 8], old.to_le_bytes());
    bytes[rows_at..rows_at + 8].copy_from_slice(&rows.to_le_bytes());
    std::fs::write(target, &bytes).expect("writes");
    std::fs::remove_file(&small).expect("removes");
    let columns = file.tensors["token_embd.weight"].shape[1];
    let row_bytes = BlockType::F32.row_bytes(columns).expect("whole blocks");
    let grown = bytes.len() as u64 + (rows - old) * row_bytes;
    let file = std::fs::OpenOptions::new().write(true).open(target).expect("opens");
    file.set_len(grown).expect("the file system has holes");
}

#[test]
fn a_model_larger_than_memory_loads_and_runs() {
    let Some(total) = host_memory().total else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("large.gguf");
    let rows = (total.0 + (2 << 30)) / (64 * 4);
    grown_model(&path, rows);
    assert!(std::fs::metadata(&path).expect("exists").len() > total.0);
    let before = resident_memory().expect("Linux tells").0;
    let options = ModelOptions::default();
    let backends = Backends::detect(BackendOptions::default());
    let file = ModelFile::open(&path).expect("opens");
    let lowered = Lowered::new(file, options.lower).expect("lowers");
    let plan = lowered.plan(&backends, &options).expect("places");
    let mut runner = lowered.runner(&backends, &plan, &options).expect("compiles");
    let mut sequence = runner.begin(64);
    let mut count = 0;
    let ids = [1, 2, 3, u32::try_from(rows - 1).unwrap_or(u32::MAX).min(200_000_000)];
    runner
        .feed(&mut sequence, &ids, Outputs::All, |_, row| {
            count += 1;
            assert!(row.iter().all(|x| x.is_finite()));
        })
        .expect("runs");
    assert_eq!(count, ids.len());
    let grown = Bytes(resident_memory().expect("Linux tells").0.saturating_sub(before));
    assert!(grown.0 < 200 << 20, "loading took {grown} of memory");
}

#[test]
fn the_weights_are_the_files_pages() {
    let path =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/trefoil-demo-Q4_K_M.gguf");
    let file = ModelFile::open(&path).expect("opens");
    let lowered = Lowered::new(file, ModelOptions::default().lower).expect("lowers");
    for node in lowered.graph.nodes() {
        for weight in lowered.graph.node(node).op.weights() {
            let label = weight.storage().label();
            assert!(label.ends_with(".gguf"), "{weight:?} lies in {label}");
        }
    }
}
