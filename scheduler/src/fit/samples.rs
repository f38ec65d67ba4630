//! What was measured: plain data that is kept as it is, so that a better fit can be made of it later.

use serde::{Deserialize, Serialize};
use trefoil_graph::ops::OpCost;
use trefoil_graph::{LayerGraph, NodeIndex, StepShape, UnitId};

use crate::cost::{OpClass, main_weight, op_signature, rows_per_weight, unit_signature};
use crate::profile::ProcessorKind;

/// One op in one step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// What it is to a device ([`op_signature`]).
    pub signature: String,
    /// What it is bound by.
    pub class: OpClass,
    /// Format of its largest matrix, if it has one.
    pub format: Option<String>,
    /// Its rows.
    pub rows: f64,
    /// Rows that each weight meets.
    pub weight_rows: f64,
    /// What it computes and moves.
    pub work: OpCost,
}

impl Part {
    /// An op of a graph in a step.
    pub fn of(graph: &LayerGraph, node: NodeIndex, step: &StepShape) -> Self {
        let of = graph.node(node);
        let rows = step.rows(of.shape.rows);
        Self {
            signature: op_signature(graph, node),
            class: OpClass::of(&of.op),
            format: main_weight(&of.op).map(|weight| weight.block.name().to_lowercase()),
            rows: rows as f64,
            weight_rows: rows_per_weight(&of.op, rows),
            work: graph.node_cost(node, step),
        }
    }
}

/// Time of a segment of `count` equal ops, each with weights of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpSample {
    /// The op.
    pub part: Part,
    /// Tokens in the KV cache before the step.
    pub past: f64,
    /// Ops in the segment.
    pub count: u32,
    /// Seconds of the device's work on it.
    pub seconds: f64,
    /// Runs that this is the least disturbed of.
    pub runs: u32,
}

/// Time of a segment of `count` equal units.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnitSample {
    /// What the unit is to a device ([`unit_signature`]).
    pub signature: String,
    /// Rows of the step.
    pub tokens: f64,
    /// Tokens in the KV cache before the step.
    pub past: f64,
    /// Its ops.
    pub parts: Vec<Part>,
    /// Units in the segment.
    pub count: u32,
    /// Seconds of the device's work on it.
    pub seconds: f64,
    /// Runs that this is the least disturbed of.
    pub runs: u32,
}

impl UnitSample {
    /// A unit of a graph in a step, without a time yet.
    pub fn of(graph: &LayerGraph, unit: UnitId, step: &StepShape) -> Self {
        let nodes = graph.unit(unit).nodes.iter();
        Self {
            signature: unit_signature(graph, unit),
            tokens: step.tokens as f64,
            past: step.past as f64,
            parts: nodes.map(|&node| Part::of(graph, node, step)).collect(),
            count: 1,
            seconds: 0.0,
            runs: 0,
        }
    }
}

/// Time of a segment of whole layers: what units do together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerSample {
    /// Its different units, with how many there are of each; their own times mean nothing.
    pub units: Vec<UnitSample>,
    /// Rows of the step.
    pub tokens: f64,
    /// Tokens in the KV cache before the step.
    pub past: f64,
    /// Seconds of the device's work on all of it.
    pub seconds: f64,
}

/// Time of a segment of tiny ops, one after the other: what launches cost.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChainSample {
    /// Ops in the segment.
    pub ops: u32,
    /// Seconds of the device's work on it.
    pub seconds: f64,
}

/// What was measured of one device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceSamples {
    /// Its name: `cpu0`.
    pub name: String,
    /// Sort of processor.
    pub kind: ProcessorKind,
    /// What its maker calls it.
    pub product: String,
    /// Domain where its data goes.
    pub domain: String,
    /// When it was measured, for the reader.
    pub date: String,
    /// Ops.
    pub ops: Vec<OpSample>,
    /// Units.
    pub units: Vec<UnitSample>,
    /// Layers.
    pub layers: Vec<LayerSample>,
    /// Launches.
    pub chains: Vec<ChainSample>,
    /// Seconds from a submission to the end of the wait for it, beyond the device's work: the way there
    /// and back.
    pub outside: f64,
    /// Bytes per second at which it reads memory, if that was measured on its own.
    pub read: Option<f64>,
    /// Watts while it worked, if it tells.
    pub watts: Option<f64>,
    /// Kinds of ops that it does not take.
    pub refuses: Vec<String>,
}

impl DeviceSamples {
    /// Number of times measured.
    pub fn count(&self) -> usize {
        self.ops.len() + self.units.len() + self.layers.len() + self.chains.len()
    }

    /// Takes the samples of a newer measurement in place of the same ones.
    pub fn merge(&mut self, newer: Self) {
        let op = |sample: &OpSample| {
            (sample.part.signature.clone(), sample.part.rows.to_bits(), sample.past.to_bits())
        };
        let unit = |sample: &UnitSample| {
            (sample.signature.clone(), sample.tokens.to_bits(), sample.past.to_bits())
        };
        let ops: std::collections::BTreeSet<_> = newer.ops.iter().map(op).collect();
        let units: std::collections::BTreeSet<_> = newer.units.iter().map(unit).collect();
        let mut merged = newer;
        let mut before = std::mem::take(&mut self.ops);
        before.retain(|sample| !ops.contains(&op(sample)));
        merged.ops.splice(0..0, before);
        let mut before = std::mem::take(&mut self.units);
        before.retain(|sample| !units.contains(&unit(sample)));
        merged.units.splice(0..0, before);
        let layer = |sample: &LayerSample| {
            let signatures = sample.units.iter().map(|unit| unit.signature.clone());
            let signatures: Vec<String> = signatures.collect();
            (signatures, sample.tokens.to_bits(), sample.past.to_bits())
        };
        let layers: std::collections::BTreeSet<_> = merged.layers.iter().map(layer).collect();
        let mut before = std::mem::take(&mut self.layers);
        before.retain(|sample| !layers.contains(&layer(sample)));
        merged.layers.splice(0..0, before);
        if merged.chains.is_empty() {
            merged.chains = std::mem::take(&mut self.chains);
        }
        merged.read = merged.read.or(self.read);
        merged.watts = merged.watts.or(self.watts);
        *self = merged;
    }
}

/// Time of a copy between two domains.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkSample {
    /// Domain of the source.
    pub from: String,
    /// Domain of the target.
    pub to: String,
    /// Bytes.
    pub bytes: f64,
    /// Seconds from submission to the end of the wait.
    pub seconds: f64,
}

/// What two devices keep of their speed when they work at the same time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PairSample {
    /// The devices.
    pub devices: [String; 2],
    /// Time alone by time together, of each.
    pub keep: [f64; 2],
    /// When, for the reader.
    pub date: String,
}

/// A memory domain, as the system describes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DomainFacts {
    /// Name.
    pub name: String,
    /// Bytes.
    pub bytes: u64,
    /// Share of it that models may use.
    pub usable: f64,
}

/// All that was measured of a machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measurements {
    /// Memory domains, the host's first.
    pub domains: Vec<DomainFacts>,
    /// Devices.
    pub devices: Vec<DeviceSamples>,
    /// Copies.
    pub links: Vec<LinkSample>,
    /// Pairs.
    pub pairs: Vec<PairSample>,
}
