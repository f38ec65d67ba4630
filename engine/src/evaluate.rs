//! Measures of a model's quality: perplexity, and how far two sets of logits are apart.

use crate::runner::{Outputs, RunError, Runner};

/// Tokens of a window.
pub const WINDOW: usize = 512;

/// Perplexity of a text (llama.cpp's method: windows of [`WINDOW`] tokens without overlap, the KV
/// cache cleared for each, losses of the second half counted).
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Perplexity {
    /// `exp(nll)`.
    pub ppl: f64,
    /// Standard error of `ppl`.
    pub stderr: f64,
    /// Mean of `-ln p(next token)`.
    pub nll: f64,
    /// Tokens of the whole text.
    pub tokens: usize,
    /// Windows counted.
    pub windows: usize,
}

/// A text that cannot be measured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvaluateError {
    /// Fewer than two windows.
    #[error(
        "expected a text of at least {} tokens (2 windows of {WINDOW}), got {got}",
        2 * WINDOW
    )]
    TooShort {
        /// Tokens of the text.
        got: usize,
    },
    /// A step failed.
    #[error(transparent)]
    Run(#[from] RunError),
}

/// `ln(sum(exp(logits)))` in f64.
pub fn log_sum_exp(logits: &[f32]) -> f64 {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&l| f64::from(l - most).exp()).sum();
    f64::from(most) + sum.ln()
}

/// Perplexity over `tokens`. `bos` replaces the first token of each window where the model adds one.
/// `progress` gets the windows done and in all, and the perplexity so far.
pub fn perplexity(
    runner: &mut Runner,
    tokens: &[u32],
    bos: Option<u32>,
    mut progress: impl FnMut(usize, usize, f64),
) -> Result<Perplexity, EvaluateError> {
    let windows = tokens.len() / WINDOW;
    if windows < 2 {
        return Err(EvaluateError::TooShort { got: tokens.len() });
    }
    let (mut sum, mut squares, mut count) = (0.0, 0.0, 0.0);
    for (index, window) in tokens.chunks_exact(WINDOW).enumerate() {
        let mut input = window.to_vec();
        if let Some(bos) = bos {
            input[0] = bos;
        }
        let mut sequence = runner.begin(WINDOW);
        let result =
            runner.feed(&mut sequence, &input, Outputs::From(WINDOW / 2), |row, logits| {
                // The last position has no next token in the window.
                if let Some(&next) = window.get(row + 1) {
                    let loss = log_sum_exp(logits) - f64::from(logits[next as usize]);
                    sum += loss;
                    squares += loss * loss;
                    count += 1.0;
                }
            });
        runner.end(sequence);
        result?;
        progress(index + 1, windows, (sum / count).exp());
    }
    let nll: f64 = sum / count;
    let variance = (squares / count - nll * nll).max(0.0);
    let ppl = nll.exp();
    let stderr = ppl * (variance / (count - 1.0)).sqrt();
    Ok(Perplexity { ppl, stderr, nll, tokens: tokens.len(), windows })
}

/// How far two sets of logits are apart.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Difference {
    /// Positions compared.
    pub positions: usize,
    /// Largest absolute difference.
    pub max_abs: f64,
    /// Mean over positions of `KL(a || b)` in nats.
    pub mean_kl: f64,
    /// Share of positions with the same best token.
    pub top1: f64,
    /// Mean share of `a`'s five best tokens that are among `b`'s.
    pub top5: f64,
}

/// Compares `a` and `b`, both `[positions, vocabulary]`.
pub fn compare(a: &[f32], b: &[f32], vocabulary: usize) -> Difference {
    let positions = a.len() / vocabulary.max(1);
    let (mut max_abs, mut kl, mut top1, mut top5) = (0.0f64, 0.0, 0.0, 0.0);
    for (a, b) in a.chunks_exact(vocabulary).zip(b.chunks_exact(vocabulary)) {
        let (za, zb) = (log_sum_exp(a), log_sum_exp(b));
        for (x, y) in a.iter().zip(b) {
            let (x, y) = (f64::from(*x), f64::from(*y));
            max_abs = max_abs.max((x - y).abs());
            let (p, q) = (x - za, y - zb);
            kl += p.exp() * (p - q);
        }
        let (best_a, best_b) = (top(a, 5), top(b, 5));
        top1 += f64::from(u8::from(best_a.first() == best_b.first()));
        let shared = best_a.iter().filter(|id| best_b.contains(id)).count();
        top5 += shared as f64 / best_a.len().max(1) as f64;
    }
    let n = positions.max(1) as f64;
    Difference { positions, max_abs, mean_kl: kl / n, top1: top1 / n, top5: top5 / n }
}

/// The `k` largest logits' ids by falling value, lower id first on ties.
pub fn top(logits: &[f32], k: usize) -> Vec<u32> {
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    let by_value =
        |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    let k = k.min(ids.len());
    if k < ids.len() {
        ids.select_nth_unstable_by(k, by_value);
        ids.truncate(k);
    }
    ids.sort_unstable_by(by_value);
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_logits_differ_by_nothing() {
        let a = [1.0, 3.0, 2.0, 0.5, -1.0, 4.0];
        let same = compare(&a, &a, 3);
        assert_eq!((same.positions, same.max_abs, same.top1, same.top5), (2, 0.0, 1.0, 1.0));
        let other = compare(&a, &[3.0, 1.0, 2.0, 0.5, -1.0, 4.0], 3);
        assert!(other.mean_kl > 0.0 && other.top1 == 0.5 && other.max_abs == 2.0);
    }

    #[test]
    fn top_breaks_ties_by_id() {
        assert_eq!(top(&[1.0, 5.0, 5.0, 2.0], 3), [1, 2, 3]);
        assert_eq!(top(&[1.0], 5), [0]);
    }
}
