//! What the configuration says to commands that run or plan a model, as far as flags do not.

use std::path::{Path, PathBuf};

use trefoil_engine::backends::Npus;
use trefoil_engine::backends::npu::{NpuOptions, NumericForm, Provider as NpuProvider};
use trefoil_engine::cache;
use trefoil_engine::calibrate::When;
use trefoil_engine::model::DEFAULT_CONTEXT;
use trefoil_engine::npu_fallback::NpuFallback;
use trefoil_engine::text::sampling::SamplingSettings;
use trefoil_scheduler::Pin;
use trefoil_scheduler::policy::{PolicyError, Resolved};
use wildmatch::WildMatch;

use super::keys::{Calibrate, Fallback, GpuApi, KvName, NpuForm, Provider, Switch};
use super::{Config, Form, Level, Model, Sampling, Server};
use crate::cli::{KvForm, LogForm, PlacementArgs};

/// Values under the flags of [`PlacementArgs`].
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) threads: usize,
    pub(crate) prefill_chunk: usize,
    pub(crate) kv_type: KvForm,
    pub(crate) page_tokens: usize,
    pub(crate) default_ctx: usize,
    /// The policy that applies.
    pub(crate) policy: Resolved,
    pub(crate) devices: DeviceRules,
    /// What `[models.NAME]` says of the model.
    pub(crate) model: Model,
    /// Does the model's own sampling count?
    pub(crate) model_sampling: bool,
    /// When devices are measured.
    pub(crate) calibrate: When,
    /// Files of costs, by device.
    pub(crate) cost_tables: Vec<(String, PathBuf)>,
    /// How an NPU is set up.
    pub(crate) npu: NpuOptions,
    /// Whether one is looked for that nobody named.
    pub(crate) npus: Npus,
    /// Where units go that it does not take.
    pub(crate) npu_fallback: NpuFallback,
}

impl Default for Settings {
    fn default() -> Self {
        Config::default().settings(None, None).expect("the built-in policy is one")
    }
}

/// Which devices may be used.
#[derive(Clone, Debug, Default)]
pub(crate) struct DeviceRules {
    /// Patterns; one of each list must match.
    allowed: Vec<(String, Vec<String>)>,
    /// Patterns that must not match.
    denied: Vec<(String, Vec<String>)>,
}

impl DeviceRules {
    /// The rule that keeps a device from being used, if one does.
    pub(crate) fn refusal(&self, device: &str) -> Option<String> {
        let any = |patterns: &[String]| patterns.iter().any(|p| WildMatch::new(p).matches(device));
        let not_allowed = self.allowed.iter().find(|(_, patterns)| !any(patterns));
        let denied = || self.denied.iter().find(|(_, patterns)| any(patterns));
        let (key, patterns) = not_allowed.or_else(denied)?;
        Some(format!("{key} is {patterns:?}"))
    }

    /// The one device that the rules name in full, if there is one: a wish, not only a limit.
    pub(crate) fn only(&self) -> Option<&str> {
        self.allowed.iter().find_map(|(_, patterns)| match &patterns[..] {
            [one] if !one.contains(['*', '?']) => Some(one.as_str()),
            _ => None,
        })
    }
}

impl Config {
    /// What `[models.NAME]` says of a model that was named on the command line, and its NAME.
    pub(crate) fn model(&self, given: &str) -> Option<(&str, &Model)> {
        let models = &self.sections.models;
        let own = models.get_key_value(given);
        // A file or folder by the name under which it is served.
        let served =
            || models.get_key_value(&id_of(given)).filter(|(_, model)| model.path.is_empty());
        own.or_else(served).map(|(name, model)| (name.as_str(), model))
    }

