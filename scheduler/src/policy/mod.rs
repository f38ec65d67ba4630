//! Policies: what `trefoil.toml` says about placement, resolved from several files with where each
//! value came from.

mod resolve;

use std::collections::BTreeMap;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use trefoil_telemetry::Nanos;

pub use resolve::{Policy, PolicyError, Resolved};

use crate::planner::{Goal, Weights};
use crate::profile::{Share, Watts};
use crate::size::Size;
use crate::{Pin, TomlError};

/// The policy part of one configuration file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PolicyFile {
    /// Name of the file, for messages and for where values came from.
    pub source: String,
    /// `[policy]`.
    pub policy: Keys,
    /// `[policy.on_battery]`.
    pub on_battery: BatteryKeys,
    /// `[policies.NAME]`.
    pub named: BTreeMap<String, Keys>,
}

/// Are prefill and decode placed apart?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phases {
    /// Each phase has its own placement.
    #[default]
    Split,
    /// A unit runs on one device in both.
    Joint,
}

/// What happens to a pin that its device cannot meet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnmetPins {
    /// The plan is refused.
    #[default]
    Error,
    /// The pin is left out where it cannot be met, and the plan says so.
    Relax,
}

/// When plans change while the engine runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Replan {
    /// When another is predicted to be better.
    #[default]
    Auto,
    /// When asked.
    Manual,
    /// Never.
    Off,
}

/// A limit on memory: bytes, or a share of what there is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "LimitText", into = "String")]
pub enum MemoryLimit {
    /// This many bytes.
    Bytes(Size),
    /// This share, 0 to 1.
    Share(f64),
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected bytes, \"12GiB\" or \"80%\"")]
enum LimitText {
    Number(u64),
    Text(String),
}

impl TryFrom<LimitText> for MemoryLimit {
    type Error = String;

    fn try_from(text: LimitText) -> Result<Self, String> {
        let text = match text {
            LimitText::Number(bytes) => bytes.to_string(),
            LimitText::Text(text) => text,
        };
        let Some(percent) = text.strip_suffix('%') else { return text.parse().map(Self::Bytes) };
        match percent.trim().parse::<f64>() {
            Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(Self::Share(percent / 100.0)),
            _ => Err(format!("expected 0% to 100%, got {text:?}")),
        }
    }
}

impl From<MemoryLimit> for String {
    fn from(limit: MemoryLimit) -> Self {
        match limit {
            MemoryLimit::Bytes(size) => size.to_string(),
            MemoryLimit::Share(share) => format!("{}%", share * 100.0),
        }
    }
}

/// A length of time: `250ms`, `10s`, `5m`, `1h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span(pub Nanos);

impl Span {
    /// This many seconds.
    pub const fn seconds(seconds: u64) -> Self {
        Self(Nanos(seconds * 1_000_000_000))
    }

    /// The same as a duration.
    pub const fn duration(self) -> std::time::Duration {
        std::time::Duration::from_nanos(self.0.0)
    }
}

impl From<Span> for String {
    /// In seconds, or in milliseconds where that needs no fraction.
    fn from(span: Span) -> Self {
        let nanos = span.0.0;
        if nanos.is_multiple_of(1_000_000_000) {
            format!("{}s", nanos / 1_000_000_000)
        } else {
            format!("{}ms", nanos as f64 / 1e6)
        }
    }
}

impl TryFrom<String> for Span {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        // The longest unit name that fits comes first: "ms" before "s".
        let units = [("ms", 1e6), ("s", 1e9), ("m", 60e9), ("h", 3600e9)];
        let found = units.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, unit)));
        match found.map(|(number, unit)| (number.trim().parse::<f64>(), unit)) {
            Some((Ok(number), unit)) if number >= 0.0 && number * unit < 1e18 => {
                Ok(Self(Nanos((number * unit) as u64)))
            }
            _ => Err(format!("expected a time such as 250ms, 10s, 5m or 1h, got {text:?}")),
        }
    }
}

