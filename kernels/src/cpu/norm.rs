//! Normalisation of rows.

use super::ThreadPool;
use super::lanes::{LANES, greatest, sum_by, total};
use super::level::at_level;
use super::math;
use super::pool::SharedSlice;

/// Rows are handed to threads in runs of about this many elements.
const GRAIN: usize = 4096;

/// Calls `work` with every row of `out` (of `cols` elements) and its number, on all threads.
pub(super) fn each_row(
    pool: &ThreadPool,
    out: &mut [f32],
    cols: usize,
    work: impl Fn(usize, &mut [f32]) + Sync,
) {
    if cols == 0 {
        return;
    }
    let rows = out.len() / cols;
    assert_eq!(rows * cols, out.len(), "{} elements are no rows of {cols}", out.len());
    let shared = SharedSlice::new(out);
    pool.run_ranges(rows, GRAIN.div_ceil(cols), |range, _| {
        for row in range {
            // SAFETY: every row is visited once.
            work(row, unsafe { shared.part(row * cols..(row + 1) * cols) });
        }
    });
}

/// `out = x / sqrt(mean(x²) + eps) * weight` for every row of `cols` elements; without a weight the
/// factor is 1. Heads of a row are normalised alone by giving `cols = head_dim`.
///
/// # Panics
/// If the lengths do not fit.
pub fn rms_norm(
    pool: &ThreadPool,
    x: &[f32],
    cols: usize,
    weight: Option<&[f32]>,
    eps: f32,
    out: &mut [f32],
) {
    assert_eq!(x.len(), out.len(), "rms_norm: input and output differ in length");
    assert!(weight.is_none_or(|w| w.len() == cols), "rms_norm: weight is not one row");
    each_row(pool, out, cols, |row, out| {
        out.copy_from_slice(&x[row * cols..(row + 1) * cols]);
        rms_norm_row(pool.level(), out, weight, eps);
    });
}

/// [`rms_norm`] in place.
///
/// # Panics
/// If the lengths do not fit.
pub fn rms_norm_in_place(
    pool: &ThreadPool,
    x: &mut [f32],
    cols: usize,
    weight: Option<&[f32]>,
    eps: f32,
) {
    assert!(weight.is_none_or(|w| w.len() == cols), "rms_norm: weight is not one row");
    each_row(pool, x, cols, |_, row| rms_norm_row(pool.level(), row, weight, eps));
}

/// `out = (x - mean(x)) / sqrt(variance(x) + eps) * weight + bias` for every row of `cols` elements.
///
/// # Panics
/// If the lengths do not fit.
pub fn layer_norm(
    pool: &ThreadPool,
    x: &[f32],
    cols: usize,
    weight: &[f32],
    bias: Option<&[f32]>,
    eps: f32,
    out: &mut [f32],
) {
    assert_eq!(x.len(), out.len(), "layer_norm: input and output differ in length");
    assert_eq!(weight.len(), cols, "layer_norm: weight is not one row");
    assert!(bias.is_none_or(|b| b.len() == cols), "layer_norm: bias is not one row");
    each_row(pool, out, cols, |row, out| {
        out.copy_from_slice(&x[row * cols..(row + 1) * cols]);
        layer_norm_row(pool.level(), out, weight, bias, eps);
    });
}

/// `x / |x|` for every row of `cols` elements, in place; rows shorter than `eps` are divided by
/// `eps` instead.
pub fn l2_normalise(pool: &ThreadPool, x: &mut [f32], cols: usize, eps: f32) {
    each_row(pool, x, cols, |_, row| l2_row(pool.level(), row, eps));
}

/// Softmax of every row of `cols` elements, in place.
pub fn softmax(pool: &ThreadPool, x: &mut [f32], cols: usize) {
    each_row(pool, x, cols, |_, row| softmax_row(pool.level(), row));
}

at_level! {
    fn rms_norm_row(row: &mut [f32], weight: Option<&[f32]>, eps: f32) = rms_norm_body;
    fn layer_norm_row(row: &mut [f32], weight: &[f32], bias: Option<&[f32]>, eps: f32)
        = layer_norm_body;
    fn l2_row(row: &mut [f32], eps: f32) = l2_body;
    fn softmax_row(row: &mut [f32]) = softmax_body;
}

#[inline(always)]
fn rms_norm_body(row: &mut [f32], weight: Option<&[f32]>, eps: f32) {
    let squares = sum_by(row, |v, sum| v.mul_add(v, sum));
    let factor = 1.0 / (squares / row.len() as f32 + eps).sqrt();
    match weight {
        Some(weight) => row.iter_mut().zip(weight).for_each(|(v, w)| *v = *v * factor * w),
        None => row.iter_mut().for_each(|v| *v *= factor),
    }
}

#[inline(always)]
fn layer_norm_body(row: &mut [f32], weight: &[f32], bias: Option<&[f32]>, eps: f32) {
    let n = row.len() as f32;
    let mean = sum_by(row, |v, sum| sum + v) / n;
    row.iter_mut().for_each(|v| *v -= mean);
    let variance = sum_by(row, |v, sum| v.mul_add(v, sum)) / n;
    let factor = 1.0 / (variance + eps).sqrt();
    row.iter_mut().zip(weight).for_each(|(v, w)| *v = *v * factor * w);
    if let Some(bias) = bias {
        row.iter_mut().zip(bias).for_each(|(v, b)| *v += b);
    }
}

#[inline(always)]
fn l2_body(row: &mut [f32], eps: f32) {
    let length = sum_by(row, |v, sum| v.mul_add(v, sum)).sqrt();
    let factor = 1.0 / length.max(eps);
    row.iter_mut().for_each(|v| *v *= factor);
}

#[inline(always)]
fn softmax_body(row: &mut [f32]) {
    let top = row_max(row);
    let sum = exp_minus(row, top);
    let factor = 1.0 / sum;
    row.iter_mut().for_each(|v| *v *= factor);
}

/// Greatest element of a row.
#[inline(always)]
pub(super) fn row_max(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (whole, rest) = row.as_chunks::<LANES>();
    for chunk in whole {
        for i in 0..LANES {
            lanes[i] = lanes[i].max(chunk[i]);
        }
    }
    for (lane, v) in lanes.iter_mut().zip(rest) {
        *lane = lane.max(*v);
    }
    greatest(lanes)
}

/// Replaces every element by `exp(element - top)`; gives their sum in the fixed order.
#[inline(always)]
pub(super) fn exp_minus(row: &mut [f32], top: f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (whole, rest) = row.as_chunks_mut::<LANES>();
    for chunk in whole {
        for i in 0..LANES {
            chunk[i] = math::exp(chunk[i] - top);
            lanes[i] += chunk[i];
        }
    }
    for (lane, v) in lanes.iter_mut().zip(rest) {
        *v = math::exp(*v - top);
        *lane += *v;
    }
    total(lanes)
}
