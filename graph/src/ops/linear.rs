use super::{OpCost, Rule, TensorShape, single};
use crate::{StepShape, Weight};

/// Product with a weight matrix: `[rows, in] -> [rows, out]`, `y = x W^T + b`.
#[derive(Clone, Debug)]
pub struct Linear {
    /// Matrix of `[out, in]`.
    pub weight: Weight,
    /// Vector of `[out]`.
    pub bias: Option<Weight>,
}

impl Rule for Linear {
    fn kind(&self) -> &'static str {
        "linear"
    }

    fn output(&self, inputs: &[TensorShape]) -> Result<TensorShape, String> {
        let input = single(inputs)?;
        if input.width != self.weight.cols {
            return Err(format!("expected rows of {}, got {}", self.weight.cols, input.width));
        }
        if let Some(bias) = &self.bias
            && bias.elements() != self.weight.rows
        {
            let (want, got) = (self.weight.rows, bias.elements());
            return Err(format!("expected {want} biases in {}, got {got}", bias.name));
        }
        Ok(TensorShape { rows: input.rows, width: self.weight.rows })
    }

    fn cost(&self, inputs: &[TensorShape], step: &StepShape) -> OpCost {
        let rows = inputs.first().map_or(0, |shape| step.rows(shape.rows)) as f64;
        let bytes = self.weight.len_bytes() + self.bias.as_ref().map_or(0, Weight::len_bytes);
        OpCost {
            weight_flops: 2.0 * rows * self.weight.elements() as f64,
            weight_bytes: if rows > 0.0 { bytes as f64 } else { 0.0 },
            ..OpCost::default()
        }
    }

    fn weights<'a>(&'a self, visit: &mut dyn FnMut(&'a Weight)) {
        visit(&self.weight);
        self.bias.iter().for_each(visit);
    }
}
