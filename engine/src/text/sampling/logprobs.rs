//! Log probabilities of the raw logits, as replies show them.

use super::exp;
use super::select::{self, Candidate};

/// The lowest log probability that is shown.
pub const LOGPROB_FLOOR: f64 = -9999.0;

/// Most tokens that are listed beside the chosen one.
pub const TOP_LOGPROBS_MAX: usize = 20;

/// A token with its log probability.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Logprob {
    /// Token id.
    pub id: u32,
    /// Natural logarithm of its probability under the raw logits, at least [`LOGPROB_FLOOR`].
    pub logprob: f64,
}

/// Log probabilities of one step.
#[derive(Debug, Clone, Default)]
pub struct Logprobs {
    /// Copy of the raw logits: the token is chosen after they were changed.
    raw: Vec<f32>,
    max: f32,
    log_sum: f64,
    top: Vec<Logprob>,
    candidates: Vec<Candidate>,
}

impl Logprobs {
    /// Reads `logits`, before anything changes them, and keeps the `count` most probable tokens.
    pub(super) fn read(&mut self, logits: &[f32], count: usize) {
        self.raw.clear();
        self.raw.extend_from_slice(logits);
        self.max = exp::max(logits);
        self.log_sum = exp::sum_exp(logits, self.max, 1.0).ln();
        self.top.clear();
        if count > 0 {
            select::top_k(logits, count, &mut self.candidates);
            let mut top = std::mem::take(&mut self.top);
            top.extend(self.candidates.iter().map(|candidate| Logprob {
                id: candidate.id,
                logprob: self.of_logit(candidate.logit),
            }));
            self.top = top;
        }
    }

    fn of_logit(&self, logit: f32) -> f64 {
        let logprob = f64::from(logit) - f64::from(self.max) - self.log_sum;
        // also for a token that has no logit, and where all logits are −∞
        if logprob >= LOGPROB_FLOOR { logprob } else { LOGPROB_FLOOR }
    }

    /// The log probability of any token of this step.
    pub fn of(&self, id: u32) -> f64 {
        self.of_logit(self.raw.get(id as usize).copied().unwrap_or(f32::NEG_INFINITY))
    }

    /// The most probable tokens: by log probability, of equal ones the lower id first. The chosen
    /// token is among them only if it is that probable.
    pub fn top(&self) -> &[Logprob] {
        &self.top
    }
}
