//! Profiles: the numbers of a machine that the cost model needs, each group with its source.
//!
//! A profile is TOML. Unknown keys, missing numbers and numbers that no machine has are errors that
//! name the line, the value and the nearest valid key.

mod check;
mod numbers;
mod published;
mod shipped;
mod what_if;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use trefoil_devices_api::DomainId;
use trefoil_graph::BlockType;

pub use check::ProfileError;
pub use numbers::{Bandwidth, BytesPerWeight, Factor, OpRate, Seconds, Share, Watts};
pub use published::{MachineFactor, Measured, Published, Scales};
pub use shipped::{shipped, shipped_names};
pub use what_if::{Change, ChangeError};

use crate::size::Size;

/// The numbers of one machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Short name: `strix-point`.
    pub name: String,
    /// What machine it stands for.
    pub title: String,
    /// Power that the rest of the machine draws whatever runs, in watts.
    pub base_power: Watts,
    /// Where `base_power` is from.
    pub base_power_source: String,
    /// Memory domains; the first is the host's.
    #[serde(rename = "domain")]
    pub domains: Vec<DomainProfile>,
    /// Devices, in the order in which they are listed.
    #[serde(rename = "device")]
    pub devices: Vec<DeviceProfile>,
    /// Links between domains, one per ordered pair.
    #[serde(rename = "link", default)]
    pub links: Vec<LinkProfile>,
    /// What devices keep of their speed when they run together.
    #[serde(rename = "co_run", default)]
    pub co_run: Vec<CoRun>,
    /// Machines that published speeds were measured on.
    #[serde(rename = "machine", default)]
    pub machines: Vec<MachineFactor>,
    /// Published speeds that the profile is held against.
    #[serde(rename = "published", default)]
    pub published: Vec<Published>,
}

/// Memory that a set of devices can address.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DomainProfile {
    /// `ram`, `vram0`.
    pub name: String,
    /// Bytes.
    pub size: Size,
    /// Share of it that models may use.
    pub usable: Share,
    /// What its DRAM can move in all, whichever devices read it.
    pub bandwidth: Bandwidth,
    /// Where the numbers are from.
    pub source: String,
}

/// One processor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceProfile {
    /// `cpu0`, `gpu0`, `npu0`.
    pub name: String,
    /// Sort of processor.
    pub kind: ProcessorKind,
    /// What its maker calls it.
    pub product: String,
    /// Domain where its tensors, weights and KV pages go.
    pub domain: String,
    /// Other domains that it can address in place.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Arithmetic.
    pub compute: Compute,
    /// Memory port.
    pub memory: MemoryPort,
    /// Cost of one op's launch, in seconds.
    pub launch: Seconds,
    /// Cost of starting a segment on it: submission and wait, in seconds.
    pub handoff: Seconds,
    /// Where launch and hand-off costs are from.
    pub launch_source: String,
    /// Power.
    pub power: Power,
    /// Row counts that it compiles for, ascending; absent where any number will do.
    #[serde(default)]
    pub static_rows: Option<Vec<u64>>,
    /// Its own copy of the weights, where it cannot use the file's pages.
    #[serde(default)]
    pub weight_copy: Option<WeightCopy>,
    /// Kinds of ops that it does not take, as `trefoil inspect` names them.
    #[serde(default)]
    pub refuses: Vec<String>,
}

/// Sort of processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProcessorKind {
    /// Processor cores.
    Cpu,
    /// Graphics processor.
    Gpu,
    /// Neural processor.
    Npu,
}

/// What a device computes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Compute {
    /// What the hardware could do at best, for the reader.
    pub peak: OpRate,
    /// Attained on products with weights at many rows, by the weights' format; `other` for the rest.
    pub weights: BTreeMap<String, OpRate>,
    /// Share of that by row count: `[rows, share]`, ascending; between two points the share is
    /// interpolated over the logarithm of rows.
    pub rows: Vec<(f64, Share)>,
    /// The same for formats whose share is another one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rows_of: BTreeMap<String, Vec<(f64, Share)>>,
    /// Share of that which is left where rows are gathered for experts and scattered again; all of it
    /// if absent.
    #[serde(default)]
    pub experts: Option<Share>,
    /// Attained on attention's products at many rows.
    pub attention: OpRate,
    /// Attained on element-wise work.
    pub elementwise: OpRate,
    /// Where the numbers are from.
    pub source: String,
}

/// How fast a device reads memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryPort {
    /// Attained when it streams weights.
    pub bandwidth: Bandwidth,
    /// Attained when it reads KV pages, counted in f16 elements; as `bandwidth` if absent.
    #[serde(default)]
    pub kv_bandwidth: Option<Bandwidth>,
    /// Attained on activations, which a cache may hold; as `bandwidth` if absent.
    #[serde(default)]
    pub activation_bandwidth: Option<Bandwidth>,
    /// Where the numbers are from.
    pub source: String,
}

