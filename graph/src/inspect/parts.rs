//! The graph in short: units with their ops, layers that are alike said once.

use serde::Serialize;
use trefoil_telemetry::Bytes;

use crate::ops::Op;
use crate::{BlockType, LayerGraph, NodeIndex, Unit, UnitKind, Weight};

/// Units next to each other that belong to one layer or to none, and the layers that are alike.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Part {
    /// Layers that look like this, ascending; none for what lies before, between and after layers.
    pub layers: Vec<usize>,
    /// The units.
    pub units: Vec<UnitReport>,
}

/// One unit.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct UnitReport {
    /// What it holds.
    pub kind: UnitKind,
    /// Bytes of its weights; a table that the head shares with the embedding counts in both.
    pub weights: Bytes,
    /// Positions that its attention sees at most.
    pub window: Option<u32>,
    /// Its ops, in the order in which they run.
    pub ops: Vec<OpReport>,
}

/// One op.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OpReport {
    /// Role name, without the layer's prefix.
    pub name: String,
    /// Kind, as the conformance table prints it.
    pub kind: &'static str,
    /// Elements per row of its result.
    pub width: usize,
    /// Its weights, equal ones next to each other counted.
    pub weights: Vec<WeightReport>,
}

/// Weights of one layout and shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct WeightReport {
    /// Element layout.
    pub block: BlockType,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// How many there are.
    pub count: usize,
}

pub(super) fn parts(graph: &LayerGraph) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    for run in graph.units().chunk_by(|a, b| a.layer == b.layer) {
        let units: Vec<_> = run.iter().map(|unit| unit_report(graph, unit)).collect();
        let Some(layer) = run[0].layer else {
            parts.push(Part { layers: Vec::new(), units });
            continue;
        };
        match parts.iter_mut().find(|part| !part.layers.is_empty() && part.units == units) {
            Some(part) => part.layers.push(layer),
            None => parts.push(Part { layers: vec![layer], units }),
        }
    }
    parts
}

fn unit_report(graph: &LayerGraph, unit: &Unit) -> UnitReport {
    let ops = || unit.nodes.iter().map(|&node| &graph.node(node).op);
    UnitReport {
        kind: unit.kind,
        weights: ops().flat_map(Op::weights).map(|weight| Bytes::from(weight.len_bytes())).sum(),
        window: ops().find_map(|op| match op {
            Op::Attention(op) => op.window,
            _ => None,
        }),
        ops: unit.nodes.iter().map(|&node| op_report(graph, node)).collect(),
    }
}

fn op_report(graph: &LayerGraph, node: NodeIndex) -> OpReport {
    let node = graph.node(node);
    let mut weights: Vec<WeightReport> = Vec::new();
    for Weight { block, rows, cols, .. } in node.op.weights() {
        let new = WeightReport { block: *block, rows: *rows, cols: *cols, count: 1 };
        match weights.last_mut() {
            Some(last) if (WeightReport { count: 1, ..*last }) == new => last.count += 1,
            _ => weights.push(new),
        }
    }
    OpReport {
        name: short_name(&node.name).to_owned(),
        kind: node.op.kind(),
        width: node.shape.width,
        weights,
    }
}

/// `ffn_down` of `blk.7.ffn_down`.
fn short_name(role: &str) -> &str {
    match role.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
        Some((_, name)) => name,
        None => role,
    }
}
