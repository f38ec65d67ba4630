use super::{OpCost, Rule, TensorShape, element_wise, single};
use crate::{StepShape, Weight};

/// Which statistics a norm divides by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NormKind {
    /// `x / sqrt(mean(x^2) + eps)` (Zhang and Sennrich 2019).
    Rms,
    /// `(x - mean(x)) / sqrt(var(x) + eps)` (Ba et al. 2016).
    Layer,
}

/// Normalises each group of `weight.elements()` values of a row, then scales it by the weight.
#[derive(Clone, Debug)]
pub struct Norm {
    /// The statistics.
    pub kind: NormKind,
    /// Vector of `[group]`; the group is the whole row, or one head of it.
    pub weight: Weight,
    /// Vector of `[group]` added last.
    pub bias: Option<Weight>,
    /// Added to the mean square or variance.
    pub eps: f32,
    /// Added to each weight: 1 where a file stores `weight - 1`.
    pub weight_offset: f32,
}

impl Rule for Norm {
    fn kind(&self) -> &'static str {
        "norm"
    }

    fn output(&self, inputs: &[TensorShape]) -> Result<TensorShape, String> {
        let input = single(inputs)?;
        let group = self.weight.elements();
        if group == 0 || input.width % group != 0 {
            return Err(format!("expected rows of a multiple of {group}, got {}", input.width));
        }
        if let Some(bias) = &self.bias
            && bias.elements() != group
        {
            return Err(format!("expected {group} biases, got {}", bias.elements()));
        }
        Ok(input)
    }

    fn cost(&self, inputs: &[TensorShape], step: &StepShape) -> OpCost {
        let mut cost = element_wise(inputs, step, 5.0);
        let bias = self.bias.as_ref().map_or(0, Weight::len_bytes);
        cost.weight_bytes = (self.weight.len_bytes() + bias) as f64;
        cost
    }

    fn weights<'a>(&'a self, visit: &mut dyn FnMut(&'a Weight)) {
        visit(&self.weight);
        self.bias.iter().for_each(visit);
    }
}
