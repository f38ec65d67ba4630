//! What the segments of a plan hold.

use std::collections::{BTreeMap, BTreeSet};

use trefoil_graph::ops::Op;
use trefoil_graph::{LayerGraph, Node, UnitId, UnitKind};
use trefoil_scheduler::{BucketPlan, SegmentPlan};

/// A segment of a bucket.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Segment {
    /// Its place among the segments of the bucket.
    pub(super) index: usize,
    /// The device.
    pub(super) device: String,
    /// Name of its first unit.
    pub(super) first: String,
    /// Name of its last unit.
    pub(super) last: String,
    /// First and last layer, if it has any.
    pub(super) layers: Option<(usize, usize)>,
    /// Sorts of ops, each once, in the order in which they run.
    pub(super) ops: Vec<&'static str>,
    /// Bytes of its weights.
    pub(super) weight_bytes: u64,
    /// Those of them that are copied for every step.
    pub(super) streamed_bytes: u64,
}

/// Sort of an op, as metrics and plans name it.
fn sort(node: &Node, unit: UnitKind) -> &'static str {
    match &node.op {
        Op::Embed(_) => "embed",
        Op::Norm(_) => "norm",
        Op::KvWrite(_) => "kv",
        _ => match unit {
            UnitKind::Embed => "embed",
            UnitKind::AttnIn | UnitKind::Attn | UnitKind::AttnOut => "attention",
            UnitKind::Ffn => "mlp",
            UnitKind::Moe => "moe",
            UnitKind::Head => "head",
        },
    }
}

fn sorts(graph: &LayerGraph, unit: UnitId) -> impl Iterator<Item = &'static str> {
    let unit = graph.unit(unit);
    unit.nodes.iter().map(|&node| sort(graph.node(node), unit.kind))
}

fn weight_bytes(graph: &LayerGraph, unit: UnitId) -> u64 {
    let nodes = graph.unit(unit).nodes.iter();
    let weights = nodes.flat_map(|&node| graph.node(node).op.weights());
    weights.map(|weight| weight.len_bytes() as u64).sum()
}

impl Segment {
    /// The segments of a bucket, in order.
    pub(super) fn all(graph: &LayerGraph, bucket: &BucketPlan) -> Vec<Self> {
        let segments = bucket.segments().into_iter().enumerate();
        segments.map(|(index, segment)| Self::new(graph, bucket, index, segment)).collect()
    }

    fn new(graph: &LayerGraph, bucket: &BucketPlan, index: usize, own: SegmentPlan) -> Self {
        let name = |unit: Option<&UnitId>| {
            unit.map_or_else(String::new, |unit| bucket.units[unit.0].unit.clone())
        };
        let layers = || own.units.iter().filter_map(|&unit| graph.unit(unit).layer);
        let mut ops: Vec<&'static str> = Vec::new();
        for op in own.units.iter().flat_map(|&unit| sorts(graph, unit)) {
            if !ops.contains(&op) {
                ops.push(op);
            }
        }
        let bytes = |unit: &UnitId| weight_bytes(graph, *unit);
        let streamed = own.units.iter().filter(|unit| bucket.is_streamed(unit.0));
        Self {
            index,
            first: name(own.units.first()),
            last: name(own.units.last()),
            layers: layers().min().zip(layers().max()),
            ops,
            weight_bytes: own.units.iter().map(bytes).sum(),
            streamed_bytes: streamed.map(bytes).sum(),
            device: own.device,
        }
    }

    /// `0-5`, `3`, or nothing.
    pub(super) fn layer_range(&self) -> String {
        match self.layers {
            None => String::new(),
            Some((first, last)) if first == last => first.to_string(),
            Some((first, last)) => format!("{first}-{last}"),
        }
    }
}

/// On how many layers each device runs ops of each sort; what no layer has (embed, head) counts as one.
/// A product that is split counts for all devices that share it.
pub(super) fn layers_by_op<'a>(
    graph: &LayerGraph,
    bucket: &'a BucketPlan,
) -> BTreeMap<(&'static str, &'a str), usize> {
    let mut layers: BTreeMap<(&'static str, &str), BTreeSet<Option<usize>>> = BTreeMap::new();
    let mut add = |op, device, layer| layers.entry((op, device)).or_default().insert(layer);
    for (index, placed) in bucket.units.iter().enumerate() {
        let unit = UnitId(index);
        for op in sorts(graph, unit) {
            add(op, placed.device.as_str(), graph.unit(unit).layer);
        }
    }
    for split in &bucket.splits {
        let Some(node) = graph.nodes().find(|&node| graph.node(node).name == split.op) else {
            continue;
        };
        let node = graph.node(node);
        let unit = graph.unit(node.unit);
        for share in &split.shares {
            add(sort(node, unit.kind), share.device.as_str(), unit.layer);
        }
    }
    layers.into_iter().map(|(key, layers)| (key, layers.len())).collect()
}
