//! The filters between penalties and the draw.

use super::exp;
use super::prefix::{Prefix, Target};
use super::select::{self, Candidate};

/// The tokens that are left: all of the vocabulary, or a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    /// All logits above −∞.
    All,
    /// `list`, in any order.
    Listed,
}

/// Logits of one step on their way through the filters, with working memory for the next step.
#[derive(Debug, Default)]
pub(super) struct Filters {
    list: Vec<Candidate>,
    next: Vec<Candidate>,
    near: Vec<Candidate>,
    prefix: Prefix,
}

/// How far below the maximum tokens are near it. As a rule a few hundred are, and they have nearly
/// all of the probability.
const NEAR: f32 = 8.0;

/// One step's state. Probabilities are normalised over what is left, before each filter.
pub(super) struct Pass<'a> {
    memory: &'a mut Filters,
    logits: &'a [f32],
    left: Left,
    max: f32,
}

impl Filters {
    /// Begins with all `logits` above −∞; `None` if there are none.
    pub(super) fn begin<'a>(&'a mut self, logits: &'a [f32]) -> Option<Pass<'a>> {
        let max = exp::max(logits);
        (max > f32::NEG_INFINITY).then_some(Pass { memory: self, logits, left: Left::All, max })
    }
}

impl Pass<'_> {
    /// Keeps the `k` largest.
    pub(super) fn top_k(&mut self, k: usize) {
        select::top_k(self.logits, k, &mut self.memory.list);
        self.left = Left::Listed;
    }

    /// Keeps the tokens whose surprise is nearest to the expected one, until they have
    /// probability `p` together (Meister et al. 2022).
    pub(super) fn typical_p(&mut self, p: f64) {
        let sum = self.sum();
        let (max, log_sum) = (self.max, sum.ln());
        let surprise = |logit: f32| log_sum - f64::from(logit - max);
        let expected: f64 = self.fold(0.0, |entropy, candidate| {
            let power = f64::from(exp::exp_nonpositive(candidate.logit - max));
            entropy + power / sum * surprise(candidate.logit)
        });
        self.keep(false, Target::Reach(p * sum), |logit| (surprise(logit) - expected).abs() as f32);
    }

    /// Keeps the most probable tokens until they have probability `p` together.
    pub(super) fn top_p(&mut self, p: f64) {
        let max = self.max;
        let target = Target::Reach(p * self.sum());
        let near = self.near(1.0, target);
        self.keep(near, target, |logit| max - logit);
    }

    /// Keeps the tokens that are at least `p` times as probable as the most probable one.
    pub(super) fn min_p(&mut self, p: f64) {
        // over the most probable one's probability, the sum of all cancels out
        let max = self.max;
        if self.left == Left::All {
            // a little lower, so that rounding of the logarithm loses none
            let bar = max + p.ln() as f32 - 1e-3 * (1.0 + max.abs());
            select::at_least(self.logits, bar, &mut self.memory.list);
            self.left = Left::Listed;
        }
        self.memory.list.retain(|candidate| {
            f64::from(exp::exp_nonpositive(candidate.logit - max)) >= p || candidate.logit == max
        });
    }

    /// Divides by the temperature and draws: the first token, from the most probable one on,
    /// where the sum of probabilities exceeds `u`.
    pub(super) fn draw(mut self, temperature: f32, u: f64) -> u32 {
        let max = self.max;
        let score = |candidate: Candidate| {
            // dividing what lies below the maximum, not the logit, cannot leave the range of f32
            let below = (max - candidate.logit) / temperature;
            (below, exp::exp_nonpositive(-below))
        };
        let total = match self.left {
            Left::All => exp::sum_exp(self.logits, max, temperature),
            Left::Listed => self.fold(0.0, |sum, c| sum + f64::from(score(c).1)),
        };
        let target = Target::Exceed(u * total);
        let near = self.near(temperature, target);
        let Filters { list, near: nearest, prefix, .. } = self.memory;
        let drawn = match self.left {
            _ if near => prefix.find(|| nearest.iter().copied(), score, target, None),
            Left::All => prefix.find(|| select::finite(self.logits), score, target, None),
            Left::Listed => prefix.find(|| list.iter().copied(), score, target, None),
        };
        drawn.expect("at least one token is left").id
    }

    /// Collects the tokens near the maximum, if they alone meet the target.
    fn near(&mut self, temperature: f32, target: Target) -> bool {
        if self.left == Left::Listed {
            return false;
        }
        let max = self.max;
        let near = &mut self.memory.near;
        select::at_least(self.logits, max - NEAR * temperature, near);
        let power = |logit: f32| f64::from(exp::exp_nonpositive((logit - max) / temperature));
        target.met(near.iter().map(|candidate| power(candidate.logit)).sum())
    }

    /// Keeps tokens in the order of `key` until the target is met; of those near the maximum only,
    /// where these are known to meet it.
    fn keep(&mut self, near: bool, target: Target, key: impl Fn(f32) -> f32) {
        let max = self.max;
        let score = |candidate: Candidate| {
            (key(candidate.logit), exp::exp_nonpositive(candidate.logit - max))
        };
        let Filters { list, next, near: nearest, prefix } = &mut *self.memory;
        next.clear();
        match self.left {
            _ if near => prefix.find(|| nearest.iter().copied(), score, target, Some(next)),
            Left::All => prefix.find(|| select::finite(self.logits), score, target, Some(next)),
            Left::Listed => prefix.find(|| list.iter().copied(), score, target, Some(next)),
        };
        std::mem::swap(list, next);
        self.max = list.iter().fold(f32::NEG_INFINITY, |max, c| max.max(c.logit));
        self.left = Left::Listed;
    }

    /// Σ e^(logit − max) over what is left.
    fn sum(&self) -> f64 {
        let max = self.max;
        match self.left {
            Left::All => exp::sum_exp(self.logits, max, 1.0),
            Left::Listed => self.fold(0.0, |sum, candidate| {
                sum + f64::from(exp::exp_nonpositive(candidate.logit - max))
            }),
        }
    }

    fn fold(&self, start: f64, f: impl Fn(f64, Candidate) -> f64) -> f64 {
        match self.left {
            Left::All => select::finite(self.logits).fold(start, f),
            Left::Listed => self.memory.list.iter().copied().fold(start, f),
        }
    }
}
