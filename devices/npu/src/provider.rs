//! Providers: how sessions are made to use them, and what is known of each.

use std::path::PathBuf;
use std::sync::Arc;

use ort::ep::{ArbitrarilyConfigurableExecutionProvider, ExecutionProvider, OpenVINO, QNN, Vitis};
use ort::memory::DeviceType;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};

use crate::runtime::Runtime;
use crate::{NpuError, NpuOptions, Provider};

/// Name of AMD's plugin provider.
const RYZENAI: &str = "RyzenAILightExecutionProvider";
/// Where its library is.
const RYZENAI_PATH: &str = "RYZENAI_EP_PATH";
/// Longest name of a provider.
const LONGEST_NAME: usize = 100;

/// A provider that ONNX Runtime has.
#[derive(Clone, Debug)]
pub(crate) struct Chosen {
    kind: Kind,
    options: Vec<(String, String)>,
    pub(crate) runtime: Arc<Runtime>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Cpu { threads: usize },
    Vitisai,
    Openvino,
    Qnn,
    Plugin { name: String, library: PathBuf, shows_npu: bool },
}

/// Finds the provider that the options name.
pub(crate) fn choose(options: &NpuOptions, runtime: &Arc<Runtime>) -> Result<Chosen, NpuError> {
    let mut own: Vec<(String, String)> = options.provider_options.clone().into_iter().collect();
    let kind = match &options.provider {
        Provider::Cpu => Kind::Cpu { threads: options.threads },
        Provider::Vitisai => built_in::<Vitis>(runtime, Kind::Vitisai)?,
        Provider::Qnn => built_in::<QNN>(runtime, Kind::Qnn)?,
        Provider::Openvino => {
            if own.iter().all(|(key, _)| key != "device_type") {
                own.push(("device_type".to_owned(), "NPU".to_owned()));
            }
            built_in::<OpenVINO>(runtime, Kind::Openvino)?
        }
        Provider::Plugin { name, library } => plugin(runtime, name, library.clone())?,
        Provider::Ryzenai(library) => {
            let library = library.clone().or_else(ryzenai_library);
            let library = library.ok_or_else(|| NpuError::NoProvider {
                runtime: runtime.library.clone(),
                provider: RYZENAI.to_owned(),
                reason: format!("{RYZENAI_PATH} does not name its library"),
            })?;
            plugin(runtime, RYZENAI, library)?
        }
        Provider::Auto if Vitis::is_available().unwrap_or(false) => Kind::Vitisai,
        Provider::Auto => match ryzenai_library() {
            Some(library) => plugin(runtime, RYZENAI, library)?,
            None => return Err(NpuError::NothingFound { runtime: runtime.library.clone() }),
        },
    };
    Ok(Chosen { kind, options: own, runtime: runtime.clone() })
}

