//! Damaged and hostile ONNX models: every one opens or is refused with a reason, without a panic, in
//! bounded memory and time.

use std::path::Path;

use trefoil_graph::ModelFile;
use trefoil_tests::golden;
use trefoil_tests::memory::Counting;
use trefoil_tests::mutation::{SplitMix64, damaged};
use trefoil_tests::onnx::Attribute::Int;
use trefoil_tests::onnx::{
    DecoderForm, EncoderForm, F32, Message, Numbers, OnnxWriter, Projections, Rotation, U8,
    write_decoder, write_encoder,
};
use trefoil_tests::tally::{Tally, WORST_FACTOR};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Damages one file of a folder and puts it right again at the end.
fn damage(folder: &Path, file: &str, count: u64) -> Tally {
    let path = folder.join(file);
    let original = std::fs::read(&path).expect("the seed file");
    let size = |entry: std::io::Result<std::fs::DirEntry>| {
        entry.and_then(|entry| entry.metadata()).expect("a file").len() as usize
    };
    let input = std::fs::read_dir(folder).expect("a folder").map(size).sum();
    let mut tally = Tally::default();
    for seed in 0..count {
        let bytes = damaged(&original, &mut SplitMix64::new(seed));
        std::fs::write(&path, &bytes).expect("written");
        tally.one(file, seed, input, || ModelFile::open(folder));
    }
    std::fs::write(&path, original).expect("written");
    tally
}

/// The reason why a folder is refused, with what caused it.
fn reason(folder: &Path) -> String {
    let error = ModelFile::open(folder).expect_err("refused");
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[track_caller]
fn refused(writer: &OnnxWriter, expected: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    writer.write(folder.path());
    let reason = reason(folder.path());
    assert!(reason.contains(expected), "{expected:?} is not in {reason:?}");
}

#[test]
fn damaged_onnx_models_open_or_are_refused() {
    // One test: the counters see the whole process.
    let encoder = ModelFile::open(&golden::data().join("models/bert")).expect("opens");
    let decoder = ModelFile::open(&golden::data().join("models/smollm")).expect("opens");
    let scratch = tempfile::tempdir().expect("a folder");
    let folder = |name: &str| scratch.path().join(name);
    write_encoder(&encoder, EncoderForm::WrittenOut, &folder("encoder"));
    let forms = [
        ("apart", Numbers::F32, Projections::Three, Rotation::Apart),
        ("packed", Numbers::F32, Projections::Packed, Rotation::Within),
        ("codes", Numbers::Codes { block: 16, zeros: true }, Projections::Three, Rotation::Within),
    ];
    for (name, numbers, projections, rotation) in forms {
        let form = DecoderForm { numbers, projections, rotation, external: true };
        write_decoder(&decoder, form, &folder(name));
    }
    let (mut opened, mut refused) = (0, 0);
    for (name, file, count) in [
        ("encoder", "model.onnx", 700),
        ("apart", "model.onnx", 700),
        ("packed", "model.onnx", 500),
        ("codes", "model.onnx", 700),
        ("codes", "model.onnx.data", 100),
        ("apart", "genai_config.json", 500),
    ] {
        let tally = damage(&folder(name), file, count);
        println!("{name}/{file}: {tally:?}");
        opened += tally.opened;
        refused += tally.refused;
    }
    assert!(opened > 100 && refused > 1_000, "{opened} opened, {refused} refused");
    greedy();
}

/// Well-formed files that are all overhead.
fn greedy() {
    let nothing = Message::default();
    let mut tally = Tally::default();
    let mut graph = |field: u64, item: &Message, count: usize| {
        let graph = (0..count).fold(Message::default(), |graph, _| graph.field(field, item));
        let bytes = Message::default().field(7, graph);
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("model.onnx"), bytes.bytes()).expect("written");
        let bound = WORST_FACTOR * bytes.bytes().len();
        tally.bounded("greedy", field, bound, || ModelFile::open(folder.path()));
    };
    for field in [1, 5, 11, 12] {
        graph(field, &nothing, 200_000);
        graph(field, &nothing, 600_000);
    }
    assert_eq!((tally.opened, tally.refused), (0, 8));
    // Graphs within attributes of nodes, a hundred thousand deep.
    let mut nested = Message::default();
    for _ in 0..2_000 {
        let node = Message::default().field(5, Message::default().field(6, &nested));
        nested = Message::default().field(1, node);
    }
    let folder = tempfile::tempdir().expect("a folder");
    let bytes = Message::default().field(7, nested);
    std::fs::write(folder.path().join("model.onnx"), bytes.bytes()).expect("written");
    assert!(reason(folder.path()).contains("no output"), "{}", reason(folder.path()));
}

