use std::sync::Arc;

use super::{OpCost, Rule, TensorShape, element_wise, single};
use crate::StepShape;

/// Which elements of a head turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RopeStyle {
    /// `(2i, 2i + 1)`, as in the llama family's GGUF files.
    Interleaved,
    /// `(i, i + d/2)`, as in Hugging Face files and GGUF files of other families.
    Halves,
}

/// Angles per position of each pair (Su et al. 2021), scaling already applied.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeTable {
    /// Radians per position for each pair.
    pub frequencies: Vec<f32>,
    /// The same for sequences that may outgrow the model's first context (longrope).
    pub long_frequencies: Option<Vec<f32>>,
    /// Factor on sine and cosine.
    pub magnitude: f32,
}

impl RopeTable {
    /// Frequencies for a sequence.
    pub fn for_sequence(&self, long: bool) -> &[f32] {
        match &self.long_frequencies {
            Some(frequencies) if long => frequencies,
            _ => &self.frequencies,
        }
    }

    /// Cosine and sine of pair `pair` at `position`, magnitude applied.
    pub fn turn(&self, position: u32, pair: usize, long: bool) -> (f32, f32) {
        let angle = f64::from(position) * f64::from(self.for_sequence(long)[pair]);
        let (sin, cos) = angle.sin_cos();
        let magnitude = f64::from(self.magnitude);
        ((cos * magnitude) as f32, (sin * magnitude) as f32)
    }
}

/// Rotary position embedding of each head; elements past the table's pairs stay as they are.
#[derive(Clone, Debug)]
pub struct Rope {
    /// Elements per head.
    pub head_dim: usize,
    /// Pairing.
    pub style: RopeStyle,
    /// Angles; one table serves all layers that share it.
    pub table: Arc<RopeTable>,
}

impl Rule for Rope {
    fn kind(&self) -> &'static str {
        "rope"
    }

    fn output(&self, inputs: &[TensorShape]) -> Result<TensorShape, String> {
        let input = single(inputs)?;
        if self.head_dim == 0 || input.width % self.head_dim != 0 {
            return Err(format!(
                "expected heads of {}, got rows of {}",
                self.head_dim, input.width
            ));
        }
        let pairs = self.table.frequencies.len();
        let long = self.table.long_frequencies.as_ref().map_or(pairs, Vec::len);
        if 2 * pairs > self.head_dim || long != pairs {
            let most = self.head_dim / 2;
            return Err(format!("expected at most {most} frequencies, got {pairs} and {long}"));
        }
        Ok(input)
    }

    fn cost(&self, inputs: &[TensorShape], step: &StepShape) -> OpCost {
        element_wise(inputs, step, 3.0)
    }
}
