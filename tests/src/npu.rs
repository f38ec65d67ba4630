//! The NPU's stand-in for tests: ONNX Runtime from a wheel, on the processor's cores.

use std::path::PathBuf;
use std::sync::OnceLock;

use trefoil_engine::backends::npu::{NpuOptions, NumericForm, Provider};
use trefoil_engine::backends::{BackendOptions, Backends};

use crate::devices::GPU;
use crate::golden;

/// The NPU.
pub const NPU: &str = "npu0";

/// Set where ONNX Runtime must be here: its absence is then a failure.
const EXPECTED: &str = "TREFOIL_EXPECT_NPU";
/// Where ONNX Runtime is; else in `.venv` of the workspace.
const RUNTIME: &str = "TREFOIL_NPU_RUNTIME";

/// Folder of ONNX Runtime for tests, if there is one.
///
/// # Panics
/// If it is expected and not there.
pub fn runtime() -> Option<PathBuf> {
    let named = std::env::var_os(RUNTIME).filter(|path| !path.is_empty()).map(PathBuf::from);
    let found = named.or_else(wheel);
    let expected = std::env::var_os(EXPECTED).is_some();
    assert!(found.is_some() || !expected, "{EXPECTED} is set and .venv holds no onnxruntime");
    if found.is_none() {
        println!("skipped: no ONNX Runtime; `tests/npu/fetch.sh` installs it into .venv");
    }
    found
}

/// The wheel in the workspace's Python environment.
fn wheel() -> Option<PathBuf> {
    let lib = golden::data().join("../../.venv/lib");
    let versions = std::fs::read_dir(lib).ok()?.flatten();
    let folders = versions.map(|entry| entry.path().join("site-packages/onnxruntime/capi"));
    folders.filter(|folder| folder.is_dir()).max()
}

/// A library that `tests/npu/fetch.sh` put into a folder of its own, if it did.
fn fetched(path: &str) -> Option<PathBuf> {
    let path = golden::data().join("../../.cache/npu").join(path);
    let found = path.exists();
    assert!(found || std::env::var_os(EXPECTED).is_none(), "{} is missing", path.display());
    if !found {
        println!("skipped: {} is not here; `tests/npu/fetch.sh` makes it", path.display());
    }
    found.then_some(path)
}

/// An ONNX Runtime that is too old.
///
/// # Panics
/// If it is expected and not there.
pub fn old_runtime() -> Option<PathBuf> {
    fetched("old/onnxruntime/capi")
}

/// An ONNX Runtime with OpenVINO.
///
/// # Panics
/// If it is expected and not there.
pub fn openvino_runtime() -> Option<PathBuf> {
    fetched("openvino/onnxruntime/capi")
}

/// The library of a plugin provider called `ggml`.
///
/// # Panics
/// If it is expected and not there.
pub fn plugin_library() -> Option<PathBuf> {
    fetched("plugin/onnxruntime_ggml/lib/libonnxruntime_ggml.so")
}

/// A library whose provider, `trefoiltest`, plays an NPU that compiles ahead and fails when it is asked to:
/// beside the test program where it was built, or where `TREFOIL_NPU_TEST_PROVIDER` says.
pub fn test_provider() -> Option<PathBuf> {
    let named = std::env::var_os("TREFOIL_NPU_TEST_PROVIDER").filter(|path| !path.is_empty());
    let (prefix, suffix) = (std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    let name = format!("{prefix}trefoil_npu_test_provider{suffix}");
    let program = std::env::current_exe().expect("the system tells");
    let beside = || program.ancestors().skip(1).take(2).map(|folder| folder.join(&name));
    let found = named.map(PathBuf::from).or_else(|| beside().find(|path| path.is_file()));
    if found.is_none() {
        println!("skipped: {name} is not beside {}", program.display());
    }
    found
}

/// The stand-in with a numeric form, if ONNX Runtime is here.
pub fn npu_options(form: NumericForm) -> Option<NpuOptions> {
    let runtime = Some(runtime()?);
    // Few and small: tiny models are padded up to them.
    let shapes = vec![16, 64, 256];
    let provider = Provider::Cpu;
    Some(NpuOptions { provider, runtime, form, shapes, threads: 1, ..NpuOptions::default() })
}

/// cpu0 and ref0 in f32, the stand-in in a numeric form, and the GPU if `gpu` asks for it.
///
/// # Panics
/// If the stand-in is here and does not come up.
pub fn detect(form: NumericForm, gpu: bool) -> Option<Backends> {
    let npu = npu_options(form)?;
    let gpus = gpu.then(|| GPU.to_owned());
    let named = gpus.into_iter().chain([NPU.to_owned()]).collect();
    let options = BackendOptions { npu, named, ..crate::devices::gpu_options(true) };
    let found = Backends::detect(options);
    let here = found.devices.iter().any(|device| device.info().name == NPU);
    assert!(here, "{NPU} is not here: {:?}", found.refused);
    Some(found)
}

/// As [`detect`] with f32 and without a GPU, once in a process.
pub fn with_npu() -> Option<&'static Backends> {
    static FOUND: OnceLock<Option<Backends>> = OnceLock::new();
    FOUND.get_or_init(|| detect(NumericForm::F32, false)).as_ref()
}
