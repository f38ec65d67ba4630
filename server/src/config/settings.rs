//! What the configuration says to commands that run or plan a model, as far as flags do not.

use trefoil_scheduler::Pin;
use trefoil_scheduler::policy::{PolicyError, Resolved};
use wildmatch::WildMatch;

use super::keys::{GpuApi, KvName, Switch};
use super::{Config, Form, Level, Server};
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
}

impl Default for Settings {
    fn default() -> Self {
        Config::default().settings(None).expect("the built-in policy is one")
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
    /// What applies under a policy.
    pub(crate) fn settings(&self, policy: Option<&str>) -> Result<Settings, PolicyError> {
        let engine = &self.sections.engine;
        let policy = self.policy(policy)?;
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
        })
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
