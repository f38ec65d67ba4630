//! ONNX Runtime, loaded once in a process.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ort::LoadDynamicError;
use ort::environment::Environment;
use ort::logging::LogLevel;
use parking_lot::Mutex;

use crate::NpuError;
use crate::search::Found;

/// The loaded library. One per process: ONNX Runtime keeps global state.
static LOADED: Mutex<Option<Arc<Runtime>>> = Mutex::new(None);

/// ONNX Runtime.
#[derive(Debug)]
pub(crate) struct Runtime {
    pub(crate) library: PathBuf,
    /// `1.31.1`, or what it tells of its build where that names no version.
    pub(crate) version: String,
    pub(crate) environment: Environment,
    /// Libraries of providers, by the names that they are registered under.
    registered: Mutex<BTreeMap<String, PathBuf>>,
}

/// Loads the library, or takes the loaded one if it is the same.
pub(crate) fn load(found: &Found) -> Result<Arc<Runtime>, NpuError> {
    let mut loaded = LOADED.lock();
    let library = found.path.canonicalize().unwrap_or_else(|_| found.path.clone());
    if let Some(runtime) = &*loaded {
        if runtime.library == library {
            return Ok(runtime.clone());
        }
        let (wanted, loaded) = (library, runtime.library.clone());
        return Err(NpuError::OtherLoaded { wanted, loaded });
    }
    let builder = ort::init_from(&library).map_err(|error| load_error(found, &error))?;
    let start = |error: ort::Error| NpuError::Start {
        runtime: library.clone(),
        reason: error.message().to_owned(),
    };
    let environment = builder
        .with_name("trefoil")
        .with_telemetry(false)
        .with_logger(Arc::new(log))
        .build()
        .map_err(start)?;
    environment.set_log_level(LogLevel::Warning);
    let version = version_of(ort::info());
    let registered = Mutex::default();
    let runtime = Arc::new(Runtime { library, version, environment, registered });
    *loaded = Some(runtime.clone());
    Ok(runtime)
}

fn load_error(found: &Found, error: &LoadDynamicError) -> NpuError {
    let (source_name, path) = (found.source.clone(), found.path.clone());
    match error {
        LoadDynamicError::BadVersion { version_str, .. } => {
            let (least, got) = (ort::MINOR_VERSION, version_str.clone());
            NpuError::TooOld { source_name, path, least, got }
        }
        other => NpuError::NotARuntime { source_name, path, reason: other.to_string() },
    }
}

/// The version in what ONNX Runtime tells of its build: `... git-branch=rel-1.31.1, ...`.
fn version_of(build: &str) -> String {
    let release = build.split_once("git-branch=rel-").map(|(_, rest)| rest);
    let version = release.and_then(|rest| rest.split([',', ' ']).next());
    version.unwrap_or(build).to_owned()
}

/// Messages of ONNX Runtime and its providers go where trefoil's go; what it says by the way is no
/// warning to a user.
fn log(level: LogLevel, category: &str, _id: &str, _place: &str, message: &str) {
    // AMD's provider cuts what it claimed again, by itself, where nothing can forbid it.
    if message.contains("partitioned to CPU") {
        tracing::warn!("the NPU's provider runs ops on the processor's cores: {message}");
        return;
    }
    match level {
        LogLevel::Fatal | LogLevel::Error => tracing::warn!("onnxruntime {category}: {message}"),
        LogLevel::Warning => tracing::info!("onnxruntime {category}: {message}"),
        _ => tracing::debug!("onnxruntime {category}: {message}"),
    }
}

impl Runtime {
    /// Registers a provider's library under a name, once.
    pub(crate) fn register(&self, name: &str, library: &Path) -> Result<(), NpuError> {
        let mut registered = self.registered.lock();
        let failed = |reason: String| NpuError::ProviderLibrary {
            library: library.to_path_buf(),
            provider: name.to_owned(),
            reason,
        };
        match registered.get(name) {
            Some(known) if known == library => return Ok(()),
            Some(known) => {
                return Err(failed(format!("{} is registered under it", known.display())));
            }
            None => {}
        }
        if !library.is_file() {
            return Err(failed("no such file".to_owned()));
        }
        let made = self.environment.register_ep_library(name, library);
        made.map_err(|error| failed(error.message().to_owned()))?;
        registered.insert(name.to_owned(), library.to_path_buf());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_from_the_build() {
        let build =
            "ORT Build Info: git-branch=rel-1.31.1, git-commit-id=26250ae, build type=Release";
        assert_eq!(version_of(build), "1.31.1");
        assert_eq!(
            version_of("ORT Build Info: git-branch=main"),
            "ORT Build Info: git-branch=main"
        );
    }
}
