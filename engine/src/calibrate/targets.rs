//! What is measured of a model: each of its different ops and units, on a few numbers of rows and
//! tokens before them.

use std::collections::BTreeMap;

use trefoil_devices_api::{Bucket, Phase};
use trefoil_graph::{LayerGraph, NodeIndex, Rows, Segment, StepShape, UnitId, ops::Op};
use trefoil_scheduler::cost::{OpClass, op_signature, unit_signature};
use trefoil_scheduler::fit::{OpSample, Part, UnitSample};

use super::measure::Model;

/// How much is measured.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Effort {
    /// A second or two: units, products and attention, at one and at some rows.
    Probe,
    /// Some seconds.
    Quick,
    /// Most of a minute.
    Full,
}

/// Row counts, pasts and time of an effort.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Grid {
    pub(super) prefill_rows: Vec<usize>,
    pub(super) pasts: Vec<usize>,
    pub(super) chains: Vec<usize>,
    /// Seconds for the devices' ops and units.
    pub(super) seconds: f64,
    /// How often all of it is gone through: times that lie apart are not disturbed by the same.
    pub(super) passes: usize,
    /// Are ops of all classes measured, or all but element-wise ones?
    pub(super) all_classes: bool,
}

impl Grid {
    pub(super) fn of(effort: Effort) -> Self {
        let (rows, pasts, chains): (&[usize], &[usize], &[usize]) = match effort {
            Effort::Probe => (&[64], &[0, 256], &[1, 16]),
            Effort::Quick => (&[8, 64, 256], &[0, 512], &[1, 8, 32]),
            Effort::Full => (&[2, 8, 32, 128, 512], &[0, 256, 2048], &[1, 4, 16, 64]),
        };
        let (seconds, passes) = match effort {
            Effort::Probe => (1.2, 1),
            Effort::Quick => (6.0, 2),
            Effort::Full => (42.0, 5),
        };
        Self {
            prefill_rows: rows.to_vec(),
            pasts: pasts.to_vec(),
            chains: chains.to_vec(),
            seconds,
            passes,
            all_classes: effort != Effort::Probe,
        }
    }

    /// Row counts and pasts between those of a full calibration, to check it by.
    pub(super) fn held_out() -> Self {
        Self {
            prefill_rows: vec![5, 48, 200, 400],
            pasts: vec![100, 1000],
            chains: Vec::new(),
            seconds: 20.0,
            passes: 5,
            all_classes: true,
        }
    }

    /// Within a context, and with the largest prompt chunk.
    pub(super) fn within(mut self, context: usize, chunk: usize) -> Self {
        let most = chunk.min(context.saturating_sub(1)).max(1);
        for rows in &mut self.prefill_rows {
            *rows = (*rows).min(most);
        }
        self.prefill_rows.dedup();
        self.prefill_rows.retain(|&rows| rows > 1);
        self.pasts.retain(|&past| past + 2 <= context);
        if self.pasts.is_empty() {
            self.pasts.push(0);
        }
        self
    }
}

/// Ops or units of a kind, of several layers where the model has them, so that weights come from
/// memory as they do in a step.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) signature: String,
    pub(super) what: What,
    pub(super) phase: Phase,
}

#[derive(Clone, Debug)]
pub(super) enum What {
    Ops(Vec<NodeIndex>),
    Units(Vec<UnitId>),
}

/// Weights that do not fit into a processor's caches.
const WEIGHT_BYTES: usize = 192 << 20;
/// Most ops or units of a segment in decode.
const MOST_DECODE: usize = 16;
/// And in prefill, where rows and not weights take the time.
const MOST_PREFILL: usize = 2;
/// But so many ops that take little: beside a hand-off, one is hardly seen.
const MOST_SMALL: usize = 8;

impl Target {
    /// All that is measured of a graph, in the order of its importance.
    pub(super) fn all(graph: &LayerGraph, grid: &Grid) -> Vec<Self> {
        let mut units: BTreeMap<String, Vec<UnitId>> = BTreeMap::new();
        for unit in (0..graph.units().len()).map(UnitId) {
            units.entry(unit_signature(graph, unit)).or_default().push(unit);
        }
        let mut ops: BTreeMap<String, Vec<NodeIndex>> = BTreeMap::new();
        for node in graph.nodes() {
            let op = &graph.node(node).op;
            let class = OpClass::of(op);
            // What stores keys and values is measured with its unit: alone it has no result.
            let wanted = grid.all_classes || class != OpClass::Elementwise;
            if wanted && !matches!(op, Op::KvWrite(_)) {
                ops.entry(op_signature(graph, node)).or_default().push(node);
            }
        }
        let mut targets = Vec::new();
        for phase in [Phase::Decode, Phase::Prefill] {
            let most = if phase == Phase::Decode { MOST_DECODE } else { MOST_PREFILL };
            for (signature, units) in &units {
                let bytes = |unit: &UnitId| weight_bytes(graph, &graph.unit(*unit).nodes);
                let units = some(units, most, bytes);
                targets.push(Self {
                    signature: signature.clone(),
                    what: What::Units(units),
                    phase,
                });
            }
            for (signature, nodes) in &ops {
                let small = OpClass::of(&graph.node(nodes[0]).op) == OpClass::Elementwise;
                let most = if small { most.max(MOST_SMALL) } else { most };
                let nodes = some(nodes, most, |node| weight_bytes(graph, &[*node]));
                targets.push(Self { signature: signature.clone(), what: What::Ops(nodes), phase });
            }
        }
        targets
    }

