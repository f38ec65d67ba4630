//! Work that takes each element alone.

use super::level::at_level;
use super::norm::each_row;
use super::pool::SharedSlice;
use super::{Matrix, ThreadPool, math};
use crate::blocks;

/// Elements that a task takes at least: below some thousands a second thread does not pay.
const GRAIN: usize = 8192;

/// A function of one number between two linears.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// `x / (1 + e^-x)`.
    Silu,
    /// `x / 2 * (1 + tanh(sqrt(2/π) * (x + 0.044715 x³)))`.
    GeluTanh,
    /// `x / 2 * (1 + erf(x / sqrt 2))`.
    GeluErf,
    /// `x / (1 + e^(-1.702 x))`.
    GeluQuick,
    /// `max(x, 0)`.
    Relu,
    /// `max(x, 0)²`.
    ReluSquared,
    /// `1 / (1 + e^-x)`.
    Sigmoid,
    /// `tanh x`.
    Tanh,
    /// `x` itself: a gated product is then the plain product.
    Identity,
    /// gpt-oss: the gate is clamped from above to `limit`, the other factor to `±limit`;
    /// `gate / (1 + e^(-alpha * gate)) * (up + 1)`.
    ClampedSwiglu {
        /// Steepness of the sigmoid (1.702).
        alpha: f32,
        /// Bound of both factors (7).
        limit: f32,
    },
}

#[inline(always)]
fn activated(kind: Activation, x: f32) -> f32 {
    /// sqrt(2 / π) * 2, the doubling from `(1 + tanh u) / 2 = sigmoid(2u)`.
    const TANH_STEP: f32 = 1.595_769;
    match kind {
        Activation::Silu => x * math::sigmoid(x),
        Activation::GeluTanh => x * math::sigmoid(TANH_STEP * (0.044_715 * x * x).mul_add(x, x)),
        Activation::GeluErf => 0.5 * x * (1.0 + math::erf(x * std::f32::consts::FRAC_1_SQRT_2)),
        Activation::GeluQuick => x * math::sigmoid(1.702 * x),
        Activation::Relu => x.max(0.0),
        Activation::ReluSquared => x.max(0.0) * x.max(0.0),
        Activation::Sigmoid => math::sigmoid(x),
        Activation::Tanh => math::tanh(x),
        Activation::Identity => x,
        Activation::ClampedSwiglu { alpha, limit } => {
            let gate = x.min(limit);
            gate * math::sigmoid(alpha * gate)
        }
    }
}

/// Runs `$loop` with the kind a constant in each arm, so that its body has no branch.
macro_rules! per_kind {
    ($kind:ident, $run:expr) => {
        match $kind {
            Activation::Silu => $run(|x| activated(Activation::Silu, x)),
            Activation::GeluTanh => $run(|x| activated(Activation::GeluTanh, x)),
            Activation::GeluErf => $run(|x| activated(Activation::GeluErf, x)),
            Activation::GeluQuick => $run(|x| activated(Activation::GeluQuick, x)),
            Activation::Relu => $run(|x| activated(Activation::Relu, x)),
            Activation::ReluSquared => $run(|x| activated(Activation::ReluSquared, x)),
            Activation::Sigmoid => $run(|x| activated(Activation::Sigmoid, x)),
            Activation::Tanh => $run(|x| activated(Activation::Tanh, x)),
            Activation::Identity => $run(|x| x),
            Activation::ClampedSwiglu { alpha, limit } => {
                $run(|x| activated(Activation::ClampedSwiglu { alpha, limit }, x))
            }
        }
    };
}

#[inline(always)]
fn map_body(kind: Activation, x: &mut [f32]) {
    #[inline(always)]
    fn run(x: &mut [f32], f: impl Fn(f32) -> f32) {
        x.iter_mut().for_each(|v| *v = f(*v));
    }
    per_kind!(kind, |f| run(x, f));
}

#[inline(always)]
fn gated_body(kind: Activation, gate: &[f32], up: &mut [f32]) {
    #[inline(always)]
    fn run(gate: &[f32], up: &mut [f32], f: impl Fn(f32) -> f32) {
        up.iter_mut().zip(gate).for_each(|(u, g)| *u *= f(*g));
    }
    if let Activation::ClampedSwiglu { limit, .. } = kind {
        up.iter_mut().for_each(|u| *u = u.clamp(-limit, limit) + 1.0);
    }
    per_kind!(kind, |f| run(gate, up, f));
}

#[inline(always)]
fn add_body(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

#[inline(always)]
fn add_scaled_body(x: &mut [f32], y: &[f32], factor: f32) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x = y.mul_add(factor, *x));
}

#[inline(always)]
fn multiply_body(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x *= y);
}

#[inline(always)]
fn scale_body(x: &mut [f32], factor: f32) {
    x.iter_mut().for_each(|x| *x *= factor);
}

#[inline(always)]
fn softcap_body(x: &mut [f32], cap: f32) {
    x.iter_mut().for_each(|x| *x = cap * math::tanh(*x / cap));
}

at_level! {
    fn map_at(kind: Activation, x: &mut [f32]) = map_body;
    fn gated_at(kind: Activation, gate: &[f32], up: &mut [f32]) = gated_body;
    fn add_at(x: &mut [f32], y: &[f32]) = add_body;
    fn add_scaled_at(x: &mut [f32], y: &[f32], factor: f32) = add_scaled_body;
    fn multiply_at(x: &mut [f32], y: &[f32]) = multiply_body;
    fn scale_at(x: &mut [f32], factor: f32) = scale_body;
    fn softcap_at(x: &mut [f32], cap: f32) = softcap_body;
}

