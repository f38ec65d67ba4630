//! ONNX models, as other programs write them, against golden data and against the same weights in other
//! files.

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use trefoil_engine::loaded::Loaded;
use trefoil_engine::model::{Lowered, ModelOptions};
use trefoil_graph::ops::Pooling;
use trefoil_graph::{BlockType, LowerOptions, ModelFile, Origin, PoolingChoice};
use trefoil_tests::devices::backends;
use trefoil_tests::golden;
use trefoil_tests::numbers::{argmax, f32s, i64s, nmse};
use trefoil_tests::onnx::{
    DecoderForm, EncoderForm, Numbers, Projections, Rotation, values, write_decoder, write_encoder,
};
use trefoil_tests::running::{self, exact_options, feed, greedy_from};

/// The folder of a golden model, if it is here.
fn golden_folder(name: &str) -> Option<PathBuf> {
    let shared = golden::shared().map(|root| root.join("golden/models").join(name));
    let carried = golden::data().join("models").join(name);
    shared.into_iter().chain([carried]).find(|folder| folder.is_dir())
}

fn opened(path: &Path) -> ModelFile {
    ModelFile::open(path).unwrap_or_else(|error| {
        let source = std::error::Error::source(&error).map(ToString::to_string);
        panic!("{error}: {}", source.unwrap_or_default())
    })
}

/// Prompt, logits and greedy tokens of a golden file.
fn wanted(file: &Path) -> (Vec<u32>, Vec<f32>, Vec<u32>) {
    let bytes = std::fs::read(file).expect("golden file");
    let tensors = SafeTensors::deserialize(&bytes).expect("golden tensors");
    let ids = |name: &str| i64s(&tensors, name).iter().map(|&id| id as u32).collect();
    let greedy = tensors.tensor("greedy").map_or(Vec::new(), |_| ids("greedy"));
    (ids("ids"), f32s(&tensors, "logits"), greedy)
}

/// Logits of a prompt and greedy tokens after it.
fn run(file: ModelFile, device: &str, ids: &[u32], greedy: usize) -> (Vec<f32>, Vec<u32>) {
    let lowered = Lowered::new(file, LowerOptions::default()).expect("lowers");
    let options = exact_options(device);
    let mut runner = running::runner(&lowered, backends(device, true), &options);
    let mut sequence = runner.begin(256);
    let logits = feed(&mut runner, &mut sequence, ids);
    let width = logits.len() / ids.len();
    let first = argmax(&logits[logits.len() - width..]);
    let tokens = match greedy {
        0 => Vec::new(),
        count => greedy_from(&mut runner, &mut sequence, first, count),
    };
    (logits, tokens)
}

/// A decoder written to a folder and opened.
fn decoder(model: &ModelFile, form: DecoderForm, folder: &Path) -> ModelFile {
    write_decoder(model, form, folder);
    let file = opened(folder);
    assert_eq!(file.origin, Origin::Onnx);
    file
}

#[test]
fn decoders_in_f32_meet_the_golden_logits() {
    let forms = [
        DecoderForm::plain(Numbers::F32),
        DecoderForm { projections: Projections::Packed, ..DecoderForm::plain(Numbers::F32) },
        DecoderForm {
            rotation: Rotation::Apart,
            external: true,
            ..DecoderForm::plain(Numbers::F32)
        },
    ];
    let mut models = 0;
    for name in ["llama", "llama-plain", "mistral", "smollm", "qwen2", "qwen3"] {
        let Some(golden) = golden_folder(name) else { continue };
        let (ids, logits, greedy) = wanted(&golden.join("golden.safetensors"));
        let model = opened(&golden);
        for (index, form) in forms.into_iter().enumerate() {
            if name == "qwen3" && form.projections == Projections::Packed {
                continue;
            }
            let folder = tempfile::tempdir().expect("a folder");
            let file = decoder(&model, form, folder.path());
            let want = if name == "qwen3" { "qwen3" } else { "llama" };
            assert_eq!(file.metadata.str("general.architecture"), Ok(Some(want)));
            let device = if index == 1 { "cpu0" } else { "ref0" };
            let (got, tokens) = run(file, device, &ids, greedy.len());
            let error = nmse(&logits, &got);
            println!("{name} {form:?}: NMSE {error:.1e}");
            assert!(error < 1e-9, "{name} {form:?}: NMSE {error:e}");
            assert_eq!(tokens, greedy, "{name} {form:?}");
        }
        models += 1;
    }
    assert!(models >= 2, "the carried models are always there");
}

