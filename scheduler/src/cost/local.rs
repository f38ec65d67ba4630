//! What was measured of exactly one op or unit: how it differs from the prediction, by the number of
//! rows and the tokens before them.

use trefoil_graph::ops::Op;
use trefoil_graph::{LayerGraph, NodeIndex, UnitId};

/// Small ops may be far from a roofline, but not farther than this.
const MOST: f64 = 1000.0;

/// One measurement, and what was predicted for it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LocalPoint {
    /// Rows of the op, or of the step for a unit.
    pub rows: f64,
    /// Tokens in the KV cache before.
    pub past: f64,
    /// Measured seconds, above zero.
    pub measured: f64,
    /// Predicted seconds, above zero.
    pub predicted: f64,
}

/// Measured by predicted seconds over rows and past. Between two pasts both times go straight, as times
/// of attention do; between two numbers of rows the logarithm of their ratio goes straight over the
/// logarithm of rows. Outside of what was measured, the ratio of the nearest point holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Local {
    /// By `ln(rows)`, ascending.
    rows: Vec<(f64, Pasts)>,
}

/// Times at one number of rows, by past, ascending.
#[derive(Clone, Debug, Default, PartialEq)]
struct Pasts {
    measured: Vec<(f64, f64)>,
    predicted: Vec<(f64, f64)>,
}

impl Local {
    /// From any number of measurements; those of the same rows and past are averaged. Times that are
    /// not above zero are left out.
    pub fn new(points: &[LocalPoint]) -> Self {
        let usable = |point: &&LocalPoint| {
            let ratio = point.measured / point.predicted;
            ratio.is_finite() && ratio > 0.0 && point.predicted > 0.0
        };
        let mut points: Vec<&LocalPoint> = points.iter().filter(usable).collect();
        points.sort_by(|a, b| a.rows.total_cmp(&b.rows).then(a.past.total_cmp(&b.past)));
        let mut rows: Vec<(f64, Pasts)> = Vec::new();
        for same in points.chunk_by(|a, b| a.rows == b.rows) {
            let mut pasts = Pasts::default();
            for group in same.chunk_by(|a, b| a.past == b.past) {
                let mean = |of: fn(&LocalPoint) -> f64| {
                    group.iter().map(|point| of(point)).sum::<f64>() / group.len() as f64
                };
                pasts.measured.push((group[0].past, mean(|point| point.measured)));
                pasts.predicted.push((group[0].past, mean(|point| point.predicted)));
            }
            rows.push((same[0].rows.max(1.0).ln(), pasts));
        }
        Self { rows }
    }

    /// Factor on the prediction; 1 where nothing was measured.
    pub fn factor(&self, rows: f64, past: f64) -> f64 {
        let ratio = |pasts: &Pasts| {
            let ratio = between(&pasts.measured, past) / between(&pasts.predicted, past);
            ratio.clamp(1.0 / MOST, MOST).ln()
        };
        let each: Vec<(f64, f64)> =
            self.rows.iter().map(|(rows, pasts)| (*rows, ratio(pasts))).collect();
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

/// What a unit is to a device where it runs in one program with the other units of its layer, from its
/// [`unit_signature`].
pub fn in_layer(signature: &str) -> String {
    format!("in its layer: {signature}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_meets_its_points_and_goes_straight_between_them() {
        let point = |rows, past, measured| LocalPoint { rows, past, measured, predicted: 1.0 };
        let local = Local::new(&[
            point(8.0, 0.0, 1.0),
            point(1.0, 0.0, 4.0),
            // Predicted 11, as 1 is at a past of 0: straight in between.
            LocalPoint { rows: 1.0, past: 1000.0, measured: 14.0, predicted: 11.0 },
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
            (1.0, 1000.0, 14.0 / 11.0),
            (1.0, 5000.0, 14.0 / 11.0),
            (1.0, 500.0, 9.0 / 6.0),
            (8.0 * 8f64.sqrt(), 0.0, 0.5f64.sqrt()),
        ] {
            let got = local.factor(rows, past);
            assert!((got / want - 1.0).abs() < 1e-9, "{rows} {past}: {got}, not {want}");
        }
        assert_eq!(Local::new(&[]).factor(3.0, 1.0), 1.0);
    }
}