    /// What applies to a model under a policy: that of the flags, else the model's own.
    pub(crate) fn settings(
        &self,
        policy: Option<&str>,
        model: Option<&str>,
    ) -> Result<Settings, PolicyError> {
        let engine = &self.sections.engine;
        let model = model.and_then(|given| self.model(given)).map(|(_, model)| model.clone());
        let model = model.unwrap_or_default();
        let own = Some(model.policy.as_str()).filter(|name| !name.is_empty());
        let policy = self.policy(policy.or(own))?;
        Ok(Settings {
            threads: engine.threads,
            prefill_chunk: engine.prefill_chunk.get(),
            kv_type: match engine.kv_type {
                KvName::F32 => KvForm::F32,
                // Refused when the configuration was read.
                KvName::F16 | KvName::Q80 => KvForm::F16,
            },
            page_tokens: engine.kv_page_tokens.get(),
            default_ctx: engine.default_ctx.get(),
            devices: self.rules(&policy),
            policy,
            model,
            model_sampling: engine.use_model_sampling,
            calibrate: match self.sections.telemetry.calibrate {
                Calibrate::FirstRun => When::FirstRun,
                Calibrate::Never => When::Never,
                Calibrate::Always => When::Always,
            },
            cost_tables: self.cost_tables(),
            npu: self.npu(),
            npus: self.npus(),
            npu_fallback: match self.sections.npu.fallback {
                Fallback::Gpu => NpuFallback::Gpu,
                Fallback::Cpu => NpuFallback::Cpu,
                Fallback::Error => NpuFallback::Error,
            },
        })
    }

    /// Loading ONNX Runtime is for those who said that they have an NPU.
    fn npus(&self) -> Npus {
        let names_one = !matches!(self.sections.npu.provider, Provider::Auto | Provider::Cpu);
        match self.sections.devices.npu {
            Switch::On => Npus::All,
            Switch::Auto if names_one => Npus::All,
            Switch::Auto | Switch::Off => Npus::Named,
        }
    }

    /// How an NPU is set up.
    pub(crate) fn npu(&self) -> NpuOptions {
        let npu = &self.sections.npu;
        let path = |text: &str| Some(PathBuf::from(text)).filter(|_| !text.is_empty());
        NpuOptions {
            provider: match npu.provider {
                Provider::Auto => NpuProvider::Auto,
                Provider::Vitisai => NpuProvider::Vitisai,
                Provider::Ryzenai => NpuProvider::Ryzenai(path(&npu.provider_library)),
                Provider::Openvino => NpuProvider::Openvino,
                Provider::Qnn => NpuProvider::Qnn,
                Provider::Plugin => NpuProvider::Plugin {
                    name: npu.provider_name.clone(),
                    library: PathBuf::from(&npu.provider_library),
                },
                Provider::Cpu => NpuProvider::Cpu,
            },
            provider_options: npu.provider_options.clone(),
            runtime: path(&npu.runtime_path),
            local: true,
            cache: path(&npu.cache_dir).or_else(cache::user_folder),
            cache_limit: npu.cache_limit.0,
            shapes: npu.shapes.clone(),
            form: match npu.form {
                NpuForm::F32 => NumericForm::F32,
                NpuForm::F16 => NumericForm::F16,
                NpuForm::Codes => NumericForm::Codes,
                NpuForm::Int4 => NumericForm::Int4,
            },
            compile_limit: npu.compile_timeout.0,
            threads: self.sections.engine.threads,
        }
    }

    fn cost_tables(&self) -> Vec<(String, PathBuf)> {
        let given = self.sections.devices.each.iter().filter(|(_, own)| !own.cost_table.is_empty());
        given.map(|(name, own)| (name.clone(), PathBuf::from(&own.cost_table))).collect()
    }

    fn rules(&self, policy: &Resolved) -> DeviceRules {
        let devices = &self.sections.devices;
        let mut rules = DeviceRules::default();
        let rule = |key: &str, patterns: &[String]| (key.to_owned(), patterns.to_vec());
        let named = |key: &'static str| format!("{key} ({})", policy.origin(key));
        rules.allowed.push(rule(&named("allow_devices"), &policy.policy.allow_devices));
        if !devices.visible.is_empty() {
            rules.allowed.push(rule("devices.visible", &devices.visible));
        }
        rules.denied.push(rule(&named("deny_devices"), &policy.policy.deny_devices));
        let off = [
            (!devices.cpu, "devices.cpu = false, so that the rule", "cpu*"),
            (devices.gpu_api == GpuApi::Off, "devices.gpu_api = \"off\", so that the rule", "gpu*"),
            (devices.npu == Switch::Off, "devices.npu = \"off\", so that the rule", "npu*"),
        ];
        for (_, key, pattern) in off.into_iter().filter(|(off, _, _)| *off) {
            rules.denied.push(rule(key, &[pattern.to_owned()]));
        }
        rules
    }
}

