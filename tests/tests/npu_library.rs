//! What is said where no NPU can be opened. Nothing here loads ONNX Runtime: a process has one.

use std::path::{Path, PathBuf};

use trefoil_engine::backends::npu::{NpuOptions, Provider};
use trefoil_engine::backends::{BackendOptions, Backends};
use trefoil_engine::model::ModelError;
use trefoil_tests::npu::{NPU, old_runtime};
use trefoil_tests::running::{demo, exact_options};

/// Why there is no npu0 with ONNX Runtime at `path`.
fn reason(path: &Path) -> String {
    let npu = NpuOptions {
        provider: Provider::Cpu,
        runtime: Some(path.to_path_buf()),
        ..NpuOptions::default()
    };
    let options = BackendOptions { npu, named: vec![NPU.to_owned()], ..BackendOptions::default() };
    let found = Backends::detect(options);
    assert!(found.npu.is_none());
    let error = demo().plan(&found, &exact_options(NPU)).expect_err("no NPU");
    let reason = found.refusal(NPU).expect("a reason").to_owned();
    assert!(matches!(error, ModelError::Unusable { .. }), "{error}");
    assert!(error.to_string().contains(&reason), "{error}");
    reason
}

#[test]
fn nothing_where_the_configuration_says() {
    let text = reason(Path::new("/nonexistent/onnxruntime"));
    assert!(text.contains("npu.runtime_path names /nonexistent/onnxruntime"), "{text}");
    assert!(text.contains("nothing of that name"), "{text}");
}

#[test]
fn a_file_that_is_no_library() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("libonnxruntime.so");
    std::fs::write(&file, b"not a library").expect("a file");
    for path in [&file, &folder.path().to_path_buf()] {
        let text = reason(path);
        assert!(text.contains("expected ONNX Runtime's library"), "{text}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_library_that_is_another() {
    let usual = ["/lib/x86_64-linux-gnu", "/usr/lib64", "/lib/aarch64-linux-gnu"];
    let mut files = usual.iter().map(|folder| PathBuf::from(folder).join("libm.so.6"));
    let Some(other) = files.find(|file| file.is_file()) else {
        println!("skipped: no libm.so.6 in the usual folders");
        return;
    };
    let text = reason(&other);
    assert!(text.contains("does not export `OrtGetApiBase`"), "{text}");
}

#[test]
fn an_old_version() {
    let Some(old) = old_runtime() else { return };
    let text = reason(&old);
    assert!(text.contains("expected ONNX Runtime 1.23 or newer, got 1.20.1"), "{text}");
    assert!(text.contains("pip install onnxruntime=="), "{text}");
}

#[test]
fn shapes_without_rows() {
    let npu = NpuOptions { shapes: vec![128, 0], ..NpuOptions::default() };
    let options = BackendOptions { npu, named: vec![NPU.to_owned()], ..BackendOptions::default() };
    let found = Backends::detect(options);
    let text = found.refusal(NPU).expect("a reason");
    assert!(text.contains("npu.shapes") && text.contains("got 0"), "{text}");
}

#[test]
fn an_npu_that_nobody_named_is_not_looked_for() {
    let found = Backends::detect(BackendOptions::default());
    assert_eq!(found.refusal(NPU), None);
    let error = demo().plan(&found, &exact_options(NPU)).expect_err("not opened");
    assert!(error.to_string().contains("npu0"), "{error}");
}
