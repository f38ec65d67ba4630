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
    /// `1.31.1`, or `1.31` where only that can be told.
    pub(crate) version: String,
    /// What it tells of its build.
    pub(crate) build: String,
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
    let minor = ort::util::probe(&library).unwrap_or(ort::MINOR_VERSION);
    let (version, build) = (version(&library, minor), ort::info().to_owned());
    let registered = Mutex::default();
    let runtime = Arc::new(Runtime { library, version, build, environment, registered });
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

/// The version: the library tells the minor one, its name may have all of it.
fn version(library: &Path, minor: u32) -> String {
    let least = format!("1.{minor}");
    let name = library.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let named = name.split_once(".so.").map(|(_, version)| version);
    let whole = named.filter(|version| version.starts_with(&format!("{least}.")));
    whole.map_or(least, str::to_owned)
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
    fn the_version_is_the_library_s_own() {
        let of = |name: &str, minor| version(Path::new(name), minor);
        assert_eq!(of("/lib/libonnxruntime.so.1.31.1", 31), "1.31.1");
        assert_eq!(of("/lib/libonnxruntime.so", 24), "1.24");
        assert_eq!(of("/lib/libonnxruntime.so.1", 24), "1.24");
        assert_eq!(of("/lib/libonnxruntime.so.1.3.1", 31), "1.31", "a name that lies");
        assert_eq!(of("onnxruntime.dll", 23), "1.23");
    }
}
