//! Why there is no NPU.

use std::path::PathBuf;

/// An NPU that cannot be opened.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NpuError {
    /// No ONNX Runtime anywhere.
    #[error(
        "no ONNX Runtime here; looked in {searched}. Install one with `python3 -m venv .venv && \
         .venv/bin/pip install onnxruntime==1.31.1`, or name the vendor's with npu.runtime_path"
    )]
    NoRuntime {
        /// All places, and why each was looked at.
        searched: String,
    },
    /// A place that was named holds none.
    #[error(
        "{source_name} names {path}: expected a folder with {expected} or that file itself, got \
         {got}"
    )]
    NoLibrary {
        /// The key or variable.
        source_name: String,
        /// What it says.
        path: PathBuf,
        /// Name of the library.
        expected: &'static str,
        /// What is there.
        got: String,
    },
    /// A file that is no ONNX Runtime.
    #[error("{path} ({source_name}): expected ONNX Runtime's library, got one that says: {reason}")]
    NotARuntime {
        /// How it was found.
        source_name: String,
        /// The file.
        path: PathBuf,
        /// What loading it says.
        reason: String,
    },
    /// An old ONNX Runtime.
    #[error(
        "{path} ({source_name}): expected ONNX Runtime 1.{least} or newer, got {got}; install one \
         with `pip install onnxruntime==1.31.1`, or name another with npu.runtime_path"
    )]
    TooOld {
        /// How it was found.
        source_name: String,
        /// The file.
        path: PathBuf,
        /// Least minor version.
        least: u32,
        /// Its version.
        got: String,
    },
    /// Another one is loaded.
    #[error(
        "{wanted} cannot be loaded: this process uses {loaded}, and a process has one ONNX Runtime"
    )]
    OtherLoaded {
        /// The library that was asked for.
        wanted: PathBuf,
        /// The loaded one.
        loaded: PathBuf,
    },
    /// ONNX Runtime without the provider.
    #[error(
        "{runtime} has no {provider}: {reason}. The vendor's own ONNX Runtime has it: name its \
         folder with npu.runtime_path"
    )]
    NoProvider {
        /// The library.
        runtime: PathBuf,
        /// The provider.
        provider: String,
        /// What is missing.
        reason: String,
    },
    /// Nothing that could be an NPU.
    #[error(
        "{runtime} has no provider for an NPU (VitisAI, RyzenAI); set npu.provider and its keys, or \
         for tests npu.provider = \"cpu\", which plays one on the processor's cores"
    )]
    NothingFound {
        /// The library.
        runtime: PathBuf,
    },
    /// A provider's library that does not load, or shows no device.
    #[error("{library}: expected a library with the provider {provider}, got: {reason}")]
    ProviderLibrary {
        /// The library.
        library: PathBuf,
        /// The provider.
        provider: String,
        /// What is wrong.
        reason: String,
    },
    /// A value of the options.
    #[error("{what}: expected {expected}, got {got}")]
    Option {
        /// The key.
        what: &'static str,
        /// What it may be.
        expected: String,
        /// What it is.
        got: String,
    },
    /// ONNX Runtime does not start.
    #[error("{runtime}: ONNX Runtime does not start: {reason}")]
    Start {
        /// The library.
        runtime: PathBuf,
        /// What it says.
        reason: String,
    },
}
