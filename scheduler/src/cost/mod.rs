//! The cost model: seconds, joules and bytes of ops, units and transfers on a profile's devices.
//!
//! An op takes its launch, then the longer of its arithmetic and its memory traffic (a roofline):
//! arithmetic at the rate that the device attains for the weights' format at this number of rows,
//! traffic at the speed of the memory port. What measurements say beyond that is a factor per
//! device and class of op ([`Corrections`]), a regression on the residual ([`Residual`]), and for ops
//! and units that were measured themselves, how far they are from that ([`Local`]).

mod correction;
mod local;
mod ridge;

use std::cell::LazyCell;

use trefoil_graph::ops::{Op, OpCost};
use trefoil_graph::{BlockType, LayerGraph, NodeIndex, StepShape, UnitId, Weight};
use trefoil_telemetry::Bytes;

pub use correction::{Correction, Corrections};
pub use local::{Local, LocalPoint, in_layer, op_signature, unit_signature};
pub use ridge::{Residual, RidgeError};

use crate::profile::{DeviceProfile, LinkProfile, Profile, Scales};

/// Ops that are bound by the same thing.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Serialize,
    serde::Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum OpClass {
    /// Products with weights.
    Linear,
    /// Mixtures of experts.
    Experts,
    /// Attention and its cache.
    Attention,
    /// Look-ups, norms and everything else.
    Elementwise,
}

impl OpClass {
    /// Name as it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Experts => "experts",
            Self::Attention => "attention",
            Self::Elementwise => "elementwise",
        }
    }

    /// Class of an op.
    pub fn of(op: &Op) -> Self {
        match op {
            Op::Linear(_) | Op::Route(_) => Self::Linear,
            Op::Experts(_) => Self::Experts,
            Op::Attention(_) | Op::KvWrite(_) => Self::Attention,
            _ => Self::Elementwise,
        }
    }
}

/// Time and energy.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Cost {
    /// Seconds.
    pub seconds: f64,
    /// Joules of the whole machine in that time.
    pub joules: f64,
}

impl std::ops::Add for Cost {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self { seconds: self.seconds + other.seconds, joules: self.joules + other.joules }
    }
}

impl std::ops::Mul<f64> for Cost {
    type Output = Self;
    fn mul(self, factor: f64) -> Self {
        Self { seconds: self.seconds * factor, joules: self.joules * factor }
    }
}

impl std::iter::Sum for Cost {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::default(), |sum, cost| sum + cost)
    }
}

/// Why an op cannot run on a device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{device} does not take {op} ({kind})")]
pub struct Refused {
    /// The device.
    pub device: String,
    /// Name of the op.
    pub op: String,
    /// Its kind.
    pub kind: &'static str,
}

/// Predicts the costs of one model on one machine.
#[derive(Clone, Copy, Debug)]
pub struct CostModel<'a> {
    /// The machine.
    pub profile: &'a Profile,
    /// The model.
    pub graph: &'a LayerGraph,
    /// What measurements say.
    pub corrections: &'a Corrections,
}

