//! The placement problem as plain data, and the one definition of what a placement costs.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A set of devices by index: bit `d` stands for device `d`.
pub type DeviceSet = u32;

/// Most devices of an instance.
pub const MAX_DEVICES: usize = 16;
/// Most modes of an instance.
pub const MAX_MODES: usize = 8;
/// Most memory domains of an instance.
pub const MAX_DOMAINS: usize = 8;
/// Most memory budgets of an instance.
pub const MAX_BUDGETS: usize = 8;

/// A placement problem. All costs are in one unit, that of the objective, and count as often as the
/// objective says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Instance {
    /// Names of the units, in the order in which they run.
    pub units: Vec<String>,
    /// The devices.
    pub devices: Vec<DeviceNode>,
    /// Names of the memory domains.
    pub domains: Vec<String>,
    /// Tensors between units.
    pub tensors: Vec<TensorEdge>,
    /// The same model in several shapes of step: buckets of prefill and of decode.
    pub modes: Vec<Mode>,
    /// Memory that there is: one budget per domain, then one per device with a limit of its own.
    pub budgets: Vec<Budget>,
    /// By unit: where its weights and its KV pages may lie. A placement chooses one for all modes.
    pub homes: Vec<Vec<Home>>,
}

/// A device as the partitioner sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeviceNode {
    /// Name.
    pub name: String,
    /// Domain where the tensors that it makes go, and where it takes copies of others.
    pub domain: usize,
    /// Domains that it reads in place; its own is one of them.
    pub addresses: Vec<usize>,
}

/// A tensor (or several made and read together) that one unit makes and later ones read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TensorEdge {
    /// Unit that makes it.
    pub maker: usize,
    /// Units that read it, ascending, all after the maker.
    pub readers: Vec<usize>,
}

/// Costs in one shape of step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mode {
    /// `prefill 512`, `decode 1`.
    pub name: String,
    /// `[unit][device]`: cost of running it there; absent where it cannot or may not run.
    pub run: Vec<Vec<Option<f64>>>,
    /// `[unit][device]`: what it costs more where the unit's weights are streamed to the device for
    /// every step; absent where they cannot be. Empty if they can be nowhere.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stream: Vec<Vec<Option<f64>>>,
    /// `[device]`: cost of starting a run of units on it.
    pub start: Vec<f64>,
    /// `[tensor][from domain][to domain]`: cost of a move; absent where there is no link.
    pub transfer: Vec<Vec<Vec<Option<f64>>>>,
}

/// Memory that there is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// What of: a domain, or a device's own copies.
    pub name: String,
    /// Bytes.
    pub bytes: u64,
}

/// One way to keep what a unit needs in memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Home {
    /// Bytes of each budget.
    pub memory: Vec<u64>,
    /// Cost that this way has of itself, such as moving KV pages between the phases.
    pub cost: f64,
    /// By mode: devices that can run the unit with this home, bit `d` for device `d`.
    pub devices: Vec<DeviceSet>,
    /// By mode: devices that can run the unit with this home if its weights are streamed to them;
    /// those of `devices` need not. Empty if there are none in any mode.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub streams: Vec<DeviceSet>,
    /// Domains of the KV pages in prefill and in decode, if the unit has some.
    pub kv: Option<[usize; 2]>,
}

/// A placement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Assignment {
    /// By unit: index of its home.
    pub homes: Vec<usize>,
    /// `[mode][unit]`: index of the device.
    pub devices: Vec<Vec<usize>>,
}

/// What a placement costs and takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// In the unit of the objective.
    pub cost: f64,
    /// Bytes of each budget.
    pub memory: Vec<u64>,
}

/// Data that is no problem: sizes that do not fit each other.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("placement problem: {what}: expected {expected}, got {got}")]
pub struct Malformed {
    /// Which part.
    pub what: String,
    /// What would be right.
    pub expected: String,
    /// What it has.
    pub got: String,
}

impl Home {
    /// All devices that can run the unit in a mode, with its weights streamed or not.
    pub fn reaches(&self, mode: usize) -> DeviceSet {
        self.devices[mode] | self.streams.get(mode).copied().unwrap_or(0)
    }

