//! Where configuration files lie.

use std::path::{Path, PathBuf};

/// A file that may be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) path: PathBuf,
    /// Is it that of the current folder?
    pub(crate) local: bool,
    /// Did the user name it? Then it must be there.
    pub(crate) given: bool,
}

/// Files in the order in which they are laid over one another; only `given` if there is one.
pub(crate) fn places(given: Option<&Path>) -> Vec<Place> {
    let place = |path: PathBuf| Place { path, local: false, given: false };
    if let Some(path) = given {
        return vec![Place { path: path.to_path_buf(), local: false, given: true }];
    }
    let mut all = Vec::new();
    if cfg!(unix) {
        all.push(place(PathBuf::from("/etc/trefoil/trefoil.toml")));
    }
    all.extend(user_file().map(place));
    all.push(Place { local: true, ..place(PathBuf::from("./trefoil.toml")) });
    all
}

/// The user's own file; `None` if the environment does not say where that is.
pub(crate) fn user_file() -> Option<PathBuf> {
    user_folder().map(|folder| folder.join("trefoil").join("trefoil.toml"))
}

/// The user's folder of configurations; `None` if the environment does not say where that is.
fn user_folder() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(path) = variable("XDG_CONFIG_HOME").filter(|path| path.is_absolute()) {
        return Some(path);
    }
    if cfg!(windows) {
        return variable("APPDATA");
    }
    let home = variable("HOME")?;
    Some(if cfg!(target_os = "macos") {
        home.join("Library").join("Application Support")
    } else {
        home.join(".config")
    })
}
