//! Finding the largest logits without sorting a vocabulary.

use std::cmp::Ordering;

/// A token that may be chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Candidate {
    pub(super) id: u32,
    pub(super) logit: f32,
}

/// The order of candidates: the larger logit first, of equal ones the lower id.
pub(super) fn order(a: &Candidate, b: &Candidate) -> Ordering {
    // logits are never not-a-number here, and the sign of zero makes no difference
    b.logit.partial_cmp(&a.logit).unwrap_or(Ordering::Equal).then(a.id.cmp(&b.id))
}

/// The id of the largest logit, the lowest id of equal ones. `None` if there is none above −∞.
pub(super) fn argmax(logits: &[f32]) -> Option<u32> {
    let max = super::exp::max(logits);
    if max == f32::NEG_INFINITY {
        return None;
    }
    logits.iter().position(|&logit| logit == max).map(|id| id as u32)
}

/// Up to this k one pass with a sorted list of the best is the fastest way.
const SMALL_K: usize = 128;

/// Replaces `out` by the `k` largest logits above −∞, in order.
pub(super) fn top_k(logits: &[f32], k: usize, out: &mut Vec<Candidate>) {
    out.clear();
    if k > SMALL_K {
        out.extend(finite(logits));
        if k < out.len() {
            out.select_nth_unstable_by(k - 1, order);
            out.truncate(k);
        }
        out.sort_unstable_by(order);
        return;
    }
    out.reserve(k + 1);
    // the k-th best so far; a later id with the same logit does not come in
    let mut bar = f32::NEG_INFINITY;
    for (index, chunk) in logits.chunks(CHUNK).enumerate() {
        if !chunk.iter().fold(false, |any, &logit| any | (logit > bar)) {
            continue;
        }
        for (offset, &logit) in chunk.iter().enumerate() {
            if logit > bar {
                let id = (index * CHUNK + offset) as u32;
                let at = out.partition_point(|other| other.logit >= logit);
                out.insert(at, Candidate { id, logit });
                if out.len() > k {
                    out.pop();
                }
                if out.len() == k {
                    bar = out[k - 1].logit;
                }
            }
        }
    }
}

/// Logits that are compared at once: as a rule none of them is of interest.
const CHUNK: usize = 32;

/// Replaces `out` by the logits of at least `bar` (above −∞), in the order of their ids.
pub(super) fn at_least(logits: &[f32], bar: f32, out: &mut Vec<Candidate>) {
    out.clear();
    let bar = bar.max(f32::MIN);
    for (index, chunk) in logits.chunks(CHUNK).enumerate() {
        if chunk.iter().fold(false, |any, &logit| any | (logit >= bar)) {
            let ids = (index * CHUNK) as u32..;
            let chunk = ids.zip(chunk).filter(|(_, logit)| **logit >= bar);
            out.extend(chunk.map(|(id, &logit)| Candidate { id, logit }));
        }
    }
}

/// All logits above −∞ with their ids.
pub(super) fn finite(logits: &[f32]) -> impl Iterator<Item = Candidate> {
    logits
        .iter()
        .enumerate()
        .filter(|(_, logit)| **logit > f32::NEG_INFINITY)
        .map(|(id, &logit)| Candidate { id: id as u32, logit })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_largest_are_found(
            values in prop::collection::vec(-4_i8..4, 1..400),
            k in 1_usize..300,
        ) {
            let logits: Vec<f32> = values
                .iter()
                .map(|&v| if v == -4 { f32::NEG_INFINITY } else { f32::from(v) })
                .collect();
            let mut sorted: Vec<Candidate> = finite(&logits).collect();
            sorted.sort_by(order);
            prop_assert_eq!(argmax(&logits), sorted.first().map(|first| first.id));
            sorted.truncate(k);
            let mut out = Vec::new();
            top_k(&logits, k, &mut out);
            prop_assert_eq!(&out, &sorted);
            at_least(&logits, k as f32 - 100.0, &mut out);
            let expected: Vec<Candidate> =
                finite(&logits).filter(|c| c.logit >= k as f32 - 100.0).collect();
            prop_assert_eq!(out, expected);
        }
    }
}
