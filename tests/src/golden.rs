//! Where the reference data is.
//!
//! The full set (tiny models, vocabularies, expected results of other programs) is not part of
//! the repository: it lies beside the workspace root, or where `TREFOIL_SHARED` says. A small
//! part is carried in `tests/data/`, in the same layout, so that every test has something to
//! judge by on any machine.

use std::path::PathBuf;

/// The folder that holds the full reference data (`golden/`, `models/`): the environment
/// variable `TREFOIL_SHARED`, else `shared` beside the workspace root. `None` where there is
/// none; tests then use [`data`] alone.
pub fn shared() -> Option<PathBuf> {
    let folder = match std::env::var_os("TREFOIL_SHARED") {
        Some(folder) => PathBuf::from(folder),
        None => workspace().parent()?.join("shared"),
    };
    folder.join("golden").is_dir().then_some(folder)
}

/// The folder of the data that the repository carries, `tests/data`.
pub fn data() -> PathBuf {
    workspace().join("tests").join("data")
}

/// The part of the reference data called `name` (`vocab`, `templates`, ...): the full one of
/// [`shared`] where that exists, else the carried one.
pub fn part(name: &str) -> PathBuf {
    match shared() {
        Some(folder) => folder.join("golden").join(name),
        None => data().join(name),
    }
}

fn workspace() -> PathBuf {
    let tests = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("the tests crate lies inside the workspace").to_path_buf()
}