macro_rules! policy_keys {
    ($($(#[$doc:meta])* $key:ident: $type:ty = $default:expr;)*) => {
        /// Keys of a policy as one file gives them: all may be missing.
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct Keys {
            $($(#[$doc])* #[serde(default, skip_serializing_if = "Option::is_none")]
            pub $key: Option<$type>,)*
        }

        /// `[policy.on_battery]`: laid over the rest while the machine runs on battery.
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct BatteryKeys {
            $($(#[$doc])* #[serde(default, skip_serializing_if = "Option::is_none")]
            pub $key: Option<$type>,)*
            /// It holds while the battery's charge is at most this share.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub below_charge: Option<Share>,
        }

        /// `[policy]` as a file writes it.
        #[derive(Deserialize, Default)]
        #[serde(deny_unknown_fields)]
        struct PolicyTable {
            $(#[serde(default)] $key: Option<$type>,)*
            #[serde(default)]
            on_battery: BatteryKeys,
        }

        impl PolicyTable {
            fn split(self) -> (Keys, BatteryKeys) {
                (Keys { $($key: self.$key,)* }, self.on_battery)
            }
        }

        impl BatteryKeys {
            fn keys(&self) -> Keys {
                Keys { $($key: self.$key.clone(),)* }
            }
        }

        impl Default for Policy {
            fn default() -> Self {
                Self { $($key: $default,)* }
            }
        }

        impl Policy {
            /// Takes over the keys that are there, and notes where they came from.
            fn lay(&mut self, keys: &Keys, from: &str, origins: &mut BTreeMap<&'static str, String>) {
                $(if let Some(value) = &keys.$key {
                    self.$key = value.clone();
                    origins.insert(stringify!($key), from.to_owned());
                })*
            }

            /// Names of all keys.
            pub const KEYS: &[&str] = &[$(stringify!($key)),*];
        }
    };
}

policy_keys! {
    /// What counts.
    objective: Goal = Goal::default();
    /// Weights of the balanced objective.
    weights: Weights = Weights::default();
    /// Are prefill and decode placed apart?
    phases: Phases = Phases::default();
    /// Devices that would draw the machine over this are not used; 0 for no limit.
    max_power_watts: Watts = Watts::try_from(0.0).expect("in range");
    /// Above this the engine slows down; 0 for no limit.
    max_temperature_celsius: f64 = 0.0;
    /// Most memory of a device's domain, or of a domain.
    max_device_memory: BTreeMap<String, MemoryLimit> = BTreeMap::from([
        ("gpu0".to_owned(), MemoryLimit::Share(0.8)),
        ("ram".to_owned(), MemoryLimit::Share(0.7)),
    ]);
    /// Kept free in every domain for other programs.
    reserve_memory: Size = Size(trefoil_telemetry::Bytes(1 << 30));
    /// Shorter prompts are not read by an NPU.
    min_npu_prompt_tokens: u64 = 64;
    /// Patterns of devices that may be used.
    allow_devices: Vec<String> = vec!["*".to_owned()];
    /// Patterns of devices that may not be used.
    deny_devices: Vec<String> = Vec::new();
    /// Units on devices by hand; the first match wins.
    pins: Vec<Pin> = Vec::new();
    /// What happens to a pin that cannot be met.
    unmet_pins: UnmetPins = UnmetPins::default();
    /// When plans change.
    replan: Replan = Replan::default();
    /// Shortest time between two changes.
    replan_min_interval: Span = Span::seconds(10);
    /// A plan must be better by this share to be changed to.
    replan_gain: Share = Share::try_from(0.1).expect("in range");
    /// Measured and predicted times may differ by this share.
    drift_threshold: Share = Share::try_from(0.25).expect("in range");
}

/// Top level of a configuration file; other parts are read elsewhere.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "named so that they are known")]
struct Sections {
    #[serde(default)]
    policy: PolicyTable,
    #[serde(default)]
    policies: BTreeMap<String, Keys>,
    server: Option<IgnoredAny>,
    engine: Option<IgnoredAny>,
    models: Option<IgnoredAny>,
    devices: Option<IgnoredAny>,
    npu: Option<IgnoredAny>,
    telemetry: Option<IgnoredAny>,
}

impl PolicyFile {
    /// Reads the policy part of a configuration file. Unknown keys are errors that name the nearest
    /// one.
    pub fn parse(source: &str, text: &str) -> Result<Self, TomlError> {
        let sections: Sections = crate::toml_text::read(source, text)?;
        let (policy, on_battery) = sections.policy.split();
        Ok(Self { source: source.to_owned(), policy, on_battery, named: sections.policies })
    }
}

#[cfg(test)]
mod tests;
