//! Where ONNX Runtime's library may be.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::NpuError;

/// Name of the library.
#[cfg(windows)]
pub(crate) const LIBRARY: &str = "onnxruntime.dll";
/// Name of the library.
#[cfg(target_os = "macos")]
pub(crate) const LIBRARY: &str = "libonnxruntime.dylib";
/// Name of the library; wheels add the version.
#[cfg(not(any(windows, target_os = "macos")))]
pub(crate) const LIBRARY: &str = "libonnxruntime.so";

/// Parts of a Ryzen AI installation that may hold the library.
const RYZEN_AI: [&str; 4] = ["deployment/lib", "deployment", "onnxruntime/bin", "lib"];
/// Folders of the system.
const SYSTEM: [&str; 5] = [
    "/opt/onnxruntime/lib",
    "/usr/local/lib",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
];

/// What is asked of the machine.
pub(crate) struct Surroundings<'a> {
    /// An environment variable, if it is set and not empty.
    pub(crate) variable: &'a dyn Fn(&str) -> Option<OsString>,
    /// The current folder, if it may be looked into.
    pub(crate) folder: Option<PathBuf>,
}

/// A library that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// What led to it.
    pub(crate) source: String,
    pub(crate) path: PathBuf,
}

/// The first library in the order of the documentation: the configured place, `ORT_DYLIB_PATH`, a Ryzen
/// AI installation, an active Python environment, the system. A place that is named and holds none is
/// an error.
pub(crate) fn find(
    configured: Option<&Path>,
    around: &Surroundings<'_>,
) -> Result<Found, NpuError> {
    let variable = |name: &str| (around.variable)(name).filter(|value| !value.is_empty());
    if let Some(path) = configured {
        return named("npu.runtime_path", path);
    }
    if let Some(path) = variable("ORT_DYLIB_PATH") {
        return named("ORT_DYLIB_PATH", Path::new(&path));
    }
    let mut places: Vec<(String, PathBuf)> = Vec::new();
    if let Some(root) = variable("RYZEN_AI_INSTALLATION_PATH") {
        let root = PathBuf::from(root);
        let source = "RYZEN_AI_INSTALLATION_PATH".to_owned();
        places.extend(RYZEN_AI.iter().map(|part| (source.clone(), root.join(part))));
    }
    if let Some(parent) = variable("RYZENAI_EP_PATH").as_deref().and_then(|p| Path::new(p).parent())
    {
        places.push(("beside RYZENAI_EP_PATH".to_owned(), parent.to_path_buf()));
    }
    let active =
        variable("VIRTUAL_ENV").map(|path| ("VIRTUAL_ENV".to_owned(), PathBuf::from(path)));
    let local = around.folder.as_ref().map(|folder| (".venv".to_owned(), folder.join(".venv")));
    for (source, root) in active.into_iter().chain(local) {
        places.extend(site_packages(&root).into_iter().map(|folder| (source.clone(), folder)));
    }
    if let Some(paths) = variable("LD_LIBRARY_PATH") {
        let paths = std::env::split_paths(&paths).filter(|path| path.is_absolute());
        places.extend(paths.map(|path| ("LD_LIBRARY_PATH".to_owned(), path)));
    }
    places.extend(SYSTEM.iter().map(|path| ("the system".to_owned(), PathBuf::from(path))));
    let found = places.iter().find_map(|(source, folder)| {
        library_in(folder).map(|path| Found { source: source.clone(), path })
    });
    found.ok_or_else(|| {
        let searched =
            places.iter().map(|(source, folder)| format!("{} ({source})", folder.display()));
        NpuError::NoRuntime { searched: searched.collect::<Vec<_>>().join(", ") }
    })
}

/// The library at a place that was named: a file, or a folder that holds it (or holds a wheel's folders).
fn named(source: &str, path: &Path) -> Result<Found, NpuError> {
    let inside = ["", "onnxruntime/capi", "capi", "lib", "bin"];
    let found = if path.is_file() {
        Some(path.to_path_buf())
    } else {
        inside.iter().find_map(|part| library_in(&path.join(part)))
    };
    let got = if path.is_dir() { "a folder without it" } else { "nothing of that name" };
    found.map(|path| Found { source: source.to_owned(), path }).ok_or_else(|| NpuError::NoLibrary {
        source_name: source.to_owned(),
        path: path.to_path_buf(),
        expected: LIBRARY,
        got: got.to_owned(),
    })
}

