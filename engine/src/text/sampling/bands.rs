//! Visiting candidates in order without sorting them all.
//!
//! Filters and the draw itself need the front of an order only, as a rule a few dozen tokens of a
//! quarter million. Candidates are therefore collected in bands of the sort key: those below a
//! first limit are collected and sorted, then those up to the next limit, and so on.

use super::select::Candidate;

/// The key of the first band's end: with the key "maximum − logit", tokens that are at least a
/// 3000th as probable as the most probable one.
const FIRST: f32 = 8.0;

/// How much longer each band is than the one before.
const GROWTH: f32 = 2.0;

/// A candidate with its sort key.
#[derive(Debug, Clone, Copy)]
pub(super) struct Keyed {
    key: f32,
    pub(super) candidate: Candidate,
}

/// Calls `visit` with candidates in ascending order of `key` (at least 0, or not-a-number, which
/// counts as 0; of equal ones the lower id first), until it returns `false` or all were visited.
/// `candidates` is gone through once for each band.
pub(super) fn visit<I: Iterator<Item = Candidate>>(
    candidates: impl Fn() -> I,
    key: impl Fn(Candidate) -> f32,
    band: &mut Vec<Keyed>,
    mut visit: impl FnMut(Candidate) -> bool,
) {
    let mut from = 0.0;
    let mut to = FIRST;
    loop {
        band.clear();
        let mut more = false;
        for candidate in candidates() {
            let key = key(candidate).max(0.0);
            if key >= to {
                more = true;
            } else if key >= from {
                band.push(Keyed { key, candidate });
            }
        }
        band.sort_unstable_by(|a, b| {
            a.key.total_cmp(&b.key).then(a.candidate.id.cmp(&b.candidate.id))
        });
        for keyed in band.iter() {
            if !visit(keyed.candidate) {
                return;
            }
        }
        if !more {
            return;
        }
        (from, to) = (to, if to < 1e4 { to * GROWTH } else { f32::INFINITY });
        if from == f32::INFINITY {
            return; // only keys of ∞ are left: candidates of probability 0
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bands_visit_in_sorted_order(
            keys in prop::collection::vec(0_u16..30_000, 0..200),
            stop in 0_usize..250,
        ) {
            let candidates: Vec<Candidate> = keys
                .iter()
                .enumerate()
                .map(|(id, &key)| Candidate { id: id as u32, logit: f32::from(key) / 7.0 })
                .collect();
            let mut sorted = candidates.clone();
            sorted.sort_by(|a, b| a.logit.total_cmp(&b.logit));
            sorted.truncate(stop.max(1));
            let mut visited = Vec::new();
            visit(|| candidates.iter().copied(), |c| c.logit, &mut Vec::new(), |candidate| {
                visited.push(candidate);
                visited.len() < stop
            });
            prop_assert_eq!(visited, sorted);
        }
    }
}
