//! What is measured of a model: each of its different ops and units, on a few numbers of rows and
//! tokens before them.

use std::collections::BTreeMap;

use trefoil_devices_api::{Bucket, Phase};
use trefoil_graph::{LayerGraph, NodeIndex, Rows, Segment, StepShape, UnitId, ops::Op};
use trefoil_scheduler::cost::{OpClass, op_signature, unit_signature};
use trefoil_scheduler::fit::{LayerSample, OpSample, Part, UnitSample};

use super::measure::{Model, Timed};

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
    /// Rows that are measured too, where they take little: kernels change between those above.
    pub(super) fine_rows: Vec<usize>,
    pub(super) pasts: Vec<usize>,
    pub(super) chains: Vec<usize>,
    /// Seconds for the devices' ops and units.
    pub(super) seconds: f64,
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
        let seconds = match effort {
            Effort::Probe => 1.2,
            Effort::Quick => 6.0,
            Effort::Full => 42.0,
        };
        let fine_rows: &[usize] = if effort == Effort::Full { &FINE_ROWS } else { &[] };
        Self {
            prefill_rows: rows.to_vec(),
            fine_rows: fine_rows.to_vec(),
            pasts: pasts.to_vec(),
            chains: chains.to_vec(),
            seconds,
            all_classes: effort != Effort::Probe,
        }
    }

    /// Row counts and pasts between those of a full calibration, to check it by.
    pub(super) fn held_out() -> Self {
        Self {
            prefill_rows: vec![6, 48, 200, 400],
            fine_rows: Vec::new(),
            pasts: vec![100, 1000],
            chains: Vec::new(),
            seconds: 20.0,
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
        let coarse = &self.prefill_rows;
        self.fine_rows.retain(|rows| *rows <= most && !coarse.contains(rows));
        self.pasts.retain(|&past| past + 2 <= context);
        if self.pasts.is_empty() {
            self.pasts.push(0);
        }
        self
    }
}

/// Rows between those of the coarse grid: where kernels for few rows begin and end, and on both sides of
/// what tiles of 32, 64 and 128 rows hold.
const FINE_ROWS: [usize; 21] =
    [3, 4, 5, 9, 12, 16, 24, 33, 40, 56, 64, 65, 96, 112, 129, 192, 193, 256, 257, 384, 385];

/// Ops or units of a kind, of several layers where the model has them, so that weights come from
/// memory as they do in a step.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) signature: String,
    pub(super) what: What,
    /// The same of other layers: runs take turns, so that weights in host memory are in no cache.
    pub(super) others: Vec<What>,
    pub(super) rows: RowRange,
}

/// How many rows a target is measured with: what takes little is measured many at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RowRange {
    /// One, in decode.
    One,
    /// Few enough that weights and not rows take the time.
    Few,
    /// More.
    Many,
}

/// Most rows that are few.
const FEW: usize = 32;

impl RowRange {
    /// What is measured, in words.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::One => "one row",
            Self::Few => "few rows",
            Self::Many => "many rows",
        }
    }

    fn holds(self, rows: usize) -> bool {
        match self {
            Self::One => rows == 1,
            Self::Few => (2..=FEW).contains(&rows),
            Self::Many => rows > FEW,
        }
    }

    /// Most ops or units of a segment.
    fn most(self) -> usize {
        match self {
            Self::One => 16,
            Self::Few => 8,
            Self::Many => 2,
        }
    }
}

#[derive(Clone, Debug)]
pub(super) enum What {
    Ops(Vec<NodeIndex>),
    Units(Vec<UnitId>),
    /// All units of layers next to each other.
    Layers(Vec<UnitId>),
}

impl What {
    fn segment(&self, graph: &LayerGraph) -> Segment {
        match self {
            Self::Ops(nodes) => graph.cut(nodes.clone()),
            Self::Units(units) | Self::Layers(units) => graph.segment(units),
        }
    }
}