    /// Are the weights streamed if the unit runs on this device? One that has them need not.
    pub fn streams_to(&self, mode: usize, device: usize) -> bool {
        self.devices[mode] & (1 << device) == 0
    }
}

impl Mode {
    /// What running a unit on a device costs beyond [`Mode::run`]; `None` if weights are to be
    /// streamed where they cannot be.
    pub fn streaming(&self, unit: usize, device: usize, streamed: bool) -> Option<f64> {
        if streamed { *self.stream.get(unit)?.get(device)? } else { Some(0.0) }
    }
}

impl Instance {
    /// Cost and memory of a placement: the definition that search, tests and readers share. `None`
    /// if it breaks a rule: a device that cannot run a unit or address its home, no link for a
    /// move, or a budget exceeded.
    ///
    /// In each mode the units run one after another. A tensor goes to the domain of the device that
    /// makes it; a device that cannot address any domain that holds it takes a copy from there into
    /// its own, which then serves all later readers too.
    pub fn score(&self, assignment: &Assignment) -> Option<Score> {
        let mut cost = 0.0;
        let mut memory = vec![0; self.budgets.len()];
        for (unit, &home) in assignment.homes.iter().enumerate() {
            let home = self.homes[unit].get(home)?;
            cost += home.cost;
            for (sum, bytes) in memory.iter_mut().zip(&home.memory) {
                *sum += bytes;
            }
            for (mode, devices) in assignment.devices.iter().enumerate() {
                if home.reaches(mode) & (1 << devices[unit]) == 0 {
                    return None;
                }
            }
        }
        if memory.iter().zip(&self.budgets).any(|(need, budget)| *need > budget.bytes) {
            return None;
        }
        let reads = self.reads();
        for (index, (mode, devices)) in self.modes.iter().zip(&assignment.devices).enumerate() {
            let streamed = self.streamed(assignment, index);
            cost += self.cost_with(&reads, mode, devices, &streamed)?;
        }
        Some(Score { cost, memory })
    }

    /// By unit: are its weights streamed in a mode?
    pub fn streamed(&self, assignment: &Assignment, mode: usize) -> Vec<bool> {
        let units = assignment.homes.iter().zip(&assignment.devices[mode]).enumerate();
        units
            .map(|(unit, (&home, &device))| self.homes[unit][home].streams_to(mode, device))
            .collect()
    }

    /// The problem with only some of its modes.
    #[must_use]
    pub fn with_modes(&self, modes: &[usize]) -> Self {
        let mut part = self.clone();
        part.modes = modes.iter().map(|&mode| self.modes[mode].clone()).collect();
        for home in part.homes.iter_mut().flatten() {
            home.devices = modes.iter().map(|&mode| home.devices[mode]).collect();
            if !home.streams.is_empty() {
                home.streams = modes.iter().map(|&mode| home.streams[mode]).collect();
            }
        }
        part
    }

    /// Can a device that the home serves run the unit in each mode?
    pub fn serves(&self, unit: usize, home: &Home) -> bool {
        self.modes.iter().enumerate().all(|(index, mode)| {
            let set = home.reaches(index);
            let mut devices = mode.run[unit].iter().enumerate();
            devices.any(|(device, cost)| {
                let streamed = home.streams_to(index, device);
                let can = cost.is_some() && mode.streaming(unit, device, streamed).is_some();
                set & (1 << device) != 0 && can
            })
        })
    }

    /// Which unit reads which tensor, by unit.
    fn reads(&self) -> Vec<(usize, usize)> {
        let tensors = self.tensors.iter().enumerate();
        let mut reads: Vec<(usize, usize)> = tensors
            .flat_map(|(index, tensor)| tensor.readers.iter().map(move |&unit| (unit, index)))
            .collect();
        reads.sort_unstable();
        reads
    }

    /// Cost of one mode, with the weights of some units streamed; `None` if a unit cannot run where
    /// it is, or a link is missing.
    pub fn mode_cost(&self, mode: &Mode, devices: &[usize], streamed: &[bool]) -> Option<f64> {
        self.cost_with(&self.reads(), mode, devices, streamed)
    }