impl CostModel<'_> {
    /// A step as a device runs it: devices with static shapes pad rows up to the next row count,
    /// and run a step that is longer than the largest one in pieces. Returns the step of a piece and
    /// the number of pieces.
    pub fn padded(device: &DeviceProfile, step: &StepShape) -> (StepShape, f64) {
        let Some(rows) = &device.static_rows else { return (*step, 1.0) };
        let largest = rows.last().copied().unwrap_or(1);
        let pieces = step.tokens.div_ceil(largest).max(1);
        let each = step.tokens.div_ceil(pieces);
        let tokens = rows.iter().copied().find(|&row| row >= each).unwrap_or(largest);
        // Pieces see what came before them: half of the step on average.
        let past = step.past + (step.tokens - each) / 2;
        (StepShape { tokens, past, ..*step }, pieces as f64)
    }

    /// Cost of one op in a step.
    pub fn op(
        &self,
        device: &DeviceProfile,
        node: NodeIndex,
        step: &StepShape,
    ) -> Result<Cost, Refused> {
        let (step, pieces) = Self::padded(device, step);
        let work = self.graph.node_cost(node, &step);
        let seconds = self.op_seconds(device, node, &step, &work)? * pieces;
        Ok(self.cost(device, seconds))
    }

    fn op_seconds(
        &self,
        device: &DeviceProfile,
        node: NodeIndex,
        step: &StepShape,
        work: &OpCost,
    ) -> Result<f64, Refused> {
        let index = node;
        let node = self.graph.node(index);
        if device.refuses.iter().any(|kind| kind == node.op.kind()) {
            let (op, kind) = (node.name.clone(), node.op.kind());
            return Err(Refused { device: device.name.clone(), op, kind });
        }
        let class = OpClass::of(&node.op);
        let rows = rows_per_weight(&node.op, step.rows(node.shape.rows));
        let roof = Roof::of(device, &node.op, work, rows);
        let residual = self.corrections.residual(&device.name, class);
        let learned = residual.map_or(1.0, |residual| residual.factor(rows, work));
        let local = self.corrections.local(
            &device.name,
            || op_signature(self.graph, index),
            step.rows(node.shape.rows) as f64,
            step.past as f64,
        );
        let factor = self.corrections.factor(&device.name, class);
        Ok((device.launch.get() + roof.seconds() * learned * factor) * local)
    }

    /// Cost of a unit in a step.
    pub fn unit(
        &self,
        device: &DeviceProfile,
        unit: UnitId,
        step: &StepShape,
    ) -> Result<Cost, Refused> {
        let nodes = self.graph.unit(unit).nodes.iter();
        let sum: Cost = nodes.map(|&node| self.op(device, node, step)).sum::<Result<_, _>>()?;
        let (padded, _) = Self::padded(device, step);
        let (rows, past) = (padded.tokens as f64, padded.past as f64);
        // Ops in one program may share launches and find their inputs in a cache, and units too.
        let signature = LazyCell::new(|| unit_signature(self.graph, unit));
        let own = self.corrections.local(&device.name, || signature.clone(), rows, past);
        let beside = || in_layer(&signature);
        Ok(sum * own * self.corrections.local(&device.name, beside, rows, past))
    }

    /// Cost of the whole model on one device in a step.
    pub fn step(&self, device: &DeviceProfile, step: &StepShape) -> Result<Cost, Refused> {
        let units = (0..self.graph.units().len()).map(UnitId);
        let run: Cost = units.map(|unit| self.unit(device, unit, step)).sum::<Result<_, _>>()?;
        Ok(run + self.handoff(device))
    }

    /// Cost of reading a prompt on one device, `chunk` tokens a step.
    pub fn prompt(&self, device: &DeviceProfile, tokens: u64, chunk: u64) -> Result<Cost, Refused> {
        let starts = (0..tokens).step_by(chunk.max(1) as usize);
        let steps = starts.map(|past| StepShape::prefill(chunk.min(tokens - past), past));
        steps.map(|step| self.step(device, &step)).sum()
    }

    /// Cost of starting a segment on a device.
    pub fn handoff(&self, device: &DeviceProfile) -> Cost {
        self.waiting(device.handoff.get())
    }

    /// Cost of a move between domains.
    pub fn transfer(&self, link: &LinkProfile, bytes: f64) -> Cost {
        self.waiting(link.latency.get() + bytes / link.bandwidth.get())
    }

    /// Bytes that a unit's weights take where a device reads them: those of the file, or of its own
    /// copy.
    pub fn weight_bytes(&self, device: &DeviceProfile, unit: UnitId) -> Bytes {
        let nodes = self.graph.unit(unit).nodes.iter();
        let weights = nodes.flat_map(|&node| self.graph.node(node).op.weights());
        let bytes: f64 = match &device.weight_copy {
            None => weights.map(|weight| weight.len_bytes() as f64).sum(),
            Some(copy) => weights.map(|w| w.elements() as f64 * copy.bytes_per_weight.get()).sum(),
        };
        Bytes(bytes.ceil() as u64)
    }

    /// Bytes of weights and KV pages that a unit reads and writes in a step: what must come from DRAM.
    /// Activations may be in a cache and are not counted.
    pub(crate) fn dram_bytes(&self, device: &DeviceProfile, unit: UnitId, step: &StepShape) -> f64 {
        let (step, pieces) = Self::padded(device, step);
        let of = |&node: &NodeIndex| {
            let work = self.graph.node_cost(node, &step);
            let op = &self.graph.node(node).op;
            work.weight_bytes * copied(device, op) + work.kv_read_bytes + work.kv_write_bytes
        };
        self.graph.unit(unit).nodes.iter().map(of).sum::<f64>() * pieces
    }

    /// Time in which one device works and the others wait.
    fn cost(&self, device: &DeviceProfile, seconds: f64) -> Cost {
        let working = device.power.busy.get() - device.power.idle.get();
        let joules = seconds * (self.waiting_watts() + working.max(0.0));
        Cost { seconds, joules }
    }

    /// Time in which all devices wait.
    fn waiting(&self, seconds: f64) -> Cost {
        Cost { seconds, joules: seconds * self.waiting_watts() }
    }

    fn waiting_watts(&self) -> f64 {
        let idle = self.profile.devices.iter().map(|device| device.power.idle.get());
        self.profile.base_power.get() + idle.sum::<f64>()
    }
}

