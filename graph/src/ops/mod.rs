//! The closed set of ops of the layer graph.
//!
//! Every op makes one tensor of `[rows, width]` f32 values. An op knows its shape rule, its weights
//! and its cost; what it computes is defined by the reference interpreter.

mod attention;
mod elementwise;
mod embed;
mod linear;
mod moe;
mod norm;
mod rope;
mod rows;

pub use attention::{Attention, KvWrite};
pub use elementwise::{Activation, Add, Gate, Nonlinearity, Scale, SoftCap};
pub use embed::Embed;
pub use linear::Linear;
pub use moe::{Experts, Route};
pub use norm::{Norm, NormKind};
pub use rope::{Rope, RopeStyle, RopeTable};
pub use rows::{Normalise, Pool, Pooling, SelectRows};

use crate::{Rows, StepShape, Weight};

/// Shape of a tensor: symbolic rows, fixed width.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct TensorShape {
    /// Rows in terms of the step.
    pub rows: Rows,
    /// Elements per row.
    pub width: usize,
}

impl TensorShape {
    /// Bytes of the f32 tensor in a step.
    pub fn bytes(&self, step: &StepShape) -> u64 {
        step.rows(self.rows) * self.width as u64 * 4
    }
}

/// What an op does to the machine in one step.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct OpCost {
    /// Floating point operations (or integer ones) of products with weights: 2 per multiply-add.
    pub weight_flops: f64,
    /// All other arithmetic, attention's products included.
    pub other_flops: f64,
    /// Bytes of weights read.
    pub weight_bytes: f64,
    /// Bytes of activations read.
    pub read_bytes: f64,
    /// Bytes of activations written.
    pub write_bytes: f64,
    /// Bytes of the KV cache read.
    pub kv_read_bytes: f64,
    /// Bytes of the KV cache written.
    pub kv_write_bytes: f64,
}

impl OpCost {
    /// All arithmetic.
    pub fn flops(&self) -> f64 {
        self.weight_flops + self.other_flops
    }

    /// All bytes moved.
    pub fn bytes(&self) -> f64 {
        self.weight_bytes
            + self.read_bytes
            + self.write_bytes
            + self.kv_read_bytes
            + self.kv_write_bytes
    }
}

impl std::ops::AddAssign for OpCost {
    fn add_assign(&mut self, other: Self) {
        self.weight_flops += other.weight_flops;
        self.other_flops += other.other_flops;
        self.weight_bytes += other.weight_bytes;
        self.read_bytes += other.read_bytes;
        self.write_bytes += other.write_bytes;
        self.kv_read_bytes += other.kv_read_bytes;
        self.kv_write_bytes += other.kv_write_bytes;
    }
}

impl std::iter::Sum for OpCost {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::default(), |mut sum, cost| {
            sum += cost;
            sum
        })
    }
}

/// The rule every op follows.
pub(crate) trait Rule {
    /// Name of the op's kind, as the conformance table prints it.
    fn kind(&self) -> &'static str;
    /// Shape of the result, or what was expected and what came.
    fn output(&self, inputs: &[TensorShape]) -> Result<TensorShape, String>;
    /// Arithmetic and traffic beyond reading the inputs and writing the output.
    fn cost(&self, inputs: &[TensorShape], step: &StepShape) -> OpCost;
    /// Calls `visit` for each weight.
    fn weights<'a>(&'a self, _visit: &mut dyn FnMut(&'a Weight)) {}
}

macro_rules! ops {
    ($($name:ident),*) => {
        /// A node's computation.
        #[derive(Clone, Debug)]
        #[allow(missing_docs)] // each variant is documented at its type
        pub enum Op { $($name($name)),* }
        impl Op {
            fn rule(&self) -> &dyn Rule {
                match self { $(Self::$name(op) => op),* }
            }
        }
        $(impl From<$name> for Op { fn from(op: $name) -> Self { Self::$name(op) } })*
    };
}

ops!(
    Embed, Norm, Linear, Rope, KvWrite, Attention, Gate, Activation, Add, Scale, SoftCap, Route,
    Experts, SelectRows, Pool, Normalise
);

impl Op {
    /// Name of the op's kind, as the conformance table prints it.
    pub fn kind(&self) -> &'static str {
        self.rule().kind()
    }

    /// Shape of the result, or what was expected and what came.
    pub fn output(&self, inputs: &[TensorShape]) -> Result<TensorShape, String> {
        self.rule().output(inputs)
    }

    /// Cost in a step, traffic of inputs and output included.
    pub fn cost(&self, inputs: &[TensorShape], output: TensorShape, step: &StepShape) -> OpCost {
        let mut cost = self.rule().cost(inputs, step);
        cost.read_bytes += inputs.iter().map(|shape| shape.bytes(step) as f64).sum::<f64>();
        cost.write_bytes += output.bytes(step) as f64;
        cost
    }

    /// All weights of the op.
    pub fn weights(&self) -> Vec<&Weight> {
        let mut all = Vec::new();
        self.rule().weights(&mut |weight| all.push(weight));
        all
    }
}

/// The only input of an op that has one, or the message that there are more or fewer.
fn single(inputs: &[TensorShape]) -> Result<TensorShape, String> {
    match inputs {
        [one] => Ok(*one),
        _ => Err(format!("expected 1 input, got {}", inputs.len())),
    }
}

/// Two inputs of equal shape.
fn pair(inputs: &[TensorShape]) -> Result<TensorShape, String> {
    match inputs {
        [a, b] if a == b => Ok(*a),
        [a, b] => Err(format!("expected two equal shapes, got {a:?} and {b:?}")),
        _ => Err(format!("expected 2 inputs, got {}", inputs.len())),
    }
}

/// Cost of element-wise work: `per_element` operations on each element of the first input.
fn element_wise(inputs: &[TensorShape], step: &StepShape, per_element: f64) -> OpCost {
    let elements = inputs.first().map_or(0, |shape| step.rows(shape.rows) * shape.width as u64);
    OpCost { other_flops: elements as f64 * per_element, ..OpCost::default() }
}