#[test]
fn four_bit_codes_are_the_blocks_of_gguf_files() {
    for name in ["Q4_0", "Q8_0"] {
        let gguf = golden::data().join(format!("quants/{name}.gguf"));
        let golden_file = golden::data().join(format!("quants/{name}.golden.safetensors"));
        let (ids, logits, _) = wanted(&golden_file);
        let model = opened(&gguf);
        let block = BlockType::from_name(name).expect("a format");
        for external in [false, true] {
            let folder = tempfile::tempdir().expect("a folder");
            let form = DecoderForm { external, ..DecoderForm::plain(Numbers::Blocks) };
            let file = decoder(&model, form, folder.path());
            assert_eq!(file.metadata.f32("onnx.scale_rounding"), Ok(Some(0.0)));
            // What was not permuted is the same to the last bit.
            for role in ["blk.0.attn_v", "blk.0.ffn_down", "blk.0.ffn_up", "blk.0.attn_output"] {
                let tensor = format!("{role}.weight");
                let (got, want) = (&file.tensors[&*tensor], &model.tensors[&*tensor]);
                assert_eq!((got.block, got.bytes()), (block, want.bytes()), "{tensor}");
            }
            let (got, _) = run(file, "ref0", &ids, 0);
            let error = nmse(&logits, &got);
            println!("{name}, external {external}: NMSE {error:.1e}");
            assert!(error < 1e-9, "{name}: NMSE {error:e}");
        }
        // The same weights written out.
        let folder = tempfile::tempdir().expect("a folder");
        let file = decoder(&model, DecoderForm::plain(Numbers::F32), folder.path());
        let error = nmse(&logits, &run(file, "ref0", &ids, 0).0);
        assert!(error < 1e-9, "{name} in F32: NMSE {error:e}");
    }
}

/// Codes with scales in single precision: rounded where that is nearly nothing, else written out.
#[test]
fn scales_are_rounded_or_weights_written_out() {
    let model = opened(&golden::data().join("quants/F16.gguf"));
    let tensor = "blk.0.ffn_up.weight";
    let rows = [
        (32, false, BlockType::Q4_0),
        (64, false, BlockType::Q4_0),
        (128, false, BlockType::Q4_0),
        (32, true, BlockType::Q4_1),
        (128, true, BlockType::Q4_1),
        (16, false, BlockType::F32),
        (16, true, BlockType::F32),
    ];
    let (ids, logits, _) = wanted(&golden::data().join("quants/F16.golden.safetensors"));
    for (block, zeros, format) in rows {
        let folder = tempfile::tempdir().expect("a folder");
        let form = DecoderForm::plain(Numbers::Codes { block, zeros });
        let file = decoder(&model, form, folder.path());
        let got = &file.tensors[tensor];
        assert_eq!(got.block, format, "blocks of {block}, zeros {zeros}");
        let rounding = file.metadata.f32("onnx.scale_rounding").expect("a number").expect("there");
        assert_eq!(rounding > 0.0, format != BlockType::F32);
        assert!(rounding <= 1e-6, "{rounding}");
        // 4 bits of these weights: some per cent of error, in every layout.
        let error = nmse(&values(&model.tensors[tensor]), &values(got));
        assert!((1e-3..3e-2).contains(&error), "blocks of {block}, zeros {zeros}: {error:e}");
        let copied = file.metadata.u64("onnx.copied_bytes").expect("a number").expect("there");
        assert!(copied > got.len_bytes(), "{copied}");
        let logits_error = nmse(&logits, &run(file, "ref0", &ids, 0).0);
        println!("blocks of {block}, zeros {zeros}: {error:.1e}, logits {logits_error:.1e}");
        assert!(logits_error < 0.2, "{logits_error}");
    }
}