/// The largest matrix of an op, which tells the format: biases and routers are small beside it.
pub fn main_weight(op: &Op) -> Option<&Weight> {
    op.weights().into_iter().max_by_key(|weight| weight.elements())
}

/// Bytes that a device reads per byte of an op's weights in the file.
fn copied(device: &DeviceProfile, op: &Op) -> f64 {
    let Some(copy) = &device.weight_copy else { return 1.0 };
    main_weight(op).map_or(1.0, |w| {
        copy.bytes_per_weight.get() * w.elements() as f64 / w.len_bytes().max(1) as f64
    })
}

/// Rows that each weight meets: an expert meets only the rows routed to it.
pub fn rows_per_weight(op: &Op, rows: u64) -> f64 {
    let rows = rows as f64;
    match op {
        Op::Experts(experts) => {
            let count = experts.gate.len() as f64;
            let share = experts.top_k as f64 / count;
            let met = count * (1.0 - (1.0 - share).powf(rows));
            (rows * experts.top_k as f64 / met.max(1.0)).max(1.0)
        }
        _ => rows.max(1.0),
    }
}

/// The two bounds on an op's time, in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Roof {
    pub(crate) arithmetic: f64,
    pub(crate) traffic: f64,
}

impl Roof {
    fn of(device: &DeviceProfile, op: &Op, work: &OpCost, rows: f64) -> Self {
        let block = main_weight(op).map(|weight| weight.block);
        Self::of_work(device, (OpClass::of(op), block, copied(device, op)), work, rows)
    }

    /// Of an op's class, the format of its weights, and the bytes read per byte of them.
    pub(crate) fn of_work(
        device: &DeviceProfile,
        (class, block, copied): (OpClass, Option<BlockType>, f64),
        work: &OpCost,
        rows: f64,
    ) -> Self {
        let (compute, memory) = (&device.compute, &device.memory);
        let gathered = match class {
            OpClass::Experts => compute.experts.map_or(1.0, |share| share.get()),
            _ => 1.0,
        };
        let rate = block.map_or(1.0, |block| compute.weight_rate_at(block, rows) * gathered);
        let other = match class {
            OpClass::Attention => compute.attention.get(),
            _ => compute.elementwise.get(),
        };
        let arithmetic = work.weight_flops / rate + work.other_flops / other;
        let stream = memory.bandwidth.get();
        let activations = memory.activation_bandwidth.map_or(stream, |rate| rate.get());
        let kv = memory.kv_bandwidth.map_or(stream, |rate| rate.get());
        let traffic = work.weight_bytes * copied / stream
            + (work.read_bytes + work.write_bytes) / activations
            + (work.kv_read_bytes + work.kv_write_bytes) / kv;
        Self { arithmetic, traffic }
    }

    pub(crate) fn seconds(self) -> f64 {
        self.arithmetic.max(self.traffic)
    }
}

impl Profile {
    /// The profile of a machine whose device `name` is faster by `factor`.
    #[must_use]
    pub fn scaled(&self, name: &str, factor: f64, scales: Scales) -> Self {
        let mut profile = self.clone();
        for device in profile.devices.iter_mut().filter(|device| device.name == name) {
            device.speed_up(factor, scales);
        }
        profile
    }
}

#[cfg(test)]
mod tests;
