//! Where tests find reference data.

use std::path::{Path, PathBuf};

/// The golden data in `shared` beside the workspace (or where `TREFOIL_SHARED` says), if there.
pub(crate) fn golden() -> Option<PathBuf> {
    let shared = std::env::var_os("TREFOIL_SHARED")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"), PathBuf::from);
    Some(shared.join("golden")).filter(|path| path.is_dir())
}
