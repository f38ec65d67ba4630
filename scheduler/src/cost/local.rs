//! What was measured of exactly one op or unit: how it differs from the prediction, by the number of
//! rows and the tokens before them.

use trefoil_graph::ops::Op;
use trefoil_graph::{LayerGraph, NodeIndex, UnitId};

/// Tokens that are added to a past before its logarithm is taken: pasts below it are much the same.
const SHORT_PAST: f64 = 64.0;

/// Small ops may be far from a roofline, but not farther than this.
const MOST: f64 = 1000.0;

/// One measurement, as a share of what was predicted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LocalPoint {
    /// Rows of the op, or of the step for a unit.
    pub rows: f64,
    /// Tokens in the KV cache before.
    pub past: f64,
    /// Measured by predicted seconds, above zero.
    pub ratio: f64,
}

/// `ln(measured / predicted)` over the logarithms of rows and past: straight lines between points that
/// were measured, and the nearest point's value outside.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Local {
    /// By `ln(rows)`, ascending: by `ln(past + 64)`, ascending: the logarithm of the ratio.
    rows: Vec<(f64, Vec<(f64, f64)>)>,
}

impl Local {
    /// From any number of measurements; those of the same rows and past are averaged. Ratios that are
    /// not above zero are left out.
    pub fn new(points: &[LocalPoint]) -> Self {
        let usable = |point: &&LocalPoint| point.ratio.is_finite() && point.ratio > 0.0;
        let mut points: Vec<&LocalPoint> = points.iter().filter(usable).collect();
        points.sort_by(|a, b| a.rows.total_cmp(&b.rows).then(a.past.total_cmp(&b.past)));
        let mut rows: Vec<(f64, Vec<(f64, f64)>)> = Vec::new();
        for same in points.chunk_by(|a, b| a.rows == b.rows) {
            let pasts = same.chunk_by(|a, b| a.past == b.past).map(|group| {
                let sum: f64 = group.iter().map(|point| point.ratio.clamp(1.0 / MOST, MOST).ln()).sum();
                ((group[0].past + SHORT_PAST).ln(), sum / group.len() as f64)
            });
            rows.push((same[0].rows.max(1.0).ln(), pasts.collect()));
        }
        Self { rows }
    }

    /// Factor on the prediction; 1 where nothing was measured.
    pub fn factor(&self, rows: f64, past: f64) -> f64 {
        let at_past = (past + SHORT_PAST).ln();
        let each: Vec<(f64, f64)> =
            self.rows.iter().map(|(rows, pasts)| (*rows, between(pasts, at_past))).collect();
        between(&each, rows.max(1.0).ln()).exp()
    }
}

/// The value at `x` of the line through `points`, which are ascending; 0 if there are none.
fn between(points: &[(f64, f64)], x: f64) -> f64 {
    let after = points.partition_point(|(at, _)| *at <= x);
    match (after.checked_sub(1).map(|before| points[before]), points.get(after)) {
        (Some((x0, y0)), Some(&(x1, y1))) => y0 + (x - x0) / (x1 - x0) * (y1 - y0),
        (Some((_, y)), None) | (None, Some(&(_, y))) => y,
        (None, None) => 0.0,
    }
}

/// What an op is to a device: ops with the same text take the same time on the same rows.
pub fn op_signature(graph: &LayerGraph, node: NodeIndex) -> String {
    let of = graph.node(node);
    let mut text = of.op.kind().to_owned();
    for weight in of.op.weights() {
        // Experts have many weights of one shape: said once.
        let part = format!(" {} {}x{}", weight.block.name(), weight.rows, weight.cols);
        if !text.contains(&part) {
            text.push_str(&part);
        }
    }
    if let Op::Attention(op) = &of.op {
        let window = op.window.map_or_else(String::new, |window| format!(" window {window}"));
        text.push_str(&format!(" {}:{} heads of {}{window}", op.heads, op.kv_heads, op.head_dim));
    }
    if let Op::Experts(op) = &of.op {
        text.push_str(&format!(" {} of {}", op.top_k, op.gate.len()));
    }
    let widths = graph.inputs(node).into_iter().map(|input| graph.node(input).shape.width);
    for width in widths {
        text.push_str(&format!(" from {width}"));
    }
    text.push_str(&format!(" to {}", of.shape.width));
    text
}

/// What a unit is to a device: the signatures of its ops.
pub fn unit_signature(graph: &LayerGraph, unit: UnitId) -> String {
    let nodes = graph.unit(unit).nodes.iter();
    let ops: Vec<String> = nodes.map(|&node| op_signature(graph, node)).collect();
    format!("unit: {}", ops.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_meets_its_points_and_goes_straight_between_them() {
        let point = |rows, past, ratio| LocalPoint { rows, past, ratio };
        let local = Local::new(&[
            point(8.0, 0.0, 1.0),
            point(1.0, 0.0, 4.0),
            point(1.0, 960.0, 1.0),
            point(64.0, 0.0, 0.5),
            point(64.0, 0.0, -1.0),
            point(64.0, 0.0, f64::NAN),
        ]);
        for (rows, past, want) in [
            (1.0, 0.0, 4.0),
            (8.0, 0.0, 1.0),
            (8.0, 5000.0, 1.0),
            (64.0, 0.0, 0.5),
            (5000.0, 0.0, 0.5),
            (1.0, 960.0, 1.0),
            (1.0, 192.0, 2.0),
            (8.0 * 8f64.sqrt(), 0.0, 0.5f64.sqrt()),
        ] {
            let got = local.factor(rows, past);
            assert!((got / want - 1.0).abs() < 1e-9, "{rows} {past}: {got}, not {want}");
        }
        assert_eq!(Local::new(&[]).factor(3.0, 1.0), 1.0);
    }
}
