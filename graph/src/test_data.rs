//! Where tests find reference data.

use std::path::{Path, PathBuf};

/// The golden data in `shared` beside the workspace (or where `TREFOIL_SHARED` says), if there.
fn golden() -> Option<PathBuf> {
    let shared = std::env::var_os("TREFOIL_SHARED")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"), PathBuf::from);
    Some(shared.join("golden")).filter(|path| path.is_dir())
}

/// A file or folder of the data that the repository carries.
pub(crate) fn carried(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data").join(name)
}

/// A folder of reference data: the full one, else the part that the repository carries.
pub(crate) fn part(name: &str) -> PathBuf {
    golden().map_or_else(|| carried(name), |golden| golden.join(name))
}

/// The small model that is part of the program.
pub(crate) fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/trefoil-demo-Q4_K_M.gguf")
}
