//! Segments of the layer graph as ONNX models of static shapes, for processors that are compiled for
//! ahead of time.
//!
//! A segment becomes [`Stage`]s: parts whose tensors have as many rows ([`Part`]), and choices of rows
//! between them, which are copies. A part's weights are packed once for a numeric form
//! ([`PartWeights`]); with them [`model`] writes an ONNX model for any number of rows, in ops of the
//! standard's opset 17 that every provider knows (and `MatMulNBits` of `com.microsoft` for weights of
//! four bits). The weights lie beside the model as external data, so that models of several row counts
//! share them.
//!
//! Attention, keys and values, token tables and mixtures are not here: [`refusal`] says so.

mod builder;
mod codes;
mod emit;
mod form;
mod identity;
mod pack;
mod proto;
mod rope;
mod stages;
mod support;

pub use builder::{Model, TensorIo, WEIGHTS_FILE, model};
pub use form::{FormError, NumericForm};
pub use identity::{describe, identity};
pub use pack::PartWeights;
pub use stages::{Part, Stage, stages};
pub use support::refusal;

/// Version of what is built here: part of every cache key.
pub const KERNEL_SET: &str = "1";
