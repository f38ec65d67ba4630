//! The reference interpreter: the definition of every op, and the judge of all other kernels.
//!
//! Plain and obvious before anything else. Values between ops are f32; sums inside an op are f64, so
//! that their order does not matter at f32's precision.

mod attention;
mod elementwise;
pub(crate) mod moe;

use trefoil_graph::ops::{
    Activation, Attention, Embed, Experts, Gate, KvWrite, Linear, NormKind, Pool, Pooling, Rope,
    RopeStyle, Route,
};
use trefoil_graph::{StepInputs, Weight};

use crate::blocks::decode_row;
use crate::host::{HostKernels, KvLayout, KvView, NormArgs, Turns};

/// The reference interpreter.
#[derive(Debug, Default)]
pub struct Reference {
    /// One decoded weight row.
    row: Vec<f32>,
}

impl Reference {
    /// Row `index` of a weight, decoded.
    fn row(&mut self, weight: &Weight, index: usize) -> &[f32] {
        self.row.resize(weight.cols, 0.0);
        decode_row(weight.block, weight.row(index), &mut self.row);
        &self.row
    }

    /// `out[r][o] = x[r] . weight[o]` for all rows of `x`.
    fn product(&mut self, weight: &Weight, x: &[f32], out: &mut [f32]) {
        let (cols, width) = (weight.cols, weight.rows);
        for o in 0..width {
            let w = self.row(weight, o);
            for (x, out) in x.chunks_exact(cols).zip(out.chunks_exact_mut(width)) {
                out[o] = dot(w, x);
            }
        }
    }
}

/// Sum of products in f64.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() as f32
}

impl HostKernels for Reference {
    fn embed(&mut self, op: &Embed, step: &StepInputs, out: &mut [f32]) {
        let width = op.table.cols;
        for (r, out) in out.chunks_exact_mut(width).enumerate() {
            let token = self.row(&op.table, step.tokens[r] as usize);
            for (out, value) in out.iter_mut().zip(token) {
                *out = value * op.scale;
            }
            if let Some(positions) = &op.positions {
                let row = self.row(positions, step.positions[r] as usize);
                out.iter_mut().zip(row).for_each(|(out, value)| *out += value);
            }
            if let Some(types) = &op.types {
                let row = self.row(types, 0);
                out.iter_mut().zip(row).for_each(|(out, value)| *out += value);
            }
        }
    }

    fn norm(&mut self, args: NormArgs<'_>, x: &[f32], out: &mut [f32]) {
        let n = args.weight.len();
        for (x, out) in x.chunks_exact(n).zip(out.chunks_exact_mut(n)) {
            let mean = match args.op.kind {
                NormKind::Rms => 0.0,
                NormKind::Layer => x.iter().map(|&v| f64::from(v)).sum::<f64>() / n as f64,
            };
            let variance = x.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n as f64;
            let factor = 1.0 / (variance + f64::from(args.op.eps)).sqrt();
            for i in 0..n {
                let normed = (f64::from(x[i]) - mean) * factor;
                let bias = args.bias.map_or(0.0, |bias| f64::from(bias[i]));
                out[i] = (normed * f64::from(args.weight[i]) + bias) as f32;
            }
        }
    }

    fn linear(&mut self, op: &Linear, bias: Option<&[f32]>, x: &[f32], out: &mut [f32]) {
        self.product(&op.weight, x, out);
        if let Some(bias) = bias {
            for row in out.chunks_exact_mut(bias.len()) {
                row.iter_mut().zip(bias).for_each(|(out, bias)| *out += bias);
            }
        }
    }

    fn rope(&mut self, op: &Rope, turns: Turns<'_>, x: &[f32], out: &mut [f32]) {
        let rows = turns.cos.len() / turns.pairs;
        let width = x.len() / rows.max(1);
        out.copy_from_slice(x);
        for (r, out) in out.chunks_exact_mut(width).enumerate() {
            let angles = r * turns.pairs..(r + 1) * turns.pairs;
            let (cos, sin) = (&turns.cos[angles.clone()], &turns.sin[angles]);
            for head in out.chunks_exact_mut(op.head_dim) {
                for pair in 0..turns.pairs {
                    let (i, j) = match op.style {
                        RopeStyle::Interleaved => (2 * pair, 2 * pair + 1),
                        RopeStyle::Halves => (pair, pair + turns.pairs),
                    };
                    let (a, b) = (head[i], head[j]);
                    head[i] = a * cos[pair] - b * sin[pair];
                    head[j] = a * sin[pair] + b * cos[pair];
                }
            }
        }
    }

