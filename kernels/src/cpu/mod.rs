//! Kernels for processors: several threads, vector instructions chosen at run time, weights read in
//! place.
//!
//! All kernels are plain functions over slices that take a [`ThreadPool`] and, where they need
//! working memory, a [`Scratch`]. Matrices of activations are row-major f32, `[rows, columns]`.
//!
//! A row's result is the same bit for bit whatever other rows are in the call, wherever it stands
//! among them, however many threads there are, and whichever [`Level`] of instructions runs: sums
//! have one order (see `lanes`), whole-number sums are exact, and what is fused is fused everywhere.

mod attention;
mod elementwise;
mod host;
mod kv;
mod lanes;
mod level;
mod linear;
mod math;
mod norm;
mod pool;
mod rope;
mod scratch;
mod simd;
#[cfg(test)]
mod tests;

pub use attention::{Attention, AttentionRow, attention};
pub use elementwise::{
    Activation, activate, add, add_bias, add_scaled, gated, gated_from, gather_rows, multiply,
    multiply_rows, scale, scatter_add, softcap, sum,
};
pub use host::CpuKernels;
pub use kv::{KvFormat, KvLayout, KvSlot, kv_write};
pub use level::Level;
pub use linear::{Form, Input, Int8Support, Matrix, Projection, int8_support, linear, linear_many};
pub use norm::{l2_normalise, layer_norm, rms_norm, rms_norm_in_place, softmax};
pub use pool::ThreadPool;
pub use rope::{RopePairs, rope, rope_from};
pub use scratch::Scratch;
