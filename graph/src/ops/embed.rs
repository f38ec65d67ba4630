use super::{OpCost, Rule, TensorShape};
use crate::{Rows, StepShape, Weight};

/// Looks up each row's token in a table: `[tokens] -> [tokens, width]`.
#[derive(Clone, Debug)]
pub struct Embed {
    /// Table of `[vocabulary, width]`.
    pub table: Weight,
    /// Every looked-up row is multiplied by this.
    pub scale: f32,
    /// Table of `[positions, width]` added by position (encoders).
    pub positions: Option<Weight>,
    /// Table of segment types; row 0 is added (encoders with one segment).
    pub types: Option<Weight>,
}

impl Rule for Embed {
    fn kind(&self) -> &'static str {
        "embed"
    }

    fn output(&self, inputs: &[TensorShape]) -> Result<TensorShape, String> {
        if !inputs.is_empty() {
            return Err(format!("expected no input, got {}", inputs.len()));
        }
        for table in [&self.positions, &self.types].into_iter().flatten() {
            if table.cols != self.table.cols {
                let (want, name, got) = (self.table.cols, &table.name, table.cols);
                return Err(format!("expected rows of {want} in {name}, got {got}"));
            }
        }
        Ok(TensorShape { rows: Rows::Tokens, width: self.table.cols })
    }

    fn cost(&self, _inputs: &[TensorShape], step: &StepShape) -> OpCost {
        let row_bytes = |table: &Option<Weight>| table.as_ref().map_or(0, Weight::row_bytes);
        let per_token = self.table.row_bytes() + row_bytes(&self.positions);
        OpCost {
            weight_bytes: step.tokens as f64 * per_token as f64 + row_bytes(&self.types) as f64,
            other_flops: step.tokens as f64 * self.table.cols as f64,
            ..OpCost::default()
        }
    }

    fn weights<'a>(&'a self, visit: &mut dyn FnMut(&'a Weight)) {
        visit(&self.table);
        self.positions.iter().for_each(&mut *visit);
        self.types.iter().for_each(visit);
    }
}
