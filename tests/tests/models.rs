//! Golden models: stored logits and greedy tokens, from GGUF and from safetensors.

use std::path::Path;

use safetensors::SafeTensors;
use trefoil_engine::kv::KvType;
use trefoil_engine::model::{Lowered, ModelOptions};
use trefoil_engine::runner::Runner;
use trefoil_graph::ops::Pooling;
use trefoil_graph::{LowerOptions, ModelFile, PoolingChoice};
use trefoil_tests::devices::{GPU, backends, with_gpu};
use trefoil_tests::golden_models::{DECODERS, folders, golden_of, model_files};
use trefoil_tests::numbers::{argmax, f32s, i64s, nmse};
use trefoil_tests::running::{self, feed, greedy_from};

fn runner(file: &Path, device: &str, options: ModelOptions, exact: bool) -> Runner {
    let file = ModelFile::open(file).expect("opens");
    let lowered = Lowered::new(file, options.lower).expect("lowers");
    let options = ModelOptions { device: Some(device.to_owned()), ..options };
    running::runner(&lowered, backends(device, exact), &options)
}

fn f32_options() -> ModelOptions {
    ModelOptions { kv_type: KvType::F32, ..ModelOptions::default() }
}

fn check_decoders(device: &str, options: &ModelOptions, exact: bool, tolerance: f64) {
    for folder in folders(DECODERS) {
        for file in model_files(&folder) {
            let want = golden_of(&folder, "");
            let mut runner = runner(&file, device, options.clone(), exact);
            let mut sequence = runner.begin(512);
            let logits = feed(&mut runner, &mut sequence, &want.ids);
            let error = nmse(&want.logits, &logits);
            println!("{device} {}: NMSE {error:.1e}", file.display());
            assert!(error < tolerance, "{device} {}: NMSE {error:e}", file.display());
            let width = logits.len() / want.ids.len();
            let first = argmax(&logits[logits.len() - width..]);
            let tokens = greedy_from(&mut runner, &mut sequence, first, want.greedy.len());
            assert_eq!(tokens, want.greedy, "{device} {}", file.display());
        }
    }
}

#[test]
fn reference_meets_the_golden_logits() {
    check_decoders("ref0", &f32_options(), false, 1e-9);
}

#[test]
fn longrope_uses_the_short_factors_inside_the_original_context() {
    check_short_factors("ref0", 1e-9);
}

fn check_short_factors(device: &str, tolerance: f64) {
    for folder in folders(&["phi3-longrope"]) {
        for file in model_files(&folder) {
            let want = golden_of(&folder, "_short");
            let mut runner = runner(&file, device, f32_options(), true);
            let mut sequence = runner.begin(32);
            let logits = feed(&mut runner, &mut sequence, &want.ids);
            let error = nmse(&want.logits, &logits);
            assert!(error < tolerance, "{device} {}: NMSE {error:e}", file.display());
        }
    }
}

fn check_encoders(device: &str, options: &ModelOptions, exact: bool, tolerance: f64) {
    let wanted = [
        ("hidden", PoolingChoice::Rows),
        ("embedding_mean", PoolingChoice::Raw(Pooling::Mean)),
        ("embedding_cls", PoolingChoice::Raw(Pooling::Cls)),
    ];
    for folder in folders(&["bert"]) {
        let bytes = std::fs::read(folder.join("golden.safetensors")).expect("golden file");
        let tensors = SafeTensors::deserialize(&bytes).expect("golden tensors");
        let ids: Vec<u32> = i64s(&tensors, "ids").iter().map(|&id| id as u32).collect();
        for file in model_files(&folder) {
            for (name, pooling) in wanted {
                let lower = LowerOptions { pooling };
                let options = ModelOptions { lower, ..options.clone() };
                let mut runner = runner(&file, device, options, exact);
                let mut sequence = runner.begin(128);
                let got = feed(&mut runner, &mut sequence, &ids);
                let error = nmse(&f32s(&tensors, name), &got);
                println!("{device} {} {name}: NMSE {error:.1e}", file.display());
                assert!(error < tolerance, "{device} {} {name}: NMSE {error:e}", file.display());
            }
        }
    }
}

#[test]
fn reference_meets_the_golden_embeddings() {
    check_encoders("ref0", &f32_options(), false, 1e-9);
}

#[test]
fn cpu_meets_the_golden_logits_in_f32() {
    check_decoders("cpu0", &f32_options(), true, 1e-9);
}

#[test]
fn cpu_meets_the_golden_logits_with_f16_keys_and_values() {
    let options = ModelOptions { kv_type: KvType::F16, ..ModelOptions::default() };
    check_decoders("cpu0", &options, true, 1e-4);
    check_decoders("ref0", &options, true, 1e-4);
}

#[test]
fn cpu_meets_the_golden_embeddings() {
    check_encoders("cpu0", &f32_options(), true, 1e-9);
}

#[test]
fn gpu_meets_the_golden_logits_and_embeddings_in_f32() {
    if with_gpu(true).is_some() {
        check_decoders(GPU, &f32_options(), true, 1e-6);
        check_short_factors(GPU, 1e-6);
        check_encoders(GPU, &f32_options(), true, 1e-6);
    }
}

#[test]
fn gpu_meets_the_golden_logits_and_embeddings_with_f16_keys_and_values() {
    if with_gpu(false).is_some() {
        check_decoders(GPU, &ModelOptions::default(), false, 1e-4);
        check_encoders(GPU, &ModelOptions::default(), false, 1e-4);
    }
}