    fn kv_write(
        &mut self,
        op: &KvWrite,
        step: &StepInputs,
        layout: KvLayout,
        key: &[f32],
        value: &[f32],
        pages: &mut [u8],
    ) {
        attention::kv_write(op, step, layout, key, value, pages);
    }

    fn attention(
        &mut self,
        op: &Attention,
        step: &StepInputs,
        kv: KvView<'_>,
        query: &[f32],
        out: &mut [f32],
    ) {
        attention::attention(op, step, kv, query, out);
    }

    fn gate(&mut self, op: &Gate, gate: &[f32], up: &[f32], out: &mut [f32]) {
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            *out = elementwise::nonlinearity(op.function, *gate) * up;
        }
    }

    fn activation(&mut self, op: &Activation, x: &[f32], out: &mut [f32]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = elementwise::nonlinearity(op.function, *x);
        }
    }

    fn add(&mut self, a: &[f32], b: &[f32], out: &mut [f32]) {
        for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
            *out = a + b;
        }
    }

    fn scale(&mut self, factor: f32, x: &[f32], out: &mut [f32]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = x * factor;
        }
    }

    fn soft_cap(&mut self, cap: f32, x: &[f32], out: &mut [f32]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = elementwise::soft_cap(cap, *x);
        }
    }

    fn route(&mut self, op: &Route, x: &[f32], out: &mut [f32]) {
        let experts = op.weight.rows;
        let rows = x.len() / op.weight.cols;
        let mut logits = vec![0.0; rows * experts];
        self.product(&op.weight, x, &mut logits);
        for (logits, out) in logits.chunks_exact(experts).zip(out.chunks_exact_mut(2 * op.top_k)) {
            moe::choose(logits, op.renormalise, out);
        }
    }

    fn experts(&mut self, op: &Experts, x: &[f32], route: &[f32], out: &mut [f32]) {
        let (width, ffn) = (op.gate[0].cols, op.gate[0].rows);
        let (mut gate, mut up, mut y) = (vec![0.0; ffn], vec![0.0; ffn], vec![0.0; width]);
        out.fill(0.0);
        let rows = x.chunks_exact(width).zip(route.chunks_exact(2 * op.top_k));
        for ((x, route), out) in rows.zip(out.chunks_exact_mut(width)) {
            let (chosen, shares) = route.split_at(op.top_k);
            for (&expert, &share) in chosen.iter().zip(shares) {
                let expert = expert as usize;
                self.product(&op.gate[expert], x, &mut gate);
                self.product(&op.up[expert], x, &mut up);
                for (gate, up) in gate.iter_mut().zip(&up) {
                    *gate = elementwise::nonlinearity(op.function, *gate) * up;
                }
                self.product(&op.down[expert], &gate, &mut y);
                out.iter_mut().zip(&y).for_each(|(out, y)| *out += share * y);
            }
        }
    }

    fn pool(&mut self, op: &Pool, step: &StepInputs, x: &[f32], out: &mut [f32]) {
        pool_rows(op.pooling, step, x, out);
    }

    fn normalise(&mut self, width: usize, x: &[f32], out: &mut [f32]) {
        for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
            let length = x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
            let factor = if length > 0.0 { 1.0 / length } else { 0.0 };
            out.iter_mut().zip(x).for_each(|(out, x)| *out = (f64::from(*x) * factor) as f32);
        }
    }
}

/// Pools each sequence's rows of `x` into its row of `out`.
pub(crate) fn pool_rows(pooling: Pooling, step: &StepInputs, x: &[f32], out: &mut [f32]) {
    let width = x.len() / step.tokens.len().max(1);
    for (sequence, out) in step.sequences.iter().zip(out.chunks_exact_mut(width)) {
        let (first, count) = (sequence.first_row as usize, sequence.rows as usize);
        let row = |r: usize| &x[r * width..(r + 1) * width];
        match pooling {
            Pooling::Cls => out.copy_from_slice(row(first)),
            Pooling::Last => out.copy_from_slice(row(first + count - 1)),
            Pooling::Mean => {
                for (i, out) in out.iter_mut().enumerate() {
                    let sum: f64 = (first..first + count).map(|r| f64::from(row(r)[i])).sum();
                    *out = (sum / count as f64) as f32;
                }
            }
        }
    }
}
