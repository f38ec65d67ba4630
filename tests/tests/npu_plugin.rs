//! A provider in a library of its own, made by others: what it takes runs on it, what it refuses is said.

use std::path::Path;

use trefoil_engine::backends::npu::{NpuOptions, NumericForm, Provider};
use trefoil_engine::backends::{BackendOptions, Backends};
use trefoil_engine::model::ModelOptions;
use trefoil_tests::npu::{NPU, npu_options, plugin_library};
use trefoil_tests::numbers::nmse;
use trefoil_tests::running::{demo, exact_options, logits, random_tokens, runner};

/// The NPU by the plugin.
fn detect(cache: &Path) -> Option<Backends> {
    let plugin = Provider::Plugin { name: "ggml".to_owned(), library: plugin_library()? };
    let npu = NpuOptions {
        provider: plugin,
        cache: Some(cache.to_path_buf()),
        ..npu_options(NumericForm::F32)?
    };
    let named = vec![NPU.to_owned()];
    Some(Backends::detect(BackendOptions { npu, named, exact: true, ..BackendOptions::default() }))
}

#[test]
fn a_plugin_computes_what_it_takes() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(backends) = detect(folder.path()) else { return };
    let npu = backends.npu.as_ref().unwrap_or_else(|| panic!("{:?}", backends.refused));
    let lowered = demo();
    let prompt = random_tokens(&lowered, 50, 10);
    let pins = ["blk.*.ffn=npu0", "blk.*.attn_out=npu0"];
    let pins = pins.iter().map(|pin| pin.parse().expect("a pin")).collect();
    let options = ModelOptions { pins, ..exact_options("cpu0") };
    let got = logits(&mut runner(&lowered, &backends, &options), &prompt);
    let want = logits(&mut runner(&lowered, &backends, &exact_options("cpu0")), &prompt);
    let error = nmse(&want, &got);
    println!("NMSE {error:.1e}; refused: {:?}", npu.refused());
    assert!(error < 1e-4, "its weights are halves: {error:e}");
}
