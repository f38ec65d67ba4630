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
    for candidate in finite(logits) {
        if candidate.logit > bar {
            let at = out.partition_point(|other| other.logit >= candidate.logit);
            out.insert(at, candidate);
            if out.len() > k {
                out.pop();
            }
            if out.len() == k {
                bar = out[k - 1].logit;
            }
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
            prop_assert_eq!(out, sorted);
        }
    }
}
