//! Devices for tests: found once in a process, and what to do where there is no GPU.

use std::path::PathBuf;
use std::sync::OnceLock;

use trefoil_engine::backends::{BackendOptions, Backends};

/// The Vulkan device. Where there is no better one it is a program that plays a GPU.
pub const GPU: &str = "gpu0";

/// Set where a GPU must be here: its absence is then a failure, and so is that of the validation
/// layer.
const EXPECTED: &str = "TREFOIL_EXPECT_GPU";

/// Must a GPU be here?
pub fn gpu_expected() -> bool {
    std::env::var_os(EXPECTED).is_some()
}

/// Folder that test programs share, inside the build folder.
pub fn scratch() -> PathBuf {
    let program = std::env::current_exe().expect("the system tells");
    // target/debug/deps/program
    let target = program.ancestors().nth(3).expect("test programs lie three folders deep");
    target.join("tmp")
}

/// Options that open the GPU, with a folder for compiled kernels that all tests share.
pub fn gpu_options(exact: bool) -> BackendOptions {
    BackendOptions {
        exact,
        named: vec![GPU.to_owned()],
        cache: Some(scratch().join("vulkan")),
        ..BackendOptions::default()
    }
}

/// The devices of this machine, with a GPU where `device` is one.
pub fn backends(device: &str, exact: bool) -> &'static Backends {
    static FOUND: [OnceLock<Backends>; 4] = [const { OnceLock::new() }; 4];
    let gpu = device == GPU;
    FOUND[usize::from(exact) + 2 * usize::from(gpu)].get_or_init(|| {
        Backends::detect(match gpu {
            true => gpu_options(exact),
            false => BackendOptions { exact, ..BackendOptions::default() },
        })
    })
}

/// The devices with the GPU among them; `None`, with a word about it, where there is none.
///
/// # Panics
/// If a GPU is expected, or is here and does not compute right.
pub fn with_gpu(exact: bool) -> Option<&'static Backends> {
    let found = backends(GPU, exact);
    has_gpu(found).then_some(found)
}

/// As [`with_gpu`], for devices that were found in another way.
pub fn has_gpu(found: &Backends) -> bool {
    if found.devices.iter().any(|device| device.info().name == GPU) {
        return true;
    }
    let refused: Vec<String> = found
        .refused
        .iter()
        .map(|refused| format!("{}: {}", refused.name, refused.reason))
        .collect();
    let refused = refused.join("; ");
    assert!(!refused.contains("self-test"), "{refused}");
    assert!(!gpu_expected(), "{EXPECTED} is set and {GPU} is not here: {refused}");
    println!("skipped: {GPU} is not here: {refused}");
    false
}
