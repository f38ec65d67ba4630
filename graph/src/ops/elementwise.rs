use super::{OpCost, Rule, TensorShape, element_wise, pair, single};
use crate::StepShape;

/// A scalar function between two linears.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Nonlinearity {
    /// `x / (1 + exp(-x))`.
    Silu,
    /// `x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))` (Hendrycks and Gimpel 2016, tanh form).
    GeluTanh,
    /// `x/2 (1 + erf(x / sqrt 2))`.
    GeluErf,
}

/// `f(gate) * up`: inputs `[gate, up]` of equal shape.
#[derive(Clone, Copy, Debug)]
pub struct Gate {
    /// The function on the gate.
    pub function: Nonlinearity,
}

/// `f(x)`.
#[derive(Clone, Copy, Debug)]
pub struct Activation {
    /// The function.
    pub function: Nonlinearity,
}

/// Sum of two tensors of equal shape.
#[derive(Clone, Copy, Debug)]
pub struct Add;

/// Product with a number.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// The number.
    pub factor: f32,
}

/// `cap * tanh(x / cap)`.
#[derive(Clone, Copy, Debug)]
pub struct SoftCap {
    /// Bound of the result's magnitude.
    pub cap: f32,
}

macro_rules! rules {
    ($($type:ident $kind:literal $shape:ident $flops:literal;)*) => {
        $(impl Rule for $type {
            fn kind(&self) -> &'static str {
                $kind
            }
            fn output(&self, inputs: &[TensorShape]) -> Result<TensorShape, String> {
                $shape(inputs)
            }
            fn cost(&self, inputs: &[TensorShape], step: &StepShape) -> OpCost {
                element_wise(inputs, step, $flops)
            }
        })*
    };
}

rules! {
    Gate "gate" pair 12.0;
    Activation "activation" single 11.0;
    Add "add" pair 1.0;
    Scale "scale" single 1.0;
    SoftCap "soft_cap" single 12.0;
}
