//! The front of an order up to a sum of probabilities, without sorting everything.
//!
//! Filters and the draw need the shortest front of an order whose probabilities sum up to a target.
//! A histogram of the sort key tells in which of its buckets that sum is reached; only that bucket
//! is sorted.

use super::select::Candidate;

/// Buckets for each unit of the key.
const BUCKETS_PER_UNIT: f32 = 8.0;

/// Number of buckets. With the key "maximum − logit" they reach down to probabilities of e^−64 of
/// the largest; the last one takes in all that lie further out.
const BUCKETS: usize = 512;

/// A candidate with its sort key.
#[derive(Debug, Clone, Copy)]
struct Keyed {
    key: f32,
    candidate: Candidate,
}

/// Where the sum must get to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Target {
    /// This sum, or more.
    Reach(f64),
    /// More than this sum.
    Exceed(f64),
}

impl Target {
    /// Whether a sum is enough.
    pub(super) fn met(self, sum: f64) -> bool {
        match self {
            Self::Reach(target) => sum >= target,
            Self::Exceed(target) => sum > target,
        }
    }
}

/// Working memory.
#[derive(Debug)]
pub(super) struct Prefix {
    sums: Box<[f64; BUCKETS]>,
    bucket: Vec<Keyed>,
}

impl Default for Prefix {
    fn default() -> Self {
        Self { sums: Box::new([0.0; BUCKETS]), bucket: Vec::new() }
    }
}

impl Prefix {
    /// Finds the shortest front of the candidates, in ascending order of `key` (of equal ones the
    /// lower id first), whose weights meet the target. Returns its last candidate, and appends
    /// all of them, in any order, to `front`. Where the target is not met, the front is everything.
    ///
    /// `candidates` are gone through up to three times; `score` gives key and weight of one, keys
    /// are at least 0, and not-a-number counts as 0.
    pub(super) fn find<I: Iterator<Item = Candidate>>(
        &mut self,
        candidates: impl Fn() -> I,
        score: impl Fn(Candidate) -> (f32, f32),
        target: Target,
        front: Option<&mut Vec<Candidate>>,
    ) -> Option<Candidate> {
        self.sums.fill(0.0);
        let mut used = 0;
        for candidate in candidates() {
            let (key, weight) = score(candidate);
            let bucket = bucket(key);
            used = used.max(bucket + 1);
            self.sums[bucket] += f64::from(weight);
        }
        let mut before = 0.0;
        let mut last = used.checked_sub(1)?;
        for (index, &sum) in self.sums[..used].iter().enumerate() {
            // a target of 0 still takes a candidate
            if sum > 0.0 && target.met(before + sum) {
                last = index;
                break;
            }
            before += if index < last { sum } else { 0.0 };
        }
        self.bucket.clear();
        match front {
            Some(front) => {
                for candidate in candidates() {
                    let key = score(candidate).0;
                    match bucket(key) {
                        bucket if bucket < last => front.push(candidate),
                        bucket if bucket == last => self.bucket.push(Keyed { key, candidate }),
                        _ => {}
                    }
                }
                self.scan(before, &score, target, |candidate| front.push(candidate))
            }
            None => {
                for candidate in candidates() {
                    let key = score(candidate).0;
                    if bucket(key) == last {
                        self.bucket.push(Keyed { key, candidate });
                    }
                }
                self.scan(before, &score, target, |_| ())
            }
        }
    }

    /// Goes through the sorted bucket until the target is met.
    fn scan(
        &mut self,
        before: f64,
        score: impl Fn(Candidate) -> (f32, f32),
        target: Target,
        mut keep: impl FnMut(Candidate),
    ) -> Option<Candidate> {
        self.bucket.sort_unstable_by(|a, b| {
            a.key.total_cmp(&b.key).then(a.candidate.id.cmp(&b.candidate.id))
        });
        let mut sum = before;
        for keyed in &self.bucket {
            keep(keyed.candidate);
            sum += f64::from(score(keyed.candidate).1);
            if target.met(sum) {
                return Some(keyed.candidate);
            }
        }
        self.bucket.last().map(|keyed| keyed.candidate)
    }
}

/// The bucket of a key. Conversion saturates: not-a-number and what is below 0 is bucket 0.
fn bucket(key: f32) -> usize {
    ((key * BUCKETS_PER_UNIT) as usize).min(BUCKETS - 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_front_is_that_of_the_sorted_order(
            // whole weights, so that sums are exact in any order
            entries in prop::collection::vec((0_u16..2000, 0_u8..20), 1..200),
            per_mille in 0_u32..=1000,
            exceed: bool,
        ) {
            let candidates: Vec<Candidate> = (0..)
                .zip(&entries)
                .map(|(id, &(key, _))| Candidate { id, logit: f32::from(key) / 17.0 })
                .collect();
            let weight = |id: u32| f32::from(entries[id as usize].1);
            let total: f64 = candidates.iter().map(|c| f64::from(weight(c.id))).sum();
            let target = f64::from(per_mille) / 1000.0 * total;
            let mut sorted = candidates.clone();
            sorted.sort_by(|a, b| a.logit.total_cmp(&b.logit).then(a.id.cmp(&b.id)));
            let mut sum = 0.0;
            let end = sorted.iter().position(|c| {
                sum += f64::from(weight(c.id));
                sum > 0.0 && if exceed { sum > target } else { sum >= target }
            });
            let length = end.map_or(sorted.len(), |end| end + 1);
            sorted.truncate(length);

            let target = if exceed { Target::Exceed(target) } else { Target::Reach(target) };
            let mut front = Vec::new();
            let last = Prefix::default().find(
                || candidates.iter().copied(), |c| (c.logit, weight(c.id)), target, Some(&mut front),
            );
            front.sort_by(|a, b| a.logit.total_cmp(&b.logit).then(a.id.cmp(&b.id)));
            if per_mille > 0 || exceed {
                prop_assert_eq!(last, sorted.last().copied());
                prop_assert_eq!(front, sorted);
            } else {
                prop_assert!(!front.is_empty());
            }
        }
    }
}
