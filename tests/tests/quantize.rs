//! Quantising: types and values of what is written, the models' results, refusals.

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use trefoil_engine::backends::{BackendOptions, Backends};
use trefoil_engine::kv::KvType;
use trefoil_engine::model::{DEMO, Lowered, ModelOptions, open_file};
use trefoil_engine::quantize::{
    QuantizeError, QuantizeOptions, Summary, Target, quantize, quantize_file,
};
use trefoil_engine::runner::Outputs;
use trefoil_graph::gguf::{self, TensorSpec};
use trefoil_graph::metadata::{Metadata, Value};
use trefoil_graph::{BlockType, ModelFile, Tensor};
use trefoil_kernels::blocks::decode_row;
use trefoil_tests::golden;
use trefoil_tests::numbers::{f32s, i64s, nmse};

/// NMSE of weights in each type, by ggml's own encoders on normally distributed weights
/// (golden/README.md).
fn published(block: BlockType) -> f64 {
    match block {
        BlockType::F32 => 0.0,
        BlockType::F16 => 4.3e-8,
        BlockType::BF16 => 2.7e-6,
        BlockType::Q8_0 => 2.9e-5,
        BlockType::Q4_0 => 7.4e-3,
        BlockType::Q4_K => 5.1e-3,
        BlockType::Q6_K => 3.1e-4,
        other => panic!("{other} is not written"),
    }
}

fn options(to: Target) -> QuantizeOptions {
    QuantizeOptions { to, threads: 0, force: false }
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn carried(name: &str) -> PathBuf {
    golden::data().join(name)
}

fn quietly(source: &Path, target: &Path, to: Target) -> Summary {
    quantize(source, target, options(to), &mut |_| ()).expect("quantises")
}

fn values(tensor: &Tensor) -> Vec<f32> {
    let (rows, columns) = tensor.rows_and_columns();
    let mut values = vec![0.0; (rows * columns) as usize];
    decode_row(tensor.block, tensor.bytes(), &mut values);
    values
}

/// All keys but the two that quantising sets.
fn kept(metadata: &Metadata) -> Vec<(&str, &Value)> {
    let set = ["general.file_type", "general.quantization_version"];
    metadata.iter().filter(|(key, _)| !set.contains(key)).collect()
}

/// The type that every tensor of the demo model (8 layers, all rows multiples of 256) must get.
fn expected(name: &str, to: Target) -> BlockType {
    if name.ends_with("_norm.weight") {
        return BlockType::F32;
    }
    let finer =
        ["blk.0.", "blk.3.", "blk.6.", "blk.7."].iter().any(|layer| name.starts_with(layer))
            && ["attn_v.weight", "ffn_down.weight"].iter().any(|role| name.ends_with(role));
    match to {
        Target::Q4_K_M if finer || name == "token_embd.weight" => BlockType::Q6_K,
        to => to.block(),
    }
}

#[test]
fn every_type_of_the_demo_model() {
    let source = open_file(DEMO).expect("opens");
    let folder = folder();
    for to in Target::ALL {
        let path = folder.path().join(format!("{to}.gguf"));
        let mut calls = Vec::new();
        let mut progress = |p: trefoil_engine::quantize::Progress<'_>| {
            assert!(source.tensors.contains_key(p.tensor));
            calls.push((p.done, p.total));
        };
        let summary = quantize_file(&source, &path, options(to), &mut progress).expect("quantises");
        println!("{summary}");
        assert!(calls.is_sorted() && calls.len() >= source.tensors.len());
        assert_eq!(calls.last(), Some(&(summary.source.0, summary.source.0)));

        let written = ModelFile::open(&path).expect("opens again");
        assert_eq!(kept(&source.metadata), kept(&written.metadata));
        assert_eq!(written.metadata.u32("general.quantization_version"), Ok(Some(2)));
        assert!(source.tensors.keys().eq(written.tensors.keys()));
        let mut bytes = 0;
        for (old, new) in source.tensors.values().zip(written.tensors.values()) {
            assert_eq!((&old.shape, new.block), (&new.shape, expected(&new.name, to)), "{new:?}");
            bytes += new.len_bytes();
            if old.block == new.block {
                assert!(old.bytes() == new.bytes(), "{to}: {} is copied", new.name);
                continue;
            }
            let error = nmse(&values(old), &values(new));
            let bound = 1.1 * published(new.block);
            assert!(error <= bound, "{to}: {}: {error:.1e} over {bound:.1e}", new.name);
        }
        assert_eq!(summary.target.0, bytes);
        assert_eq!((summary.not_finite, summary.saturated), (0, 0));
        assert!(summary.fallbacks.is_empty());
        let again = matches!(to, Target::Q8_0 | Target::Q4_0 | Target::Q4_K | Target::Q6_K);
        assert_eq!(summary.warnings().len(), usize::from(again), "{:?}", summary.warnings());
    }
}