fn ryzenai_library() -> Option<PathBuf> {
    std::env::var_os(RYZENAI_PATH).filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// A provider that ONNX Runtime is built with.
fn built_in<P: ExecutionProvider>(runtime: &Runtime, kind: Kind) -> Result<Kind, NpuError> {
    let missing = |reason: String| NpuError::NoProvider {
        runtime: runtime.library.clone(),
        provider: P::NAME.to_owned(),
        reason,
    };
    match P::is_available() {
        Ok(true) => Ok(kind),
        Ok(false) => Err(missing("it was built without".to_owned())),
        Err(error) => Err(missing(error.message().to_owned())),
    }
}

/// A provider in a library of its own.
fn plugin(runtime: &Runtime, name: &str, library: PathBuf) -> Result<Kind, NpuError> {
    if name.is_empty() || name.len() > LONGEST_NAME || name.contains('\0') {
        return Err(NpuError::Option {
            what: "npu.provider_name",
            expected: format!("a name of 1 to {LONGEST_NAME} letters"),
            got: format!("{name:?}"),
        });
    }
    runtime.register(name, &library)?;
    let devices =
        runtime.environment.devices().filter(|device| device.ep().is_ok_and(|n| n == name));
    let kinds: Vec<DeviceType> = devices.map(|device| device.hardware_device().ty()).collect();
    if kinds.is_empty() {
        let all = runtime.environment.devices().filter_map(|device| device.ep().ok());
        let mut all: Vec<&str> = all.collect();
        all.dedup();
        let reason = format!("it shows no device of this name, only {}", all.join(", "));
        return Err(NpuError::ProviderLibrary { library, provider: name.to_owned(), reason });
    }
    let shows_npu = kinds.contains(&DeviceType::NPU);
    Ok(Kind::Plugin { name: name.to_owned(), library, shows_npu })
}

impl Chosen {
    /// Name for people and for keys: `VitisAI`, `OpenVINO CPU`, `cpu`.
    pub(crate) fn name(&self) -> String {
        match &self.kind {
            Kind::Cpu { .. } => "cpu".to_owned(),
            Kind::Vitisai => "VitisAI".to_owned(),
            Kind::Qnn => "QNN".to_owned(),
            Kind::Openvino => format!("OpenVINO {}", self.option("device_type").unwrap_or("NPU")),
            Kind::Plugin { name, .. } => name.clone(),
        }
    }

    /// Everything that compiled models depend on beside the model: the provider with its options and
    /// library, ONNX Runtime's version.
    pub(crate) fn identity(&self) -> String {
        let library = match &self.kind {
            Kind::Plugin { library, .. } => {
                let about = std::fs::metadata(library).ok();
                let made = about.as_ref().and_then(|about| about.modified().ok());
                let made = made.and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
                let bytes = about.map_or(0, |about| about.len());
                format!("{} {bytes} {}", library.display(), made.map_or(0, |at| at.as_nanos()))
            }
            _ => self.runtime.library.display().to_string(),
        };
        let (name, version, build) = (self.name(), &self.runtime.version, &self.runtime.build);
        format!("{name}; {version}; {build}; {library}; {:?}", self.options)
    }

    fn option(&self, key: &str) -> Option<&str> {
        let found = self.options.iter().find(|(name, _)| name == key);
        found.map(|(_, value)| value.as_str())
    }

    /// Does it only play an NPU?
    pub(crate) fn is_stand_in(&self) -> bool {
        match &self.kind {
            Kind::Cpu { .. } => true,
            Kind::Vitisai | Kind::Qnn => false,
            Kind::Openvino => !self.option("device_type").unwrap_or("NPU").contains("NPU"),
            Kind::Plugin { shows_npu, .. } => !shows_npu,
        }
    }

    /// Can what it compiled be written down and loaded again? OpenVINO writes it and does not load it.
    pub(crate) fn keeps_compiled(&self) -> bool {
        matches!(self.kind, Kind::Vitisai | Kind::Qnn | Kind::Plugin { .. })
    }

    /// A builder of sessions that run on this provider alone.
    pub(crate) fn builder(&self) -> Result<SessionBuilder, ort::Error> {
        let environment = &self.runtime.environment;
        let builder = SessionBuilder::new(environment)?;
        let builder = builder.with_no_environment_execution_providers()?;
        // Its threads sleep between steps: the cores have other work.
        let builder = builder.with_intra_op_spinning(false)?;
        if let Kind::Cpu { threads } = self.kind {
            return Ok(builder.with_intra_threads(threads)?);
        }
        // What the provider does not take must be said, not run on the processor's cores.
        let builder = builder.with_disable_cpu_fallback()?;
        // Nor may ONNX Runtime fuse ops to such as the provider does not know: its compiler has its own ways.
        let builder = builder.with_optimization_level(GraphOptimizationLevel::Disable)?;
        Ok(match &self.kind {
            Kind::Cpu { .. } => builder,
            Kind::Vitisai => self.with(builder, Vitis::default())?,
            Kind::Qnn => self.with(builder, QNN::default())?,
            Kind::Openvino => self.with(builder, OpenVINO::default())?,
            Kind::Plugin { name, .. } => {
                let mine = |device: &ort::device::Device<'_>| device.ep().is_ok_and(|n| n == name);
                let is_npu = |device: &ort::device::Device<'_>| {
                    device.hardware_device().ty() == DeviceType::NPU
                };
                let device = environment.devices().filter(mine).find(is_npu);
                let device = device.or_else(|| environment.devices().find(mine));
                let options = self.options.iter().map(|(k, v)| (format!("{name}.{k}"), v.clone()));
                let options: Vec<(String, String)> = options.collect();
                builder.with_devices(device, Some(&options))?
            }
        })
    }

    fn with<P>(&self, builder: SessionBuilder, provider: P) -> Result<SessionBuilder, ort::Error>
    where
        P: ArbitrarilyConfigurableExecutionProvider + ExecutionProvider,
    {
        let mut builder = builder;
        let options = self.options.iter();
        let provider =
            options.fold(provider, |p, (key, value)| p.with_arbitrary_config(key, value));
        provider.register(&mut builder)?;
        Ok(builder)
    }
}
