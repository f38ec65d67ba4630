//! From files to one policy, and from a policy to a request.

use std::collections::BTreeMap;

use serde::Serialize;
use trefoil_telemetry::Bytes;
use wildmatch::WildMatch;

use super::{Keys, MemoryLimit, Phases, PolicyFile, Replan, Span, UnmetPins};
use crate::planner::{Goal, PlanRequest, Weights};
use crate::profile::{Profile, Share, Watts};
use crate::size::Size;
use crate::{Pin, nearest};

/// All values of a policy.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs)] // the same as in `Keys`
pub struct Policy {
    pub objective: Goal,
    pub weights: Weights,
    pub phases: Phases,
    pub max_power_watts: Watts,
    pub max_temperature_celsius: f64,
    pub max_device_memory: BTreeMap<String, MemoryLimit>,
    pub reserve_memory: Size,
    pub min_npu_prompt_tokens: u64,
    pub allow_devices: Vec<String>,
    pub deny_devices: Vec<String>,
    pub pins: Vec<Pin>,
    pub unmet_pins: UnmetPins,
    pub replan: Replan,
    pub replan_min_interval: Span,
    pub replan_gain: Share,
    pub drift_threshold: Share,
}

/// A policy, and where its values came from.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Resolved {
    /// Name: that of `[policies.NAME]`, or of the objective.
    pub name: String,
    /// The values.
    pub policy: Policy,
    /// By key: the file and section; keys with their default value are missing.
    pub origins: BTreeMap<&'static str, String>,
}

/// A policy that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// No such named policy.
    #[error("policy {got:?} is not known; known are: {known}{}", hint(.near))]
    Unknown {
        /// What was asked for.
        got: String,
        /// All that the files name.
        known: String,
        /// The most similar one.
        near: Option<String>,
    },
    /// A value that fits nothing on this machine.
    #[error("{key} ({origin}): expected {expected}, got {got}{}", hint(.near))]
    Value {
        /// The key.
        key: &'static str,
        /// Where it came from.
        origin: String,
        /// What would be right.
        expected: String,
        /// What it says.
        got: String,
        /// The most similar valid value.
        near: Option<String>,
    },
}

fn hint(near: &Option<String>) -> String {
    near.as_ref().map(|name| format!("; did you mean {name:?}?")).unwrap_or_default()
}

impl Resolved {
    /// Lays files over one another, later ones over earlier ones: every `[policy]`, then every
    /// `[policies.NAME]`, then on battery every `[policy.on_battery]` whose charge it is. `charge` is
    /// the battery's share while the machine runs on it.
    pub fn new(
        files: &[PolicyFile],
        name: Option<&str>,
        charge: Option<f64>,
    ) -> Result<Self, PolicyError> {
        let mut policy = Policy::default();
        let mut origins = BTreeMap::new();
        let mut lay = |keys: &Keys, file: &PolicyFile, section: &str| {
            policy.lay(keys, &format!("{} [{section}]", file.source), &mut origins);
        };
        for file in files {
            lay(&file.policy, file, "policy");
        }
        if let Some(name) = name {
            let mut known: Vec<&str> =
                files.iter().flat_map(|file| file.named.keys().map(String::as_str)).collect();
            known.sort_unstable();
            known.dedup();
            if !known.contains(&name) {
                return Err(PolicyError::Unknown {
                    got: name.to_owned(),
                    known: if known.is_empty() { "none".to_owned() } else { known.join(", ") },
                    near: nearest(name, known.iter().copied()).map(str::to_owned),
                });
            }
            for file in files {
                if let Some(keys) = file.named.get(name) {
                    lay(keys, file, &format!("policies.{name}"));
                }
            }
        }
        for file in files {
            let below = file.on_battery.below_charge.map_or(1.0, Share::get);
            if charge.is_some_and(|charge| charge <= below) {
                lay(&file.on_battery.keys(), file, "policy.on_battery");
            }
        }
        let resolved = Self {
            name: name.unwrap_or_else(|| policy.objective.name()).to_owned(),
            policy,
            origins,
        };
        resolved.check_numbers()?;
        Ok(resolved)
    }

    /// This policy with other keys laid over it, which come from `source`.
    ///
    /// # Errors
    /// Numbers that make no sense.
    pub fn with(&self, keys: &Keys, source: &str) -> Result<Self, PolicyError> {
        let mut resolved = self.clone();
        resolved.policy.lay(keys, source, &mut resolved.origins);
        resolved.check_numbers()?;
        Ok(resolved)
    }

    /// This policy without the names of devices that may be used or not: for machines whose devices were
    /// chosen by them before.
    #[must_use]
    pub fn for_chosen_devices(&self) -> Self {
        let mut resolved = self.clone();
        let usual = Policy::default();
        resolved.policy.allow_devices = usual.allow_devices;
        resolved.policy.deny_devices = usual.deny_devices;
        resolved
    }

    /// Where the value of a key is from: file and section, or `default`.
    pub fn origin(&self, key: &'static str) -> String {
        self.origins.get(key).cloned().unwrap_or_else(|| "default".to_owned())
    }