#[test]
fn the_mix_is_the_demo_models_own() {
    // It was made by another program with the well-known rule of that name.
    let source = open_file(DEMO).expect("opens");
    let path = folder();
    let path = path.path().join("mix.gguf");
    quantize_file(&source, &path, options(Target::Q4_K_M), &mut |_| ()).expect("quantises");
    let written = ModelFile::open(&path).expect("opens");
    for (old, new) in source.tensors.values().zip(written.tensors.values()) {
        assert_eq!((old.block, old.bytes()), (new.block, new.bytes()), "{}", new.name);
    }
}

fn logits(model: &Path, ids: &[u32]) -> Vec<f32> {
    let options = ModelOptions {
        kv_type: KvType::F32,
        device: Some("ref0".to_owned()),
        ..ModelOptions::default()
    };
    let backends = Backends::detect(BackendOptions::default());
    let lowered =
        Lowered::new(ModelFile::open(model).expect("opens"), options.lower).expect("lowers");
    let plan = lowered.plan(&backends, &options).expect("places");
    let mut runner = lowered.runner(&backends, &plan, &options).expect("compiles");
    let mut sequence = runner.begin(512);
    let mut logits = Vec::new();
    runner
        .feed(&mut sequence, ids, Outputs::All, |_, row| logits.extend_from_slice(row))
        .expect("runs");
    logits
}

struct Golden {
    ids: Vec<u32>,
    logits: Vec<f32>,
}

fn golden_of(path: &Path) -> Option<Golden> {
    let bytes = std::fs::read(path).ok()?;
    let tensors = SafeTensors::deserialize(&bytes).expect("golden tensors");
    let ids = i64s(&tensors, "ids").iter().map(|&id| id as u32).collect();
    Some(Golden { ids, logits: f32s(&tensors, "logits") })
}

#[test]
fn logits_are_as_near_as_those_of_the_golden_quantised_models() {
    let quants = golden::part("quants");
    let source = quants.join("F16.gguf");
    let exact = golden_of(&quants.join("F16.golden.safetensors")).expect("it is always there");
    let folder = folder();
    let (mut checked, mut wrong) = (0, Vec::new());
    for to in Target::ALL {
        let name = if to == Target::Q4_K_M { "MIX_Q4_K_M" } else { to.name() };
        let path = quants.join(format!("{name}.golden.safetensors"));
        let Some(theirs) = golden_of(&path) else { continue };
        let target = folder.path().join(format!("{to}.gguf"));
        let summary = quietly(&source, &target, to);
        assert!(summary.warnings().is_empty(), "{:?}", summary.warnings());
        let theirs = nmse(&exact.logits, &theirs.logits);
        let ours = nmse(&exact.logits, &logits(&target, &exact.ids));
        println!("{to}: NMSE {ours:.2e}, golden {theirs:.2e}");
        // F16 is the source itself: what differs is the order of sums.
        if ours.is_nan() || ours > f64::max(1.2 * theirs, 1e-9) {
            wrong.push(format!("{to}: {ours:.2e} for {theirs:.2e}"));
        }
        checked += 1;
    }
    assert!(wrong.is_empty(), "{wrong:?}");
    assert!(checked >= 6, "{checked} types");
}

