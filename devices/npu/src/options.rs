//! How an NPU is set up.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;

use trefoil_kernels_npu::NumericForm;
use trefoil_telemetry::{Bytes, Nanos};

use crate::NpuError;

/// What reaches the NPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Provider {
    /// VitisAI where ONNX Runtime has it, else RyzenAI's library where `RYZENAI_EP_PATH` names it.
    #[default]
    Auto,
    /// AMD's provider inside its own ONNX Runtime.
    Vitisai,
    /// AMD's plugin library; absent: where `RYZENAI_EP_PATH` says.
    Ryzenai(Option<PathBuf>),
    /// Intel's OpenVINO; its option `device_type` says which device, NPU if it is not set.
    Openvino,
    /// Qualcomm's QNN.
    Qnn,
    /// A plugin library with a provider of this name.
    Plugin {
        /// Name of the provider.
        name: String,
        /// The library.
        library: PathBuf,
    },
    /// ONNX Runtime on the processor's cores: a stand-in, used only when named.
    Cpu,
}

/// How an NPU is set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NpuOptions {
    /// What reaches it.
    pub provider: Provider,
    /// Options of the provider, by their names there.
    pub provider_options: BTreeMap<String, String>,
    /// ONNX Runtime's library or its folder; absent: it is looked for.
    pub runtime: Option<PathBuf>,
    /// May it be looked for in the current folder's `.venv`? Not where nobody asked for an NPU: loading a
    /// library runs what is in it.
    pub local: bool,
    /// Folder of compiled models and of what was refused; absent: nothing is kept.
    pub cache: Option<PathBuf>,
    /// Most bytes of compiled models.
    pub cache_limit: Bytes,
    /// Static row counts of prompts, padded up to.
    pub shapes: Vec<usize>,
    /// How products are computed.
    pub form: NumericForm,
    /// Longest time of one compilation.
    pub compile_limit: Nanos,
    /// Threads of the stand-in; 0 for one per core.
    pub threads: usize,
}

impl Default for NpuOptions {
    fn default() -> Self {
        Self {
            provider: Provider::Auto,
            provider_options: BTreeMap::new(),
            runtime: None,
            local: true,
            cache: None,
            cache_limit: Bytes(8 << 30),
            shapes: vec![128, 512, 2048],
            form: NumericForm::F32,
            compile_limit: Nanos(300_000_000_000),
            threads: 0,
        }
    }
}

/// Most rows of a static shape: a mistyped one should not ask for all memory.
const MOST_ROWS: usize = 1 << 16;

impl NpuOptions {
    /// Checks values that a user wrote.
    pub(crate) fn check(&self) -> Result<(), NpuError> {
        let wrong = self.shapes.iter().find(|&&shape| shape == 0 || shape > MOST_ROWS);
        if let Some(shape) = wrong {
            return Err(NpuError::Option {
                what: "npu.shapes",
                expected: format!("rows from 1 to {MOST_ROWS}"),
                got: shape.to_string(),
            });
        }
        // Names go to the driver as C strings.
        let texts = self.provider_options.iter().flat_map(|(key, value)| [key, value]);
        if let Some(text) = texts.into_iter().find(|text| text.contains('\0')) {
            return Err(NpuError::Option {
                what: "npu.provider_options",
                expected: "text without zero bytes".to_owned(),
                got: format!("{text:?}"),
            });
        }
        Ok(())
    }
}

impl Provider {
    /// Name as configurations have it.
    pub fn name(&self) -> &str {
        match self {
            Self::Auto => "auto",
            Self::Vitisai => "vitisai",
            Self::Ryzenai(_) => "ryzenai",
            Self::Openvino => "openvino",
            Self::Qnn => "qnn",
            Self::Plugin { name, .. } => name,
            Self::Cpu => "cpu",
        }
    }
}

impl FromStr for Provider {
    type Err = NpuError;

    /// Any but a plugin, which takes a name and a library.
    fn from_str(text: &str) -> Result<Self, NpuError> {
        Ok(match text {
            "auto" => Self::Auto,
            "vitisai" => Self::Vitisai,
            "ryzenai" => Self::Ryzenai(None),
            "openvino" => Self::Openvino,
            "qnn" => Self::Qnn,
            "cpu" => Self::Cpu,
            _ => {
                return Err(NpuError::Option {
                    what: "npu.provider",
                    expected: "auto, vitisai, ryzenai, openvino, qnn, plugin or cpu".to_owned(),
                    got: format!("{text:?}"),
                });
            }
        })
    }
}