    fn check_numbers(&self) -> Result<(), PolicyError> {
        let wrong = |key: &'static str, expected: &str, got: String| PolicyError::Value {
            key,
            origin: self.origin(key),
            expected: expected.to_owned(),
            got,
            near: None,
        };
        let Weights { ttft, decode, energy, memory } = self.policy.weights;
        let all = [ttft, decode, energy, memory];
        let usable = all.iter().all(|weight| weight.is_finite() && *weight >= 0.0);
        if !usable || ttft + decode + energy <= 0.0 {
            let expected = "weights from 0 on, one of ttft, decode and energy above it";
            return Err(wrong("weights", expected, format!("{all:?}")));
        }
        let celsius = self.policy.max_temperature_celsius;
        if celsius != 0.0 && !(30.0..=120.0).contains(&celsius) {
            let key = "max_temperature_celsius";
            return Err(wrong(key, "0, or 30 to 120 degrees", celsius.to_string()));
        }
        Ok(())
    }

    /// Makes a request follow the policy. Names that no device or domain of the machine has are
    /// errors, unless they are those of the defaults.
    pub fn apply<'a>(&'a self, request: &mut PlanRequest<'a>) -> Result<(), PolicyError> {
        let policy = &self.policy;
        request.policy.clone_from(&self.name);
        request.goal = policy.objective;
        request.weights = policy.weights;
        request.joint_phases = policy.phases == Phases::Joint;
        request.min_npu_prompt_tokens = policy.min_npu_prompt_tokens;
        request.pins = &policy.pins;
        request.relax_pins = policy.unmet_pins == UnmetPins::Relax;
        request.reserve = policy.reserve_memory.0;
        request.devices = Some(self.devices(request.profile)?);
        request.memory_limits = self.memory_limits(request.profile)?;
        Ok(())
    }

    /// Names of the devices that may be used.
    fn devices(&self, profile: &Profile) -> Result<Vec<String>, PolicyError> {
        let names: Vec<&str> = profile.devices.iter().map(|d| d.name.as_str()).collect();
        let policy = &self.policy;
        for (key, patterns) in
            [("allow_devices", &policy.allow_devices), ("deny_devices", &policy.deny_devices)]
        {
            for pattern in patterns {
                let any = names.iter().any(|name| WildMatch::new(pattern).matches(name));
                if !any && !pattern.contains(['*', '?']) {
                    return Err(self.unknown(key, pattern, &names));
                }
            }
        }
        let matches = |patterns: &[String], name: &str| {
            patterns.iter().any(|pattern| WildMatch::new(pattern).matches(name))
        };
        let idle: f64 = profile.devices.iter().map(|device| device.power.idle.get()).sum();
        let most = policy.max_power_watts.get();
        let allowed = profile.devices.iter().filter(|device| {
            let power = &device.power;
            let watts = profile.base_power.get() + idle + power.busy.get() - power.idle.get();
            matches(&policy.allow_devices, &device.name)
                && !matches(&policy.deny_devices, &device.name)
                && (most == 0.0 || watts <= most)
        });
        let allowed: Vec<String> = allowed.map(|device| device.name.clone()).collect();
        if allowed.is_empty() {
            return Err(PolicyError::Value {
                key: "allow_devices",
                origin: self.origin("allow_devices"),
                expected: format!("limits that leave one of {}", names.join(", ")),
                got: format!(
                    "allowed {:?}, denied {:?}, at most {most} W (0: any)",
                    policy.allow_devices, policy.deny_devices
                ),
                near: None,
            });
        }
        Ok(allowed)
    }

    /// Limits by domain: that of a device holds for the domain where its data goes.
    fn memory_limits(&self, profile: &Profile) -> Result<BTreeMap<String, Bytes>, PolicyError> {
        let mut limits: BTreeMap<String, Bytes> = BTreeMap::new();
        for (name, limit) in &self.policy.max_device_memory {
            let of_device = profile.device(name).map(|device| device.domain.as_str());
            let names = || profile.domains.iter().map(|domain| domain.name.as_str());
            let Some(domain) = of_device.or_else(|| names().find(|domain| domain == name)) else {
                if !self.origins.contains_key("max_device_memory") {
                    continue;
                }
                let devices = profile.devices.iter().map(|device| device.name.as_str());
                let known: Vec<&str> = devices.chain(names()).collect();
                return Err(self.unknown("max_device_memory", name, &known));
            };
            let size = profile.domains[profile.domain_index(domain)].size.0.0;
            let bytes = match limit {
                MemoryLimit::Bytes(size) => size.0,
                MemoryLimit::Share(share) => Bytes((size as f64 * share) as u64),
            };
            let least = limits.entry(domain.to_owned()).or_insert(bytes);
            *least = (*least).min(bytes);
        }
        Ok(limits)
    }

    fn unknown(&self, key: &'static str, got: &str, known: &[&str]) -> PolicyError {
        PolicyError::Value {
            key,
            origin: self.origin(key),
            expected: format!("one of {}", known.join(", ")),
            got: format!("{got:?}"),
            near: nearest(got, known.iter().copied()).map(str::to_owned),
        }
    }
}