#[test]
fn rows_that_are_not_whole_blocks_fall_back() {
    let folder = folder();
    for (name, to, got, columns) in [
        ("smollm", Target::Q4_K_M, BlockType::F16, 72),
        ("smollm", Target::Q8_0, BlockType::F16, 72),
        ("phi3-longrope", Target::Q4_K, BlockType::Q8_0, 64),
        ("phi3-longrope", Target::Q6_K, BlockType::Q8_0, 64),
    ] {
        let model = carried("models").join(name);
        let target = folder.path().join(format!("{name}-{to}.gguf"));
        let source = model.join("model-f32.gguf");
        let summary = quietly(&source, &target, to);
        let source = ModelFile::open(&source).expect("opens");
        let written = ModelFile::open(&target).expect("opens again");
        let table = &written.tensors["token_embd.weight"];
        assert_eq!((table.block, table.shape[1]), (got, columns), "{name} {to}");
        let fallback = summary.fallbacks.iter().find(|f| f.tensor == "token_embd.weight");
        let fallback = fallback.expect("it is told");
        assert_eq!((fallback.columns, fallback.got), (columns, got));
        for tensor in written.tensors.values().filter(|tensor| tensor.block != BlockType::F32) {
            let told = summary.fallbacks.iter().find(|f| f.tensor == *tensor.name);
            assert_eq!(told.map_or(to.block(), |f| f.got), tensor.block, "{tensor:?}");
            let error = nmse(&values(&source.tensors[&tensor.name]), &values(tensor));
            assert!(error <= 1.1 * published(tensor.block), "{name} {to}: {tensor:?}: {error:e}");
        }
        let warnings = summary.warnings().join("\n");
        assert!(warnings.contains(&format!("tensors got {got} instead of")), "{warnings}");
        let want = golden_of(&model.join("golden.safetensors")).expect("it is always there");
        let error = nmse(&want.logits, &logits(&target, &want.ids));
        println!("{name} {to}: NMSE {error:.1e}");
        // The bounds that all devices have for numbers of 16 and of 8 bits.
        let bound = if got == BlockType::F16 { 1e-4 } else { 5e-3 };
        assert!(error < bound, "{name} {to}: {error:e}");
    }
}

#[test]
fn experts_are_quantised_and_routers_are_not() {
    let folder = folder();
    let target = folder.path().join("moe.gguf");
    quietly(&carried("models/qwen3moe/model-f32.gguf"), &target, Target::Q8_0);
    let written = ModelFile::open(&target).expect("opens again");
    let block = |name: &str| written.tensors[name].block;
    assert_eq!(block("blk.0.ffn_gate_exps.weight"), BlockType::Q8_0);
    assert_eq!(block("blk.0.ffn_gate_inp.weight"), BlockType::F32);
    assert_eq!(block("blk.0.attn_q_norm.weight"), BlockType::F32);
}

#[test]
fn a_split_model_becomes_one_file() {
    let whole = ModelFile::open(&carried("models/smollm/model-f32.gguf")).expect("opens");
    let folder = folder();
    let tensors: Vec<&Tensor> = whole.tensors.values().collect();
    let (first, second) = tensors.split_at(tensors.len() / 2);
    for (number, part) in [first, second].into_iter().enumerate() {
        let mut metadata = if number == 0 { whole.metadata.clone() } else { Metadata::new() };
        metadata.set("split.no", number as u16);
        metadata.set("split.count", 2u16);
        metadata.set("split.tensors.count", tensors.len() as i32);
        let specs: Vec<_> = part
            .iter()
            .map(|t| (TensorSpec::new(t.name.clone(), t.block, t.shape.clone()), t.bytes()))
            .collect();
        let name = format!("m-{:05}-of-00002.gguf", number + 1);
        let bytes = gguf::to_bytes(&metadata, &specs).expect("a valid part");
        std::fs::write(folder.path().join(name), bytes).expect("written");
    }
    let part = |number: u32| folder.path().join(format!("m-{number:05}-of-00002.gguf"));
    let (from_parts, from_whole) = (folder.path().join("a.gguf"), folder.path().join("b.gguf"));
    quietly(&part(2), &from_parts, Target::BF16);
    quietly(&carried("models/smollm/model-f32.gguf"), &from_whole, Target::BF16);
    let (a, b) = [from_parts, from_whole].map(|path| ModelFile::open(&path).expect("opens")).into();
    assert_eq!(a.fingerprint(), b.fingerprint());
    // No part of the source is overwritten, whichever was named.
    for number in [1, 2] {
        let forced = QuantizeOptions { force: true, ..options(Target::F16) };
        let error = quantize(&part(1), &part(number), forced, &mut |_| ());
        assert!(matches!(error, Err(QuantizeError::SameFile { .. })), "{error:?}");
    }
}

