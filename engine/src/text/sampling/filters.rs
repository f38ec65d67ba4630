//! The filters between penalties and the draw.

use super::bands::{self, Keyed};
use super::exp;
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
    band: Vec<Keyed>,
}

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
        let distance = |candidate: Candidate| (surprise(candidate.logit) - expected).abs() as f32;
        self.keep_until(p * sum, distance);
    }

    /// Keeps the most probable tokens until they have probability `p` together.
    pub(super) fn top_p(&mut self, p: f64) {
        let max = self.max;
        let target = p * self.sum();
        self.keep_until(target, |candidate| max - candidate.logit);
    }

    /// Keeps the tokens that are at least `p` times as probable as the most probable one.
    pub(super) fn min_p(&mut self, p: f64) {
        // over the most probable one's probability, the sum of all cancels out
        let max = self.max;
        let keep = |candidate: &Candidate| {
            f64::from(exp::exp_nonpositive(candidate.logit - max)) >= p || candidate.logit == max
        };
        match self.left {
            Left::All => {
                self.memory.list.clear();
                self.memory.list.extend(select::finite(self.logits).filter(keep));
                self.left = Left::Listed;
            }
            Left::Listed => self.memory.list.retain(keep),
        }
    }

    /// Divides by the temperature and draws: the first token, from the most probable one on,
    /// where the sum of probabilities exceeds `u`.
    pub(super) fn draw(mut self, temperature: f32, u: f64) -> u32 {
        // dividing what lies below the maximum, not the logits, cannot leave the range of f32
        let max = self.max;
        let power = |logit: f32| f64::from(exp::exp_nonpositive((logit - max) / temperature));
        let total = match self.left {
            Left::All => exp::sum_exp(self.logits, max, temperature),
            Left::Listed => self.fold(0.0, |sum, candidate| sum + power(candidate.logit)),
        };
        let target = u * total;
        let mut sum = 0.0;
        let mut chosen = None;
        self.visit(
            |candidate| (max - candidate.logit) / temperature,
            |candidate| {
                sum += power(candidate.logit);
                chosen = Some(candidate.id);
                sum <= target
            },
        );
        chosen.expect("at least one token is left")
    }

    /// Keeps tokens in the order of `key` until e^(logit − max) sums up to `target`.
    fn keep_until(&mut self, target: f64, key: impl Fn(Candidate) -> f32) {
        let max = self.max;
        let mut sum = 0.0;
        let mut kept = std::mem::take(&mut self.memory.next);
        kept.clear();
        self.visit(key, |candidate| {
            kept.push(candidate);
            sum += f64::from(exp::exp_nonpositive(candidate.logit - max));
            sum < target
        });
        self.max = kept.iter().fold(f32::NEG_INFINITY, |max, c| max.max(c.logit));
        self.memory.next = std::mem::replace(&mut self.memory.list, kept);
        self.left = Left::Listed;
    }

    fn visit(&mut self, key: impl Fn(Candidate) -> f32, visit: impl FnMut(Candidate) -> bool) {
        let Filters { list, band, .. } = &mut *self.memory;
        match self.left {
            Left::All => bands::visit(|| select::finite(self.logits), key, band, visit),
            Left::Listed => bands::visit(|| list.iter().copied(), key, band, visit),
        }
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
