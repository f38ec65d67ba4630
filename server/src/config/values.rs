//! Values that only configurations have.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use trefoil_scheduler::Size;
use trefoil_scheduler::policy::Span;

use super::keys::{Device, Devices, GpuApi, Switch};

/// A secret: it is read, and never written.
#[derive(Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(from = "String", into = "String")]
pub(crate) struct Hidden(Option<String>);

impl Hidden {
    /// The secret, if one is set.
    pub(crate) fn get(&self) -> Option<&str> {
        self.0.as_deref()
    }
}

impl From<String> for Hidden {
    fn from(text: String) -> Self {
        Self(Some(text).filter(|text| !text.is_empty()))
    }
}

impl From<Hidden> for String {
    /// What is shown: nothing of the secret but that there is one.
    fn from(hidden: Hidden) -> Self {
        if hidden.0.is_some() { "(set)".to_owned() } else { Self::new() }
    }
}

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "(set)" } else { "(not set)" })
    }
}

/// How long an unused model stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) enum KeepAlive {
    Never,
    After(Span),
}

impl TryFrom<String> for KeepAlive {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text == "-1" { Ok(Self::Never) } else { text.try_into().map(Self::After) }
    }
}

impl From<KeepAlive> for String {
    fn from(keep: KeepAlive) -> Self {
        match keep {
            KeepAlive::Never => "-1".to_owned(),
            KeepAlive::After(span) => span.into(),
        }
    }
}

/// A time between two things that happen again and again: above 0, at most a day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Period(pub(super) Span);

impl Period {
    pub(crate) const fn duration(self) -> std::time::Duration {
        self.0.duration()
    }
}

impl TryFrom<String> for Period {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let span = Span::try_from(text.clone())?;
        if (0.001..=86_400.0).contains(&span.duration().as_secs_f64()) {
            return Ok(Self(span));
        }
        Err(format!("expected 1ms to 24h, got {text:?}"))
    }
}

impl From<Period> for String {
    fn from(period: Period) -> Self {
        period.0.into()
    }
}

/// Tokens of a KV page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "u32", into = "u32")]
pub(crate) struct PageTokens(u32);

impl Default for PageTokens {
    fn default() -> Self {
        Self(16)
    }
}

impl PageTokens {
    pub(crate) fn get(self) -> usize {
        self.0 as usize
    }
}

impl TryFrom<u32> for PageTokens {
    type Error = String;

    fn try_from(tokens: u32) -> Result<Self, String> {
        if tokens.is_power_of_two() && tokens <= 1024 {
            return Ok(Self(tokens));
        }
        Err(format!("expected a power of two from 1 to 1024, got {tokens}"))
    }
}

impl From<PageTokens> for u32 {
    fn from(tokens: PageTokens) -> Self {
        tokens.0
    }
}

/// Memory of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(into = "String")]
pub(crate) enum MemoryOf {
    Auto,
    Bytes(Size),
}

impl From<MemoryOf> for String {
    fn from(memory: MemoryOf) -> Self {
        match memory {
            MemoryOf::Auto => "auto".to_owned(),
            MemoryOf::Bytes(size) => size.to_string(),
        }
    }
}

impl<'de> Deserialize<'de> for MemoryOf {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Read;
        impl Visitor<'_> for Read {
            type Value = MemoryOf;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"auto\", bytes as a number, or a text such as \"12GiB\"")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<MemoryOf, E> {
                if text == "auto" {
                    return Ok(MemoryOf::Auto);
                }
                text.parse().map(MemoryOf::Bytes).map_err(E::custom)
            }

            fn visit_i64<E: Error>(self, bytes: i64) -> Result<MemoryOf, E> {
                let bytes = u64::try_from(bytes).map_err(E::custom)?;
                Ok(MemoryOf::Bytes(Size(trefoil_telemetry::Bytes(bytes))))
            }
        }
        from.deserialize_any(Read)
    }
}

/// A key of `[devices]`: one of its own, or the name of a device.
struct DevicesKey(String);

const DEVICES_KEYS: &[&str] = &["gpu_api", "cpu", "npu", "visible", "cpu0", "gpu0", "npu0"];

/// Is it the name of a device: letters, then digits?
fn is_device(name: &str) -> bool {
    let kind = name.trim_end_matches(|c: char| c.is_ascii_digit());
    kind != name && matches!(kind, "cpu" | "gpu" | "npu" | "ref" | "sim")
}

impl<'de> Deserialize<'de> for DevicesKey {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let name = String::deserialize(from)?;
        let own = Devices::KEYS.iter().any(|key| key.name == name);
        if own || is_device(&name) {
            return Ok(Self(name));
        }
        Err(D::Error::unknown_field(&name, DEVICES_KEYS))
    }
}

impl<'de> Deserialize<'de> for Devices {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Devices;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table of devices")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Devices, A::Error> {
                let mut devices = Devices::default();
                let mut each = BTreeMap::<String, Device>::new();
                while let Some(DevicesKey(name)) = map.next_key()? {
                    match name.as_str() {
                        "gpu_api" => devices.gpu_api = map.next_value::<GpuApi>()?,
                        "cpu" => devices.cpu = map.next_value()?,
                        "npu" => devices.npu = map.next_value::<Switch>()?,
                        "visible" => devices.visible = map.next_value()?,
                        _ => {
                            each.insert(name, map.next_value()?);
                        }
                    }
                }
                devices.each = each;
                Ok(devices)
            }
        }
        from.deserialize_map(Read)
    }
}