/// A model with one tensor in another file.
fn external(location: &str, offset: &str, length: &str, dims: &[i64]) -> OnnxWriter {
    let entry = |key: &str, value: &str| Message::default().field(1, key).field(2, value);
    let start = dims.iter().fold(Message::default(), |message, &dim| message.int(1, dim));
    let mut tensor = start.int(2, F32).field(8, "table").int(14, 1);
    for (key, value) in [("location", location), ("offset", offset), ("length", length)] {
        if !value.is_empty() {
            tensor = tensor.field(13, entry(key, value));
        }
    }
    let mut writer = OnnxWriter::new();
    writer.input("input_ids");
    writer.stored(&tensor);
    writer.op("Gather", &["table", "input_ids"], "out");
    writer.output("out");
    writer
}

#[test]
fn data_in_other_files_stays_in_the_folder() {
    let scratch = tempfile::tempdir().expect("a folder");
    let folder = scratch.path().join("model");
    std::fs::create_dir(&folder).expect("a folder");
    std::fs::write(scratch.path().join("secret"), [7; 64]).expect("writes");
    std::fs::write(folder.join("data"), [0; 64]).expect("writes");
    std::fs::create_dir(folder.join("inner")).expect("a folder");
    let absolute = scratch.path().join("secret");
    let absolute = absolute.to_str().expect("a plain path");
    let mut cases = vec![
        ("../secret", "", "", &[4i64, 4][..], "in the model's folder"),
        (absolute, "", "", &[4, 4], "in the model's folder"),
        ("inner/../../secret", "", "", &[4, 4], "in the model's folder"),
        ("C:\\data", "", "", &[4, 4], "in the model's folder"),
        ("", "", "", &[4, 4], "in the model's folder"),
        ("nothing", "", "", &[4, 4], "is not there"),
        ("inner", "", "", &[4, 4], "is not there"),
        ("data", "", "", &[4, 5], "80 bytes"),
        ("data", "8", "64", &[4, 4], "56 left"),
        ("data", "99999999999", "4", &[1, 1], "0 left"),
        ("data", "", "60", &[4, 4], "64 bytes"),
        ("data", "x", "", &[4, 4], "decimal"),
        ("data", "99999999999999999999999", "", &[4, 4], "decimal"),
        ("data", "", "", &[1 << 40, 1 << 40], "a shape that fits"),
        ("data", "", "", &[-1, 4], "a shape that fits"),
        ("data", "", "", &[1; 9], "dimensions"),
    ];
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("../secret", folder.join("link")).expect("a link");
        cases.push(("link", "", "", &[4, 4], "in the model's folder"));
    }
    for (location, offset, length, dims, expected) in cases {
        external(location, offset, length, dims).write(&folder);
        let reason = reason(&folder);
        assert!(reason.contains(expected), "{location}: {expected:?} is not in {reason:?}");
    }
    // The same data, read as it should be, gets as far as its op.
    external("data", "", "", &[4, 4]).write(&folder);
    assert!(reason(&folder).contains("a norm"), "{}", reason(&folder));
}

#[test]
fn tensors_may_share_all_of_their_data_or_none() {
    let tensor = |name: &str, offset: &str| {
        let entry = |key: &str, value: &str| Message::default().field(1, key).field(2, value);
        let start = Message::default().int(1, 8).int(2, F32).field(8, name).int(14, 1);
        start.field(13, entry("location", "data")).field(13, entry("offset", offset))
    };
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("data"), [0; 64]).expect("writes");
    for (second, expected) in [("0", "no output"), ("32", "no output"), ("16", "share a part")] {
        let mut writer = OnnxWriter::new();
        writer.stored(&tensor("a", "0"));
        writer.stored(&tensor("b", second));
        writer.write(folder.path());
        let reason = reason(folder.path());
        assert!(reason.contains(expected), "{second}: {reason}");
    }
}

