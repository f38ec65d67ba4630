//! ONNX models against ONNX Runtime on the same files: real sentence encoders, and decoders that tests
//! write. Runs where `TREFOIL_REAL_MODELS` and `TREFOIL_PYTHON` name what `tests/real/fetch.sh` makes.

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde_json::{Value, json};
use trefoil_engine::text::{EncodeOptions, Tokenizer};
use trefoil_graph::{LowerOptions, ModelFile, Origin, lower};
use trefoil_tests::golden;
use trefoil_tests::numbers::{f32s, i64s};
use trefoil_tests::onnx::{
    DecoderForm, EncoderForm, Numbers, Projections, Rotation, write_decoder, write_encoder,
};

use crate::clients::{python, run_script};
use crate::support::encoder::copy_tokenizer;
use crate::support::server::Server;

const TEXTS: [&str; 5] = [
    "A quick brown fox.",
    "The weather is lovely today, and it will be so until the end of the week.",
    "Dies ist ein Satz in einer anderen Sprache; 42 ist eine Zahl.",
    "x",
    "Placement is data: a plan is a plain value, made by a pure function, printed, stored, forced and \
     replayed. The executor adds nothing and drops nothing.",
];

fn models() -> Option<PathBuf> {
    std::env::var_os("TREFOIL_REAL_MODELS").map(PathBuf::from)
}

/// What the script compares: a served model with an ONNX file.
fn case(model: &Path, file: &Path, tokenizer: &Path) -> Value {
    let tokenizer = Tokenizer::from_folder(tokenizer).expect("a tokenizer");
    let options = EncodeOptions { add_special: true, parse_special: true };
    let ids: Vec<Vec<u32>> = TEXTS.iter().map(|text| tokenizer.encode(text, options)).collect();
    json!({
        "model": model.file_name().expect("a name").to_str(),
        "file": file,
        "texts": TEXTS,
        "ids": ids,
        "least": 0.9999,
    })
}

#[test]
fn sentence_encoders_agree_with_onnx_runtime() {
    let (Some(models), Some(python)) = (models(), python()) else { return };
    let scratch = tempfile::tempdir().expect("a folder");
    let hub = models.join("all-MiniLM-L6-v2");
    // As PyTorch's exporter wrote it.
    let exported = models.join("paraphrase-MiniLM-L3-v2");
    let exported_file = exported.join("paraphrase-MiniLM-L3-v2.onnx");
    let mut cases = vec![case(&exported, &exported_file, &hub)];
    let mut served = vec![exported];
    // Another, written here in two ways from its safetensors.
    let model = ModelFile::open(&hub).expect("opens");
    assert_eq!(model.origin, Origin::HuggingFace);
    for (name, form) in [("plain", EncoderForm::Plain), ("fused", EncoderForm::Fused)] {
        let folder = scratch.path().join(format!("all-MiniLM-{name}"));
        write_encoder(&model, form, &folder);
        copy_tokenizer(&hub, &folder);
        cases.push(case(&folder, &folder.join("model.onnx"), &hub));
        served.push(folder);
    }
    // And as it is.
    cases.push(case(&hub, &scratch.path().join("all-MiniLM-plain/model.onnx"), &hub));
    served.push(hub);
    let paths: Vec<&str> = served.iter().map(|path| path.to_str().expect("a plain path")).collect();
    let server = Server::of(&paths, &[]);
    let facts = json!({"url": format!("http://{}/v1", server.address), "cases": cases});
    run_script(&python, "onnx_embeddings.py", &facts);
}

/// Decoders that tests are made with are what ONNX Runtime takes them for: it computes the golden logits
/// from them.
#[test]
fn written_decoders_are_decoders_to_onnx_runtime() {
    let (Some(_), Some(python)) = (models(), python()) else { return };
    let scratch = tempfile::tempdir().expect("a folder");
    let data = golden::data();
    let quants = |name: &str| data.join("quants").join(name);
    let llama = data.join("models/llama");
    let plain = DecoderForm::plain(Numbers::F32);
    let packed = DecoderForm { projections: Projections::Packed, ..plain };
    let apart = DecoderForm { rotation: Rotation::Apart, external: true, ..plain };
    let blocks = DecoderForm::plain(Numbers::Blocks);
    let rows = [
        ("plain", &llama, &llama.join("golden.safetensors"), plain, 1e-9),
        ("packed", &llama, &llama.join("golden.safetensors"), packed, 1e-9),
        ("apart", &llama, &llama.join("golden.safetensors"), apart, 1e-9),
        ("codes", &quants("Q4_0.gguf"), &quants("Q4_0.golden.safetensors"), blocks, 1e-9),
    ];
    let cases: Vec<Value> = rows
        .into_iter()
        .map(|(name, model, golden, form, most)| {
            let folder = scratch.path().join(name);
            write_decoder(&ModelFile::open(model).expect("opens"), form, &folder);
            let (hyper, _) =
                lower(&ModelFile::open(&folder).expect("opens"), LowerOptions::default())
                    .expect("lowers");
            let bytes = std::fs::read(golden).expect("golden file");
            let tensors = SafeTensors::deserialize(&bytes).expect("golden tensors");
            json!({
                "file": folder.join("model.onnx"),
                "ids": i64s(&tensors, "ids"),
                "logits": f32s(&tensors, "logits"),
                "layers": hyper.layers,
                "kv_heads": hyper.kv_heads,
                "head_dim": hyper.head_dim,
                "most": most,
            })
        })
        .collect();
    run_script(&python, "onnx_logits.py", &json!({"cases": cases}));
}