    /// The segment to run.
    pub(super) fn segment(&self, graph: &LayerGraph) -> Segment {
        match &self.what {
            What::Ops(nodes) => graph.cut(nodes.clone()),
            What::Units(units) => graph.segment(units),
        }
    }

    /// All ops of the segment.
    pub(super) fn nodes(&self, graph: &LayerGraph) -> Vec<NodeIndex> {
        self.segment(graph).nodes
    }

    /// Ops or units in the segment.
    pub(super) fn count(&self) -> u32 {
        let count = match &self.what {
            What::Ops(nodes) => nodes.len(),
            What::Units(units) => units.len(),
        };
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    fn reads_kv(&self, graph: &LayerGraph) -> bool {
        self.nodes(graph).iter().any(|&node| graph.kv_layer(node).is_some())
    }

    /// Rows of an op that are counted in outputs: the head's.
    fn is_of_outputs(&self, graph: &LayerGraph) -> bool {
        match &self.what {
            What::Ops(nodes) => graph.node(nodes[0]).shape.rows != Rows::Tokens,
            What::Units(_) => false,
        }
    }

    /// Steps to measure.
    pub(super) fn steps(&self, model: Model<'_>, grid: &Grid) -> Vec<StepShape> {
        let (graph, context) = (model.graph, model.context);
        let kv_element_bytes = if model.half { 2.0 } else { 4.0 };
        let pasts: &[usize] = if self.reads_kv(graph) { &grid.pasts } else { &[0] };
        let outputs = self.is_of_outputs(graph);
        let rows: Vec<usize> = match self.phase {
            Phase::Decode => vec![1],
            // More rows of logits are seldom wanted, and long to wait for.
            Phase::Prefill if outputs => grid.prefill_rows.iter().copied().take(1).collect(),
            Phase::Prefill => grid.prefill_rows.clone(),
        };
        let mut steps = Vec::new();
        for &rows in &rows {
            for &past in pasts.iter().filter(|&&past| past + rows <= context) {
                let step = StepShape::prefill(rows as u64, past as u64);
                let mut step = StepShape { kv_element_bytes, ..step };
                if outputs {
                    step.rows_out = rows as u64;
                }
                steps.push(step);
            }
        }
        steps
    }

    /// The bucket that such steps run in.
    pub(super) fn bucket(&self, steps: &[StepShape]) -> Bucket {
        let most = |of: fn(&StepShape) -> u64| steps.iter().map(of).max().unwrap_or(1) as usize;
        let (max_tokens, max_outputs) = (most(|step| step.tokens), most(|step| step.rows_out));
        let min_tokens = if self.phase == Phase::Decode { 1 } else { 2.min(max_tokens) };
        Bucket { phase: self.phase, min_tokens, max_tokens, max_outputs }
    }

    /// What a time of a step says.
    pub(super) fn sample(&self, graph: &LayerGraph, step: &StepShape) -> Sample {
        let count = self.count();
        match &self.what {
            What::Ops(nodes) => Sample::Op(OpSample {
                part: Part::of(graph, nodes[0], step),
                past: step.past as f64,
                count,
                seconds: 0.0,
                runs: 0,
            }),
            What::Units(units) => {
                Sample::Unit(UnitSample { count, ..UnitSample::of(graph, units[0], step) })
            }
        }
    }
}

/// One sample, of whichever sort.
#[derive(Clone, Debug)]
pub(super) enum Sample {
    Op(OpSample),
    Unit(UnitSample),
}

fn weight_bytes(graph: &LayerGraph, nodes: &[NodeIndex]) -> usize {
    let weights = nodes.iter().flat_map(|&node| graph.node(node).op.weights());
    weights.map(|weight| weight.len_bytes()).sum()
}

/// The first of `all`, until their weights are more than caches hold.
fn some<T: Copy>(all: &[T], most: usize, bytes: impl Fn(&T) -> usize) -> Vec<T> {
    let mut sum = 0;
    let mut chosen = Vec::new();
    for one in all.iter().take(most) {
        if sum > WEIGHT_BYTES {
            break;
        }
        sum += bytes(one);
        chosen.push(*one);
    }
    chosen
}
