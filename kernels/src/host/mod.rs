//! Programs over host memory: what the reference interpreter and the CPU device have in common.
//!
//! A [`HostProgram`] is a segment's ops in order, with a place for every tensor. A kernel family
//! implements [`HostKernels`]; [`HostProgram::run`] walks the ops and calls it.

mod program;
mod scratch;

use half::f16;
use trefoil_graph::ops::{
    Activation, Attention, Embed, Experts, Gate, KvWrite, Linear, Norm, Pool, Rope, Route,
};
use trefoil_graph::{StepInputs, Weight};

pub use program::{HostProgram, KvBytes, KvLayout, RunError, Tensors};
pub use scratch::HostScratch;

/// A norm with its vectors decoded.
#[derive(Clone, Copy, Debug)]
pub struct NormArgs<'a> {
    /// The op.
    pub op: &'a Norm,
    /// `weight + weight_offset`, one per element of the group.
    pub weight: &'a [f32],
    /// Added last.
    pub bias: Option<&'a [f32]>,
}

/// Cosines and sines of a step's rows, `[rows, pairs]` each, magnitude applied.
#[derive(Clone, Copy, Debug)]
pub struct Turns<'a> {
    /// Cosines.
    pub cos: &'a [f32],
    /// Sines.
    pub sin: &'a [f32],
    /// Pairs per row.
    pub pairs: usize,
}

/// One of several linears that read the same rows.
pub struct LinearPart<'a> {
    /// The op.
    pub op: &'a Linear,
    /// Its bias.
    pub bias: Option<&'a [f32]>,
    /// Its result.
    pub out: &'a mut [f32],
}

/// A layer's KV pages for reading.
#[derive(Clone, Copy, Debug)]
pub struct KvView<'a> {
    /// All pages.
    pub bytes: &'a [u8],
    /// How they are laid out.
    pub layout: KvLayout,
}

impl KvView<'_> {
    /// Element `i` of the key (`value == false`) or value of `head` at `slot` of `page`.
    pub fn element(&self, value: bool, page: u32, head: usize, slot: usize, i: usize) -> f32 {
        let at = self.layout.offset(value, page, head, slot) + i * self.layout.element_bytes();
        if self.layout.half {
            f16::from_le_bytes([self.bytes[at], self.bytes[at + 1]]).to_f32()
        } else {
            let b = &self.bytes[at..at + 4];
            f32::from_le_bytes([b[0], b[1], b[2], b[3]])
        }
    }
}

/// A family of kernels over host memory. All tensors are row-major f32; the number of rows follows
/// from the slices. A row's result must not depend on what other rows there are.
pub trait HostKernels: Send {
    /// Looks up the rows of a step. `out` is `[tokens, width]`.
    fn embed(&mut self, op: &Embed, step: &StepInputs, out: &mut [f32]);
    /// Normalises each group of a row.
    fn norm(&mut self, args: NormArgs<'_>, x: &[f32], out: &mut [f32]);
    /// `out = x W^T + bias`.
    fn linear(&mut self, op: &Linear, bias: Option<&[f32]>, x: &[f32], out: &mut [f32]);
    /// Several linears of the same rows: a family may share what they have in common. Results are
    /// those of [`linear`](Self::linear).
    fn linear_many(&mut self, x: &[f32], parts: &mut [LinearPart<'_>]) {
        for part in parts {
            self.linear(part.op, part.bias, x, part.out);
        }
    }
    /// Turns each head of each row.
    fn rope(&mut self, op: &Rope, turns: Turns<'_>, x: &[f32], out: &mut [f32]);
    /// Stores keys and values of the step's rows in a layer's pages.
    fn kv_write(
        &mut self,
        op: &KvWrite,
        step: &StepInputs,
        layout: KvLayout,
        key: &[f32],
        value: &[f32],
        pages: &mut [u8],
    );
    /// Attends over a layer's pages.
    fn attention(
        &mut self,
        op: &Attention,
        step: &StepInputs,
        kv: KvView<'_>,
        query: &[f32],
        out: &mut [f32],
    );
    /// `f(gate) * up`.
    fn gate(&mut self, op: &Gate, gate: &[f32], up: &[f32], out: &mut [f32]);
    /// `f(x)`.
    fn activation(&mut self, op: &Activation, x: &[f32], out: &mut [f32]);
    /// `a + b`.
    fn add(&mut self, a: &[f32], b: &[f32], out: &mut [f32]);
    /// `x * factor`.
    fn scale(&mut self, factor: f32, x: &[f32], out: &mut [f32]);
    /// `cap * tanh(x / cap)`.
    fn soft_cap(&mut self, cap: f32, x: &[f32], out: &mut [f32]);
    /// Chooses experts; `out` as [`Route`] says.
    fn route(&mut self, op: &Route, x: &[f32], out: &mut [f32]);
    /// Runs the chosen experts.
    fn experts(&mut self, op: &Experts, x: &[f32], route: &[f32], out: &mut [f32]);
    /// Pools each sequence's rows. `out` is `[sequences, width]`.
    fn pool(&mut self, op: &Pool, step: &StepInputs, x: &[f32], out: &mut [f32]);
    /// Divides each row of `width` elements by its length.
    fn normalise(&mut self, width: usize, x: &[f32], out: &mut [f32]);
}

/// All elements of a vector weight as f32.
pub fn decode_vector(weight: &Weight) -> Vec<f32> {
    let mut out = vec![0.0; weight.elements()];
    for row in 0..weight.rows {
        let part = &mut out[row * weight.cols..(row + 1) * weight.cols];
        crate::blocks::decode_row(weight.block, weight.row(row), part);
    }
    out
}
