//! Where things that are made once are kept.

use std::path::PathBuf;

/// `trefoil` in the user's cache folder, as the XDG base directory specification (or Windows)
/// has it; `None` if the environment does not say where that is.
pub fn user_folder() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let base = variable("XDG_CACHE_HOME")
        .filter(|path| path.is_absolute())
        .or_else(|| variable("LOCALAPPDATA"))
        .or_else(|| variable("HOME").map(|home| home.join(".cache")))?;
    Some(base.join("trefoil"))
}
