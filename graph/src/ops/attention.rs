use super::{OpCost, Rule, TensorShape};
use crate::{Rows, StepShape};

/// Stores this step's keys and values in a layer's KV pages. Makes a tensor of width 0 that
/// [`Attention`] takes as proof that it ran.
#[derive(Clone, Copy, Debug)]
pub struct KvWrite {
    /// Index of the layer's KV pages.
    pub layer: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Elements of a key or value head.
    pub head_dim: usize,
}

impl Rule for KvWrite {
    fn kind(&self) -> &'static str {
        "kv_write"
    }

    fn output(&self, inputs: &[TensorShape]) -> Result<TensorShape, String> {
        let width = self.kv_heads * self.head_dim;
        match inputs {
            [key, value] if key.width == width && value.width == width => {
                Ok(TensorShape { rows: Rows::Tokens, width: 0 })
            }
            _ => Err(format!("expected keys and values of {width}, got {inputs:?}")),
        }
    }

    fn cost(&self, _inputs: &[TensorShape], step: &StepShape) -> OpCost {
        let elements = step.tokens as f64 * (2 * self.kv_heads * self.head_dim) as f64;
        OpCost { kv_write_bytes: elements * step.kv_element_bytes, ..OpCost::default() }
    }
}

/// Attention of this step's queries over a layer's KV pages, several query heads per KV head.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// Index of the layer's KV pages.
    pub layer: usize,
    /// Query heads; a multiple of `kv_heads`.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// Factor on the products before the softmax.
    pub scale: f32,
    /// A query sees at most this many positions, itself included.
    pub window: Option<u32>,
    /// Does a query see only positions up to its own?
    pub causal: bool,
    /// `cap * tanh(x / cap)` on the scaled products.
    pub softcap: Option<f32>,
}

impl Attention {
    /// Positions that the query at `position` sees, given the sequence's length after this step.
    pub fn visible(&self, position: u32, length: u32) -> std::ops::Range<u32> {
        let end = if self.causal { position + 1 } else { length };
        let first = self.window.map_or(0, |window| (position + 1).saturating_sub(window));
        first..end
    }
}

impl Rule for Attention {
    fn kind(&self) -> &'static str {
        "attention"
    }

    fn output(&self, inputs: &[TensorShape]) -> Result<TensorShape, String> {
        let width = self.heads * self.head_dim;
        if self.kv_heads == 0 || !self.heads.is_multiple_of(self.kv_heads) {
            let (heads, kv) = (self.heads, self.kv_heads);
            return Err(format!("expected a multiple of {kv} KV heads, got {heads} heads"));
        }
        match inputs {
            [query, written] if query.width == width && written.width == 0 => Ok(*query),
            _ => Err(format!("expected queries of {width} and a KV write, got {inputs:?}")),
        }
    }

    fn cost(&self, _inputs: &[TensorShape], step: &StepShape) -> OpCost {
        let per_sequence = step.tokens as f64 / step.sequences.max(1) as f64;
        let past = step.past as f64;
        let window = self.window.map_or(f64::INFINITY, f64::from);
        let mean_seen = if self.causal {
            mean_visible(past, per_sequence, window)
        } else {
            (past + per_sequence).min(window)
        };
        let head = self.head_dim as f64;
        let touched = (past + per_sequence).min(window + per_sequence) * step.sequences as f64;
        OpCost {
            // Two products of 2 operations per element, and about 8 for the softmax.
            other_flops: step.tokens as f64 * self.heads as f64 * mean_seen * (4.0 * head + 8.0),
            kv_read_bytes: touched * (2 * self.kv_heads) as f64 * head * step.kv_element_bytes,
            ..OpCost::default()
        }
    }
}

/// Mean number of positions seen by `tokens` causal queries after `past` positions.
fn mean_visible(past: f64, tokens: f64, window: f64) -> f64 {
    let (first, last) = (past + 1.0, past + tokens);
    if last <= window {
        return f64::midpoint(first, last);
    }
    if first >= window {
        return window;
    }
    let growing = window - first;
    (growing * f64::midpoint(first, window) + (tokens - growing) * window) / tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mean_visible_equals_the_counted_mean() {
        for (past, tokens, window) in [(0, 10, 100), (0, 10, 4), (7, 5, 9), (20, 3, 8), (0, 1, 1)] {
            let counted: u32 = (past..past + tokens).map(|p: u32| (p + 1).min(window)).sum();
            let mean = mean_visible(f64::from(past), f64::from(tokens), f64::from(window));
            let want = f64::from(counted) / f64::from(tokens);
            assert!((mean - want).abs() < 0.51, "{past} {tokens} {window}: {mean} for {want}");
        }
    }

    #[test]
    fn window_and_causality_bound_what_is_visible() {
        let op = Attention {
            layer: 0,
            heads: 1,
            kv_heads: 1,
            head_dim: 4,
            scale: 1.0,
            window: Some(3),
            causal: true,
            softcap: None,
        };
        assert_eq!(op.visible(0, 10), 0..1);
        assert_eq!(op.visible(5, 10), 3..6);
        assert_eq!(Attention { causal: false, window: None, ..op }.visible(5, 10), 0..10);
    }
}