/// Weights of a segment that do not fit into a card's caches.
const WEIGHT_BYTES: usize = 192 << 20;
/// Weights of all segments of a target: more than a processor's caches hold.
const ALL_WEIGHT_BYTES: usize = 1 << 30;
/// So many ops that take little: beside a hand-off, one is hardly seen.
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
        for rows in [RowRange::One, RowRange::Few, RowRange::Many] {
            let most = rows.most();
            let layers = layers(graph, most);
            if let Some(what) = layers {
                let signature = "layers".to_owned();
                targets.push(Self { signature, what, others: Vec::new(), rows });
            }
            let mut target = |signature: &str, mut groups: Vec<What>| {
                let what = groups.remove(0);
                let signature = signature.to_owned();
                targets.push(Self { signature, what, others: groups, rows });
            };
            for (signature, units) in &units {
                let bytes = |unit: &UnitId| weight_bytes(graph, &graph.unit(*unit).nodes);
                let groups = groups(units, most, bytes);
                target(signature, groups.into_iter().map(What::Units).collect());
            }
            for (signature, nodes) in &ops {
                let small = OpClass::of(&graph.node(nodes[0]).op) == OpClass::Elementwise;
                let most = if small { most.max(MOST_SMALL) } else { most };
                let groups = groups(nodes, most, |node| weight_bytes(graph, &[*node]));
                target(signature, groups.into_iter().map(What::Ops).collect());
            }
        }
        targets
    }

    /// Phase of its steps.
    pub(super) fn phase(&self) -> Phase {
        if self.rows == RowRange::One { Phase::Decode } else { Phase::Prefill }
    }

    /// The segment to run.
    pub(super) fn segment(&self, graph: &LayerGraph) -> Segment {
        self.what.segment(graph)
    }

    /// The segments that take turns where weights are in host memory.
    pub(super) fn segments(&self, graph: &LayerGraph) -> Vec<Segment> {
        let all = std::iter::once(&self.what).chain(&self.others);
        all.map(|what| what.segment(graph)).collect()
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
            What::Layers(_) => 1,
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
            What::Units(_) | What::Layers(_) => false,
        }
    }

    /// Steps to measure: those of the coarse grid, or those between.
    pub(super) fn steps(&self, model: Model<'_>, grid: &Grid, fine: bool) -> Vec<StepShape> {
        let (graph, context) = (model.graph, model.context);
        let kv_element_bytes = if model.half { 2.0 } else { 4.0 };
        let pasts: &[usize] = if self.reads_kv(graph) { &grid.pasts } else { &[0] };
        let outputs = self.is_of_outputs(graph);
        let one = [1];
        let rows = match (self.rows, fine) {
            (RowRange::One, false) => one.as_slice(),
            (RowRange::One, true) => &[],
            // More rows of logits are seldom wanted, and long to wait for.
            (_, false) if outputs => &grid.prefill_rows[..grid.prefill_rows.len().min(1)],
            (_, true) if outputs => &[],
            (_, false) => grid.prefill_rows.as_slice(),
            (_, true) => grid.fine_rows.as_slice(),
        };
        let rows: Vec<usize> = rows.iter().copied().filter(|&rows| self.rows.holds(rows)).collect();
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
        let phase = self.phase();
        let min_tokens = if phase == Phase::Decode { 1 } else { 2.min(max_tokens) };
        Bucket { phase, min_tokens, max_tokens, max_outputs }
    }

    /// What a time of a step says.
    pub(super) fn sample(&self, graph: &LayerGraph, timed: &Timed<'_>) -> Option<Sample> {
        let Timed { shape: step, seconds, runs, .. } = timed;
        let (seconds, runs) = (*seconds, *runs);
        let (count, past) = (self.count(), step.past as f64);
        let unit = |unit: UnitId, count: u32| UnitSample {
            count,
            seconds,
            runs,
            ..UnitSample::of(graph, unit, step)
        };
        Some(match &self.what {
            What::Ops(nodes) => {
                let part = Part::of(graph, *nodes.first()?, step);
                Sample::Op(OpSample { part, past, count, seconds, runs })
            }
            What::Units(units) => Sample::Unit(unit(*units.first()?, count)),
            What::Layers(units) => {
                let mut different: BTreeMap<String, (UnitId, u32)> = BTreeMap::new();
                for &unit in units {
                    different.entry(unit_signature(graph, unit)).or_insert((unit, 0)).1 += 1;
                }
                let units = different.into_values().map(|(id, count)| unit(id, count)).collect();
                Sample::Layer(LayerSample { units, tokens: step.tokens as f64, past, seconds })
            }
        })
    }
}

/// One sample, of whichever sort.
#[derive(Clone, Debug)]
pub(super) enum Sample {
    Op(OpSample),
    Unit(UnitSample),
    Layer(LayerSample),
}

fn weight_bytes(graph: &LayerGraph, nodes: &[NodeIndex]) -> usize {
    let weights = nodes.iter().flat_map(|&node| graph.node(node).op.weights());
    weights.map(|weight| weight.len_bytes()).sum()
}

/// Ops or units in groups of the same number: the first ones until their weights are more than a card's
/// caches hold, and as many others as the processor's need.
fn groups<T: Copy>(all: &[T], most: usize, bytes: impl Fn(&T) -> usize) -> Vec<Vec<T>> {
    let mut sum = 0;
    let fits = |one: &&T| {
        let more = sum <= WEIGHT_BYTES;
        sum += bytes(one);
        more
    };
    let count = all.iter().take(most).take_while(fits).count().max(1);
    let each: usize = all[..count].iter().map(&bytes).sum();
    let wanted = if each == 0 { 1 } else { ALL_WEIGHT_BYTES.div_ceil(each) };
    all.chunks_exact(count).take(wanted).map(<[T]>::to_vec).collect()
}

/// Layers next to each other, from the middle of the model on: of `most` units, or until their weights are
/// more than a card's caches hold. `None` of a model without.
fn layers(graph: &LayerGraph, most: usize) -> Option<What> {
    let units: Vec<UnitId> = (0..graph.units().len()).map(UnitId).collect();
    let of_layers = units.iter().copied().filter(|&unit| graph.unit(unit).layer.is_some());
    let of_layers: Vec<UnitId> = of_layers.collect();
    let all: Vec<&[UnitId]> =
        of_layers.chunk_by(|&a, &b| graph.unit(a).layer == graph.unit(b).layer).collect();
    let mut chosen = Vec::new();
    let mut sum = 0;
    for layer in &all[all.len() / 2..] {
        if !chosen.is_empty() && (sum > WEIGHT_BYTES || chosen.len() + layer.len() > most) {
            break;
        }
        sum +=
            layer.iter().map(|&unit| weight_bytes(graph, &graph.unit(unit).nodes)).sum::<usize>();
        chosen.extend_from_slice(layer);
    }
    (!chosen.is_empty()).then_some(What::Layers(chosen))
}