    fn cost_with(
        &self,
        reads: &[(usize, usize)],
        mode: &Mode,
        devices: &[usize],
        streamed: &[bool],
    ) -> Option<f64> {
        let mut cost = 0.0;
        // By tensor: a bit per domain that a copy went to.
        let mut copies = vec![0u32; self.tensors.len()];
        let mut reads = reads.iter().copied().peekable();
        for (unit, &at) in devices.iter().enumerate() {
            let device = &self.devices[at];
            if unit == 0 || devices[unit - 1] != at {
                cost += mode.start[at];
            }
            while let Some((_, tensor)) = reads.next_if(|(reader, _)| *reader == unit) {
                let made = self.devices[devices[self.tensors[tensor].maker]].domain;
                let held = copies[tensor] | 1 << made;
                if !device.addresses.iter().any(|domain| held & (1 << domain) != 0) {
                    cost += mode.transfer[tensor][made][device.domain]?;
                    copies[tensor] |= 1 << device.domain;
                }
            }
            cost += mode.run[unit][at]? + mode.streaming(unit, at, streamed[unit])?;
        }
        Some(cost)
    }

    /// Checks that all sizes fit.
    pub fn check(&self) -> Result<(), Malformed> {
        let within = |what: &str, got: usize, least: usize, most: usize| {
            if (least..=most).contains(&got) {
                return Ok(());
            }
            let expected =
                if least == most { least.to_string() } else { format!("{least} to {most}") };
            Err(Malformed { what: what.to_owned(), expected, got: got.to_string() })
        };
        let equal = |what: &str, got: usize, want: usize| within(what, got, want, want);
        let (units, devices) = (self.units.len(), self.devices.len());
        within("units", units, 1, 1 << 20)?;
        within("devices", devices, 1, MAX_DEVICES)?;
        within("domains", self.domains.len(), 1, MAX_DOMAINS)?;
        within("modes", self.modes.len(), 1, MAX_MODES)?;
        within("budgets", self.budgets.len(), 0, MAX_BUDGETS)?;
        equal("units with homes", self.homes.len(), units)?;
        let domain = |what: &str, got: usize| within(what, got, 0, self.domains.len() - 1);
        for device in &self.devices {
            domain("domain of a device", device.domain)?;
            for &other in &device.addresses {
                domain("domain that a device addresses", other)?;
            }
            let own = device.addresses.contains(&device.domain);
            equal("a device's own domain among those it addresses", usize::from(own), 1)?;
        }
        for tensor in &self.tensors {
            within("maker of a tensor", tensor.maker, 0, units - 1)?;
            for &reader in &tensor.readers {
                within("reader of a tensor", reader, tensor.maker + 1, units - 1)?;
            }
        }
        let number = |what: &str, value: f64| {
            if value.is_finite() && value >= 0.0 {
                return Ok(());
            }
            let expected = "a finite number, not below 0".to_owned();
            Err(Malformed { what: what.to_owned(), expected, got: value.to_string() })
        };
        for mode in &self.modes {
            equal("units of a mode", mode.run.len(), units)?;
            if !mode.stream.is_empty() {
                equal("streamed units of a mode", mode.stream.len(), units)?;
            }
            for row in &mode.stream {
                equal("devices of a streamed unit", row.len(), devices)?;
                row.iter().flatten().try_for_each(|&cost| number("cost of streaming", cost))?;
            }
            equal("starts of a mode", mode.start.len(), devices)?;
            equal("tensors of a mode", mode.transfer.len(), self.tensors.len())?;
            for row in &mode.run {
                equal("devices of a unit", row.len(), devices)?;
                row.iter().flatten().try_for_each(|&cost| number("cost of a unit", cost))?;
            }
            mode.start.iter().try_for_each(|&cost| number("cost of a start", cost))?;
            for table in &mode.transfer {
                equal("domains of a transfer", table.len(), self.domains.len())?;
                for row in table {
                    equal("domains of a transfer", row.len(), self.domains.len())?;
                    row.iter().flatten().try_for_each(|&cost| number("cost of a move", cost))?;
                }
            }
        }
        for home in self.homes.iter().flatten() {
            equal("budgets of a home", home.memory.len(), self.budgets.len())?;
            equal("modes of a home", home.devices.len(), self.modes.len())?;
            if !home.streams.is_empty() {
                equal("streaming modes of a home", home.streams.len(), self.modes.len())?;
            }
            number("cost of a home", home.cost)?;
        }
        Ok(())
    }
}
