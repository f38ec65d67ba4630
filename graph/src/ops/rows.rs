use super::{OpCost, Rule, TensorShape, element_wise, single};
use crate::{Rows, StepShape};

/// Keeps the rows whose output is wanted: `[tokens, width] -> [outputs, width]`.
#[derive(Clone, Copy, Debug)]
pub struct SelectRows;

impl Rule for SelectRows {
    fn kind(&self) -> &'static str {
        "select_rows"
    }

    fn output(&self, inputs: &[TensorShape]) -> Result<TensorShape, String> {
        let input = single(inputs)?;
        if input.rows != Rows::Tokens {
            return Err(format!("expected token rows, got {:?}", input.rows));
        }
        Ok(TensorShape { rows: Rows::Outputs, width: input.width })
    }

    fn cost(&self, _inputs: &[TensorShape], _step: &StepShape) -> OpCost {
        OpCost::default()
    }
}

/// How an encoder's rows become one embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// Mean over all rows of the sequence.
    Mean,
    /// The first row.
    Cls,
    /// The last row.
    Last,
}

/// One row per sequence: `[tokens, width] -> [sequences, width]`. All rows of a sequence must be in
/// the same step.
#[derive(Clone, Copy, Debug)]
pub struct Pool {
    /// How.
    pub pooling: Pooling,
}

impl Rule for Pool {
    fn kind(&self) -> &'static str {
        "pool"
    }

    fn output(&self, inputs: &[TensorShape]) -> Result<TensorShape, String> {
        let input = single(inputs)?;
        if input.rows != Rows::Tokens {
            return Err(format!("expected token rows, got {:?}", input.rows));
        }
        Ok(TensorShape { rows: Rows::Sequences, width: input.width })
    }

    fn cost(&self, inputs: &[TensorShape], step: &StepShape) -> OpCost {
        element_wise(inputs, step, 1.0)
    }
}

/// Divides each row by its Euclidean length (a zero row stays zero).
#[derive(Clone, Copy, Debug)]
pub struct Normalise;

impl Rule for Normalise {
    fn kind(&self) -> &'static str {
        "normalise"
    }

    fn output(&self, inputs: &[TensorShape]) -> Result<TensorShape, String> {
        single(inputs)
    }

    fn cost(&self, inputs: &[TensorShape], step: &StepShape) -> OpCost {
        element_wise(inputs, step, 3.0)
    }
}