#[test]
fn half_precision_weights_are_turned_and_kept() {
    let model = opened(&golden::data().join("quants/F16.gguf"));
    let (ids, logits, _) = wanted(&golden::data().join("quants/F16.golden.safetensors"));
    let folder = tempfile::tempdir().expect("a folder");
    let file = decoder(&model, DecoderForm::plain(Numbers::F16), folder.path());
    let name = "blk.0.ffn_down.weight";
    assert_eq!(file.tensors[name].block, BlockType::F16);
    assert_eq!(file.tensors[name].bytes(), model.tensors[name].bytes());
    let error = nmse(&logits, &run(file, "ref0", &ids, 0).0);
    assert!(error < 1e-9, "NMSE {error:e}");
}

#[test]
fn encoders_of_every_form_meet_the_golden_embeddings() {
    let golden = golden_folder("bert").expect("the carried model is always there");
    let bytes = std::fs::read(golden.join("golden.safetensors")).expect("golden file");
    let tensors = SafeTensors::deserialize(&bytes).expect("golden tensors");
    let ids: Vec<u32> = i64s(&tensors, "ids").iter().map(|&id| id as u32).collect();
    let model = opened(&golden);
    for form in [EncoderForm::Plain, EncoderForm::WrittenOut, EncoderForm::Fused] {
        let folder = tempfile::tempdir().expect("a folder");
        write_encoder(&model, form, folder.path());
        for (name, pooling) in [
            ("hidden", PoolingChoice::Rows),
            ("embedding_mean", PoolingChoice::Raw(Pooling::Mean)),
            ("embedding_cls", PoolingChoice::Raw(Pooling::Cls)),
        ] {
            for device in ["ref0", "cpu0"] {
                let options =
                    ModelOptions { lower: LowerOptions { pooling }, ..exact_options(device) };
                let lowered = Lowered::new(opened(folder.path()), options.lower).expect("lowers");
                let mut runner = running::runner(&lowered, backends(device, true), &options);
                let mut sequence = runner.begin(128);
                let got = feed(&mut runner, &mut sequence, &ids);
                let error = nmse(&f32s(&tensors, name), &got);
                println!("{form:?} {name} {device}: NMSE {error:.1e}");
                assert!(error < 1e-9, "{form:?} {name} {device}: NMSE {error:e}");
            }
        }
    }
}

/// A folder as users have it: with the tokenizer's files, it answers.
#[test]
fn a_decoder_folder_is_loaded_with_its_tokenizer() {
    let golden = golden_folder("smollm").expect("the carried model is always there");
    let model = opened(&golden);
    let folder = tempfile::tempdir().expect("a folder");
    write_decoder(&model, DecoderForm::plain(Numbers::F32), folder.path());
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(golden.join(name), folder.path().join(name)).expect("copies");
    }
    let options = exact_options("cpu0");
    let open = |path: &Path| {
        let name = path.to_str().expect("a plain path");
        Loaded::open(name, backends("cpu0", true), &options, None).expect("loads")
    };
    let (mut onnx, mut hub) = (open(folder.path()), open(&golden));
    assert_eq!(onnx.lowered.hyper.context, hub.lowered.hyper.context);
    // What the configuration says of ends is heard.
    let ends = onnx.text.tokenizer.end_tokens();
    assert!(ends.contains(&2) && ends.contains(&3), "{ends:?}");
    let ids = onnx.text.encode_raw("Some text of a few words");
    assert_eq!(ids, hub.text.encode_raw("Some text of a few words"));
    let tokens = running::greedy(&mut onnx.runner, &ids, 12);
    assert_eq!(tokens, running::greedy(&mut hub.runner, &ids, 12));
    // The file's name is as good as the folder's.
    let file = opened(&folder.path().join("model.onnx"));
    assert_eq!(file.fingerprint(), onnx.lowered.fingerprint);
}