/// A graph of one product with quantised weights.
fn quantised(rows: i64, cols: i64, bits: i64, block: i64) -> OnnxWriter {
    let mut writer = OnnxWriter::new();
    writer.input("input_ids");
    writer.f32s("table", &[4, 32], &[0.5; 128]);
    writer.op("Gather", &["table", "input_ids"], "x");
    writer.tensor("codes", &[2, 1, 16], U8, &[0x88; 32]);
    writer.f32s("scales", &[2], &[1.0; 2]);
    let attributes =
        [("N", Int(rows)), ("K", Int(cols)), ("bits", Int(bits)), ("block_size", Int(block))];
    writer.node("ms.MatMulNBits", &["x", "codes", "scales"], &["logits"], &attributes);
    writer.output("logits");
    writer
}

#[test]
fn what_is_not_known_is_refused_by_name() {
    // Sizes that are not those of the data.
    refused(&quantised(2, 32, 4, 32), "head: expected a norm");
    refused(&quantised(3, 32, 4, 32), "op MatMulNBits (node `node_2`): expected 48 bytes of codes");
    refused(&quantised(2, 64, 4, 32), "bytes of codes");
    refused(&quantised(2, 32, 3, 32), "expected 4 or 8 bits, got 3");
    refused(&quantised(2, 32, 4, 0), "block_size: expected a number above 0");
    refused(&quantised(2, 32, 4, 48), "expected blocks of 16 to 4096");
    refused(&quantised(1 << 23, 1 << 23, 4, 16), "bytes of codes");
    refused(&quantised(-1, 32, 4, 32), "attribute N");

    let start = || {
        let mut writer = OnnxWriter::new();
        writer.input("input_ids");
        writer.f32s("table", &[4, 8], &[0.5; 32]);
        writer.op("Gather", &["table", "input_ids"], "x");
        writer.output("logits");
        writer
    };
    let with = |op: &str, inputs: &[&str]| {
        let mut writer = start();
        writer.op(op, inputs, "logits");
        writer
    };
    refused(
        &with("DynamicQuantizeLinear", &["x"]),
        "op DynamicQuantizeLinear (node `node_2`): this",
    );
    refused(&with("ms.QMoE", &["x"]), "op QMoE (node `node_2`): this op is not known");
    refused(&with("Relu", &["nothing"]), "expected inputs that come before it, got `nothing`");
    refused(&with("Add", &["x"]), "op Add (node `node_2`): expected input 1");
    refused(&with("MatMul", &["x", "table"]), "expected a matrix for rows of 8, got 4 x 8");
    refused(&start(), "output `logits`: expected a node that makes it");
    // The first op that is not known is the one that is named.
    let mut writer = start();
    writer.op("Strange", &["x"], "a");
    writer.op("Relu", &["a"], "logits");
    refused(&writer, "op Strange");
    // A result twice.
    let mut writer = start();
    writer.op("Identity", &["x"], "logits");
    writer.op("Identity", &["x"], "logits");
    refused(&writer, "results with names of their own");
    let mut writer = start();
    writer.f32s("table", &[1], &[1.0]);
    refused(&writer, "one tensor of each name");
    // Not a model at all.
    let folder = tempfile::tempdir().expect("a folder");
    for (bytes, expected) in [
        (&b"GGUF and more of something else entirely"[..], "no ONNX model"),
        (b"", "a graph"),
        (b"\x3a\xff\xff\xff\xff\x0f", "a length within the message"),
    ] {
        std::fs::write(folder.path().join("model.onnx"), bytes).expect("writes");
        let reason = reason(folder.path());
        assert!(reason.contains(expected), "{expected}: {reason}");
    }
}

/// Attention that sees only what comes before is not an encoder's.
#[test]
fn an_encoder_with_another_mask_is_refused() {
    let model = ModelFile::open(&golden::data().join("models/bert")).expect("opens");
    let folder = tempfile::tempdir().expect("a folder");
    write_encoder(&model, EncoderForm::Plain, folder.path());
    let path = folder.path().join("model.onnx");
    let bytes = std::fs::read(&path).expect("reads");
    // An op of as many letters that makes a triangle of the mask.
    let (from, to) = (b"\x22\x04Cast", b"\x22\x04Tril");
    let at = bytes.windows(from.len()).position(|window| window == from).expect("the mask's op");
    let mut changed = bytes.clone();
    changed[at..at + to.len()].copy_from_slice(to);
    std::fs::write(&path, changed).expect("writes");
    assert!(reason(folder.path()).contains("op Tril (node"), "{}", reason(folder.path()));
    std::fs::write(&path, bytes).expect("writes");
    ModelFile::open(folder.path()).expect("as it was, it opens");
}