#[test]
fn what_half_precision_cannot_hold_is_told() {
    let folder = folder();
    let source = folder.path().join("source.gguf");
    let mut numbers = vec![1.0f32; 64 * 64];
    (numbers[7], numbers[8]) = (1e6, f32::NAN);
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    let metadata = [("general.architecture", Value::from("llama"))].into_iter().collect();
    let spec = TensorSpec::new("output.weight", BlockType::F32, [64, 64]);
    let model = gguf::to_bytes(&metadata, &[(spec, &bytes)]).expect("a valid model");
    std::fs::write(&source, model).expect("written");
    let summary = quietly(&source, &folder.path().join("f16.gguf"), Target::F16);
    assert_eq!((summary.not_finite, summary.saturated), (1, 1));
    assert_eq!(summary.warnings().len(), 2);
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let mut names: Vec<_> = entries
        .map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn targets_that_must_not_be_written_are_refused() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let source = at("source.gguf");
    std::fs::copy(carried("models/smollm/model-f32.gguf"), &source).expect("copied");
    std::fs::write(at("there.gguf"), "precious").expect("written");
    std::fs::create_dir(at("folder.gguf")).expect("made");
    let run = |target: &Path, force| {
        let options = QuantizeOptions { force, ..options(Target::Q8_0) };
        quantize(&source, target, options, &mut |_| ())
    };
    let exists = run(&at("there.gguf"), false).expect_err("it exists");
    assert!(matches!(exists, QuantizeError::Exists { .. }), "{exists}");
    assert!(exists.to_string().contains("there.gguf"), "{exists}");
    for force in [false, true] {
        let same = run(&at("folder.gguf/../source.gguf"), force).expect_err("it is the source");
        assert!(matches!(same, QuantizeError::SameFile { .. }), "{same}");
        for target in ["folder.gguf", "missing/target.gguf"] {
            let error = run(&at(target), force).expect_err("cannot be written");
            assert!(matches!(error, QuantizeError::Write { .. }), "{error}");
            assert!(error.to_string().contains(target), "{error}");
        }
    }
    assert_eq!(std::fs::read(at("there.gguf")).expect("readable"), b"precious");
    assert_eq!(names(folder.path()), ["folder.gguf", "source.gguf", "there.gguf"]);
    run(&at("there.gguf"), true).expect("forced");
    ModelFile::open(&at("there.gguf")).expect("replaced by a model");
}

#[test]
fn folders_are_refused_for_their_tokenizer() {
    let folder = folder();
    let target = folder.path().join("target.gguf");
    let source = carried("models/smollm");
    let error = quantize(&source, &target, options(Target::F16), &mut |_| ()).expect_err("refused");
    assert!(matches!(error, QuantizeError::NotGguf { .. }), "{error}");
    assert!(error.to_string().contains("GGUF") && error.to_string().contains("tokenizer"));
    assert!(names(folder.path()).is_empty());
}

/// Set in the process that may not write large files: the folder to write in.
#[cfg(unix)]
const LIMITED: &str = "TREFOIL_TEST_LIMITED_FOLDER";

/// Runs itself in a process whose files may not grow beyond 100 KiB, which fails a write as a full
/// disk does.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_nothing_behind() {
    const NAME: &str = "a_full_disk_leaves_nothing_behind";
    if let Some(folder) = std::env::var_os(LIMITED) {
        let target = Path::new(&folder).join("target.gguf");
        let source = carried("models/smollm/model-f32.gguf");
        let error = quantize(&source, &target, options(Target::F16), &mut |_| ());
        let error = error.expect_err("too large for the limit");
        assert!(matches!(error, QuantizeError::Write { .. }), "{error}");
        assert!(names(Path::new(&folder)).is_empty());
        return;
    }
    let folder = folder();
    let program = std::env::current_exe().expect("this program");
    // Ignored, the signal becomes an error of the write; the unit is 512 bytes in every shell.
    let script = "trap '' XFSZ; ulimit -f 200; exec \"$0\" --exact \"$1\" --nocapture";
    let output = std::process::Command::new("sh")
        .args(["-c", script])
        .arg(program)
        .arg(NAME)
        .env(LIMITED, folder.path())
        .output()
        .expect("runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
    assert!(names(folder.path()).is_empty());
}