/// Cuts `x` into parts for the threads; `work` gets a part and where it begins.
fn each_part(pool: &ThreadPool, x: &mut [f32], work: impl Fn(&mut [f32], usize) + Sync) {
    let len = x.len();
    let shared = SharedSlice::new(x);
    pool.run_ranges(len, GRAIN, |range, _| {
        let start = range.start;
        // SAFETY: the ranges of one call do not overlap.
        work(unsafe { shared.part(range) }, start);
    });
}

fn each_pair(
    pool: &ThreadPool,
    x: &mut [f32],
    y: &[f32],
    work: impl Fn(&mut [f32], &[f32]) + Sync,
) {
    assert_eq!(x.len(), y.len(), "two operands of one length");
    each_part(pool, x, |part, start| work(part, &y[start..start + part.len()]));
}

/// `x = activation(x)`.
pub fn activate(pool: &ThreadPool, kind: Activation, x: &mut [f32]) {
    each_part(pool, x, |part, _| map_at(pool.level(), kind, part));
}

/// `up = activation(gate) * up`.
///
/// # Panics
/// If the lengths differ.
pub fn gated(pool: &ThreadPool, kind: Activation, gate: &[f32], up: &mut [f32]) {
    each_pair(pool, up, gate, |up, gate| gated_at(pool.level(), kind, gate, up));
}

/// `out = activation(gate) * up`.
///
/// # Panics
/// If the lengths differ.
pub fn gated_from(pool: &ThreadPool, kind: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
    assert_eq!((gate.len(), up.len()), (out.len(), out.len()), "three operands of one length");
    each_part(pool, out, |out, start| {
        let part = start..start + out.len();
        out.copy_from_slice(&up[part.clone()]);
        gated_at(pool.level(), kind, &gate[part], out);
    });
}

/// `out = x + y`.
///
/// # Panics
/// If the lengths differ.
pub fn sum(pool: &ThreadPool, x: &[f32], y: &[f32], out: &mut [f32]) {
    assert_eq!((x.len(), y.len()), (out.len(), out.len()), "three operands of one length");
    each_part(pool, out, |out, start| {
        let part = start..start + out.len();
        out.copy_from_slice(&x[part.clone()]);
        add_at(pool.level(), out, &y[part]);
    });
}

/// `x = x + y`.
///
/// # Panics
/// If the lengths differ.
pub fn add(pool: &ThreadPool, x: &mut [f32], y: &[f32]) {
    each_pair(pool, x, y, |x, y| add_at(pool.level(), x, y));
}

/// `x = x + factor * y`.
///
/// # Panics
/// If the lengths differ.
pub fn add_scaled(pool: &ThreadPool, x: &mut [f32], y: &[f32], factor: f32) {
    each_pair(pool, x, y, |x, y| add_scaled_at(pool.level(), x, y, factor));
}

/// `x = x * y`, element by element.
///
/// # Panics
/// If the lengths differ.
pub fn multiply(pool: &ThreadPool, x: &mut [f32], y: &[f32]) {
    each_pair(pool, x, y, |x, y| multiply_at(pool.level(), x, y));
}

/// `row = row + bias` for every row of `bias.len()` elements.
pub fn add_bias(pool: &ThreadPool, x: &mut [f32], bias: &[f32]) {
    each_row(pool, x, bias.len(), |_, row| add_at(pool.level(), row, bias));
}

/// `row = row * weight` for every row of `weight.len()` elements.
pub fn multiply_rows(pool: &ThreadPool, x: &mut [f32], weight: &[f32]) {
    each_row(pool, x, weight.len(), |_, row| multiply_at(pool.level(), row, weight));
}

/// `x = factor * x`.
pub fn scale(pool: &ThreadPool, x: &mut [f32], factor: f32) {
    each_part(pool, x, |part, _| scale_at(pool.level(), part, factor));
}

/// `x = cap * tanh(x / cap)`.
pub fn softcap(pool: &ThreadPool, x: &mut [f32], cap: f32) {
    each_part(pool, x, |part, _| softcap_at(pool.level(), part, cap));
}

/// Row `rows[i]` of `table`, decoded, into row `i` of `out` (`[rows.len(), table.cols]`).
///
/// # Panics
/// If a number is not below `table.rows`, or `out` has another size.
pub fn gather_rows(pool: &ThreadPool, table: Matrix<'_>, rows: &[u32], out: &mut [f32]) {
    assert_eq!(out.len(), rows.len() * table.cols, "gather_rows: output size");
    each_row(pool, out, table.cols, |i, out| {
        blocks::decode_row(table.block, table.row(rows[i] as usize), out);
    });
}

/// `out[rows[i]] += weights[i] * x[i]` for rows of `cols` elements, in the order of the list (rows
/// may repeat): what an expert adds to the rows that it was asked for.
///
/// # Panics
/// If a row leaves `out`, or the lengths do not fit.
pub fn scatter_add(
    pool: &ThreadPool,
    x: &[f32],
    cols: usize,
    rows: &[u32],
    weights: &[f32],
    out: &mut [f32],
) {
    assert_eq!((x.len(), weights.len()), (rows.len() * cols, rows.len()), "scatter_add: sizes");
    for ((x, &row), &weight) in x.chunks_exact(cols.max(1)).zip(rows).zip(weights) {
        let first = row as usize * cols;
        add_scaled_at(pool.level(), &mut out[first..first + cols], x, weight);
    }
}
