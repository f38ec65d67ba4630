use super::{Nonlinearity, OpCost, Rule, TensorShape, single};
use crate::{StepShape, Weight};

/// Chooses experts for each row: `[tokens, in] -> [tokens, 2 * top_k]`, the chosen experts' numbers
/// (as floats, in the order of falling probability, lower number first on ties), then their shares.
#[derive(Clone, Debug)]
pub struct Route {
    /// Matrix of `[experts, in]`; the softmax over its products gives the probabilities.
    pub weight: Weight,
    /// Experts per row.
    pub top_k: usize,
    /// Are the chosen shares divided by their sum?
    pub renormalise: bool,
}

impl Rule for Route {
    fn kind(&self) -> &'static str {
        "route"
    }

    fn output(&self, inputs: &[TensorShape]) -> Result<TensorShape, String> {
        let input = single(inputs)?;
        let (cols, experts) = (self.weight.cols, self.weight.rows);
        if input.width != cols {
            return Err(format!("expected rows of {cols}, got {}", input.width));
        }
        if self.top_k == 0 || self.top_k > experts {
            return Err(format!("expected 1 to {experts} experts per token, got {}", self.top_k));
        }
        Ok(TensorShape { rows: input.rows, width: 2 * self.top_k })
    }

    fn cost(&self, _inputs: &[TensorShape], step: &StepShape) -> OpCost {
        OpCost {
            weight_flops: 2.0 * step.tokens as f64 * self.weight.elements() as f64,
            weight_bytes: self.weight.len_bytes() as f64,
            other_flops: step.tokens as f64 * self.weight.rows as f64 * 12.0,
            ..OpCost::default()
        }
    }

    fn weights<'a>(&'a self, visit: &mut dyn FnMut(&'a Weight)) {
        visit(&self.weight);
    }
}

/// Gated feed-forward experts: inputs `[x, route]`, result
/// `sum over chosen e of share_e * down_e(f(gate_e(x)) * up_e(x))`.
#[derive(Clone, Debug)]
pub struct Experts {
    /// Per expert, `[ffn, in]`.
    pub gate: Vec<Weight>,
    /// Per expert, `[ffn, in]`.
    pub up: Vec<Weight>,
    /// Per expert, `[out, ffn]`.
    pub down: Vec<Weight>,
    /// The function on the gate.
    pub function: Nonlinearity,
    /// Experts per row.
    pub top_k: usize,
}

impl Experts {
    fn expert_weights(&self, expert: usize) -> [&Weight; 3] {
        [&self.gate[expert], &self.up[expert], &self.down[expert]]
    }
}

impl Rule for Experts {
    fn kind(&self) -> &'static str {
        "experts"
    }

    fn output(&self, inputs: &[TensorShape]) -> Result<TensorShape, String> {
        let [x, route] = inputs else {
            return Err(format!("expected 2 inputs, got {}", inputs.len()));
        };
        if route.width != 2 * self.top_k {
            return Err(format!("expected a route of {}, got {}", 2 * self.top_k, route.width));
        }
        let count = self.gate.len();
        if count == 0 || self.up.len() != count || self.down.len() != count {
            return Err(format!(
                "expected {count} experts, got {}/{}",
                self.up.len(),
                self.down.len()
            ));
        }
        let ffn = self.gate[0].rows;
        for expert in 0..count {
            let [gate, up, down] = self.expert_weights(expert);
            let right = (gate.rows, gate.cols) == (ffn, x.width)
                && (up.rows, up.cols) == (ffn, x.width)
                && (down.rows, down.cols) == (x.width, ffn);
            if !right {
                return Err(format!("expert {expert}: expected {ffn} x {}, got {gate:?}", x.width));
            }
        }
        Ok(*x)
    }

    fn cost(&self, _inputs: &[TensorShape], step: &StepShape) -> OpCost {
        let count = self.gate.len() as f64;
        let each = self.expert_weights(0);
        let elements: f64 = each.iter().map(|weight| weight.elements() as f64).sum();
        let bytes: f64 = each.iter().map(|weight| weight.len_bytes() as f64).sum();
        let tokens = step.tokens as f64;
        // Expected number of different experts if each token chooses independently and evenly.
        let touched = count * (1.0 - (1.0 - self.top_k as f64 / count).powf(tokens));
        OpCost {
            weight_flops: 2.0 * tokens * self.top_k as f64 * elements,
            weight_bytes: touched * bytes,
            other_flops: tokens * self.top_k as f64 * self.gate[0].rows as f64 * 12.0,
            ..OpCost::default()
        }
    }

    fn weights<'a>(&'a self, visit: &mut dyn FnMut(&'a Weight)) {
        for list in [&self.gate, &self.up, &self.down] {
            list.iter().for_each(&mut *visit);
        }
    }
}