/// The library in a folder; of several versions the newest.
pub(crate) fn library_in(folder: &Path) -> Option<PathBuf> {
    let plain = folder.join(LIBRARY);
    if plain.is_file() {
        return Some(plain);
    }
    let stem = LIBRARY.split('.').next().unwrap_or(LIBRARY);
    let is_version = |name: &str| {
        let rest =
            name.strip_prefix(LIBRARY).or_else(|| name.strip_prefix(stem)?.strip_suffix(".dylib"));
        rest.is_some_and(|rest| {
            rest.starts_with('.') && rest[1..].starts_with(|c: char| c.is_ascii_digit())
        })
    };
    let entries = std::fs::read_dir(folder).ok()?.flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let numbers = |name: &String| -> Vec<u32> {
        name.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
    };
    let newest = names.filter(|name| is_version(name)).max_by_key(numbers)?;
    Some(folder.join(newest))
}

/// Folders of wheels in a Python environment.
fn site_packages(root: &Path) -> Vec<PathBuf> {
    let capi = Path::new("onnxruntime").join("capi");
    let mut folders = vec![root.join("Lib").join("site-packages").join(&capi)];
    if let Ok(entries) = std::fs::read_dir(root.join("lib")) {
        let mut versions: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        versions.sort();
        folders.extend(versions.iter().map(|path| path.join("site-packages").join(&capi)));
    }
    folders
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    fn with(variables: &[(&str, &Path)], folder: &Path) -> Result<Found, NpuError> {
        let variable = |name: &str| {
            let known = variables.iter().find(|(key, _)| *key == name);
            known.map(|(_, value)| value.as_os_str().to_owned())
        };
        find(None, &Surroundings { variable: &variable, folder: Some(folder.to_path_buf()) })
    }

    fn touch(path: &Path) {
        std::fs::create_dir_all(path.parent().expect("inside")).expect("a folder");
        std::fs::write(path, b"").expect("a file");
    }

    #[test]
    fn places_are_looked_at_in_order() {
        let root = tempfile::tempdir().expect("a folder");
        let venv = root.path().join("env");
        let wheel = venv.join("lib/python3.11/site-packages/onnxruntime/capi");
        touch(&wheel.join("libonnxruntime.so.1.9.0"));
        touch(&wheel.join("libonnxruntime.so.1.31.1"));
        touch(&wheel.join("libonnxruntime_providers_shared.so"));
        let found = with(&[("VIRTUAL_ENV", &venv)], root.path()).expect("the wheel's");
        assert_eq!(found.path, wheel.join("libonnxruntime.so.1.31.1"));
        assert_eq!(found.source, "VIRTUAL_ENV");
        let ryzen = root.path().join("ryzen");
        touch(&ryzen.join("deployment/lib/libonnxruntime.so"));
        let variables = [("VIRTUAL_ENV", &*venv), ("RYZEN_AI_INSTALLATION_PATH", &*ryzen)];
        let found = with(&variables, root.path()).expect("the installation's");
        assert_eq!(found.path, ryzen.join("deployment/lib/libonnxruntime.so"));
        let own = root.path().join("own/libonnxruntime.so.1.30.0");
        touch(&own);
        let found = with(&[("VIRTUAL_ENV", &venv), ("ORT_DYLIB_PATH", &own)], root.path());
        assert_eq!(found.expect("the named one").path, own);
    }

    #[test]
    fn what_is_missing_is_said_with_the_command_that_mends_it() {
        let root = tempfile::tempdir().expect("a folder");
        let around = Surroundings { variable: &|_| None, folder: Some(root.path().to_path_buf()) };
        if let Err(error) = find(None, &around) {
            let text = error.to_string();
            assert!(text.contains(".venv") && text.contains("pip install onnxruntime"), "{text}");
            assert!(text.contains("npu.runtime_path"), "{text}");
        }
        let error = find(Some(root.path()), &around).expect_err("an empty folder").to_string();
        assert!(
            error.contains("npu.runtime_path") && error.contains("a folder without it"),
            "{error}"
        );
        let nowhere = root.path().join("nowhere");
        let error = with(&[("ORT_DYLIB_PATH", &nowhere)], root.path()).expect_err("nothing there");
        assert!(error.to_string().contains("ORT_DYLIB_PATH"), "{error}");
    }
}