impl PlacementArgs {
    /// Threads of the CPU device; 0 for one per physical core.
    pub(crate) fn threads(&self) -> usize {
        self.threads.unwrap_or(self.settings.threads)
    }

    pub(crate) fn prefill_chunk(&self) -> usize {
        self.prefill_chunk.unwrap_or(self.settings.prefill_chunk)
    }

    pub(crate) fn kv_type(&self) -> KvForm {
        self.kv_type.unwrap_or(self.settings.kv_type)
    }

    /// Tokens of context, if anything says how many.
    pub(crate) fn context(&self) -> Option<usize> {
        let own = Some(self.settings.model.ctx).filter(|&ctx| ctx > 0);
        let flags = self.ctx_size.or(own).map(|n| n as usize);
        let usual = self.settings.default_ctx;
        flags.or_else(|| (usual != DEFAULT_CONTEXT).then_some(usual))
    }

    /// Pins of the flags, else of the policy; none beside a plan, which says everything.
    pub(crate) fn all_pins(&self) -> &[Pin] {
        if self.plan.is_some() {
            &[]
        } else if self.pins.is_empty() {
            &self.settings.policy.policy.pins
        } else {
            &self.pins
        }
    }

    /// The device that was named: by a flag, else as the only one that may be used.
    pub(crate) fn named_device(&self) -> Option<&str> {
        let only = || self.settings.devices.only().filter(|_| self.plan.is_none());
        self.device.as_deref().or_else(only)
    }
}

/// Name under which a model is served: its file or folder name, without ending.
pub(crate) fn id_of(model: &str) -> String {
    let path = Path::new(model);
    let name = match path.extension() {
        Some(extension) if extension == "gguf" || extension == "safetensors" => path.file_stem(),
        _ => path.file_name(),
    };
    name.map_or(model.to_owned(), |name| name.to_string_lossy().into_owned())
}

impl Settings {
    /// Where the model lies: what was given, unless that is the NAME of a path.
    pub(crate) fn path<'a>(&'a self, given: &'a str) -> &'a str {
        if self.model.path.is_empty() { given } else { &self.model.path }
    }

    /// The file of a chat template: that of the flags, else the configured one.
    pub(crate) fn template<'a>(&'a self, given: Option<&'a Path>) -> Option<&'a Path> {
        let own = Some(self.model.chat_template.as_str()).filter(|path| !path.is_empty());
        given.or_else(|| own.map(Path::new))
    }

    /// Sampling where a request says nothing: as configured, else as the model says.
    pub(crate) fn sampling(&self, own: SamplingSettings) -> SamplingSettings {
        let own = if self.model_sampling { own } else { SamplingSettings::default() };
        self.model.sampling.settings().over(own)
    }
}

impl Sampling {
    pub(crate) fn settings(&self) -> SamplingSettings {
        let whole = |n: i64| i32::try_from(n).unwrap_or(i32::MAX);
        let mut settings = SamplingSettings::default();
        settings.temperature = self.temperature.map(|t| t as f32);
        settings.top_k = self.top_k.map(whole);
        settings.top_p = self.top_p;
        settings.min_p = self.min_p;
        settings.typical_p = self.typical_p;
        settings.repeat_penalty = self.repeat_penalty.map(|p| p as f32);
        settings.repeat_last_n = self.repeat_last_n.map(whole);
        settings
    }
}

impl Server {
    /// Name of the log's level.
    pub(crate) fn level(&self) -> &'static str {
        match self.log_level {
            Level::Error => "error",
            Level::Warn => "warn",
            Level::Info => "info",
            Level::Debug => "debug",
            Level::Trace => "trace",
        }
    }

    pub(crate) fn log_form(&self) -> LogForm {
        match self.log_format {
            Form::Text => LogForm::Text,
            Form::Json => LogForm::Json,
        }
    }
}