/// Power of a device, above the machine's base.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Power {
    /// Waiting.
    pub idle: Watts,
    /// Working, its memory's share included.
    pub busy: Watts,
    /// Where the numbers are from.
    pub source: String,
}

/// A device's own copy of weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightCopy {
    /// Size of a weight in the copy; also what the device reads per weight.
    pub bytes_per_weight: BytesPerWeight,
    /// Share of the domain that all of the device's copies may take.
    pub most: Share,
    /// Where the numbers are from.
    pub source: String,
}

/// How bytes get from one domain to another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkProfile {
    /// Source domain.
    pub from: String,
    /// Target domain.
    pub to: String,
    /// Bytes per second.
    pub bandwidth: Bandwidth,
    /// Time before the first byte.
    pub latency: Seconds,
    /// Where the numbers are from.
    pub source: String,
}

/// What two devices keep of their speed when both are busy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CoRun {
    /// The pair.
    pub devices: (String, String),
    /// Share of its lone speed that each keeps, in that order.
    pub keep: (Share, Share),
    /// Where the numbers are from.
    pub source: String,
}

impl Profile {
    /// Reads and checks a profile; `what` names the text in errors.
    pub fn parse(what: &str, text: &str) -> Result<Self, ProfileError> {
        let profile: Self = crate::toml_text::read(what, text)?;
        profile.check()?;
        Ok(profile)
    }

    /// The device of this name.
    pub fn device(&self, name: &str) -> Option<&DeviceProfile> {
        self.devices.iter().find(|device| device.name == name)
    }

    /// Every device's name, and the domain where its data goes.
    pub fn device_domains(&self) -> impl Iterator<Item = (String, DomainId)> + '_ {
        self.devices
            .iter()
            .map(|device| (device.name.clone(), Self::domain_id(self.domain_index(&device.domain))))
    }

    /// Index of a domain; names were checked when the profile was read.
    pub(crate) fn domain_index(&self, name: &str) -> usize {
        self.domains.iter().position(|domain| domain.name == name).expect("checked when read")
    }

    /// Identity of a domain by its index.
    pub(crate) fn domain_id(index: usize) -> DomainId {
        DomainId(index as u16)
    }

    /// What `a` keeps of its speed while `b` is busy; all of it where nothing is known.
    pub fn keeps(&self, a: &str, b: &str) -> f64 {
        let of = |pair: &CoRun| match (pair.devices.0.as_str(), pair.devices.1.as_str()) {
            (x, y) if (x, y) == (a, b) => Some(pair.keep.0.get()),
            (x, y) if (x, y) == (b, a) => Some(pair.keep.1.get()),
            _ => None,
        };
        self.co_run.iter().find_map(of).unwrap_or(1.0)
    }
}

impl DeviceProfile {
    /// Multiplies the rates of a device.
    pub(crate) fn speed_up(&mut self, factor: f64, scales: Scales) {
        if scales != Scales::Memory {
            let rates = self.compute.weights.values_mut();
            let others = [&mut self.compute.attention, &mut self.compute.elementwise];
            rates.chain(others).for_each(|rate| rate.scale(factor));
        }
        if scales != Scales::Compute {
            let memory = &mut self.memory;
            memory.bandwidth.scale(factor);
            let others = [&mut memory.kv_bandwidth, &mut memory.activation_bandwidth];
            others.into_iter().flatten().for_each(|rate| rate.scale(factor));
        }
    }
}

impl Compute {
    /// Attained rate on products with weights of a format at many rows.
    pub fn weight_rate(&self, block: BlockType) -> f64 {
        let named = self.weights.iter().find(|(name, _)| name.eq_ignore_ascii_case(block.name()));
        named.map_or_else(|| self.weights["other"], |(_, rate)| *rate).get()
    }

    /// Attained rate on products with weights of a format at `rows` rows.
    pub fn weight_rate_at(&self, block: BlockType, rows: f64) -> f64 {
        let own = self.rows_of.iter().find(|(name, _)| name.eq_ignore_ascii_case(block.name()));
        self.weight_rate(block) * share_at(own.map_or(&self.rows, |(_, rows)| rows), rows)
    }

    /// Share of the rate at many rows that is left at `rows` rows, of formats without their own.
    pub fn row_share(&self, rows: f64) -> f64 {
        share_at(&self.rows, rows)
    }
}

fn share_at(points: &[(f64, Share)], rows: f64) -> f64 {
    let after = points.partition_point(|(at, _)| *at <= rows);
    let (Some(above), Some(before)) = (points.get(after), after.checked_sub(1).map(|i| &points[i]))
    else {
        let edge = if after == 0 { points.first() } else { points.last() };
        return edge.map_or(1.0, |(_, share)| share.get());
    };
    let part = (rows / before.0).ln() / (above.0 / before.0).ln();
    before.1.get() + part * (above.1.get() - before.1.get())
}

#[cfg(test)]
mod tests;
