//! Repeated measurements.

use std::time::{Duration, Instant};

/// Middle and quartiles of repeated measurements of durations, or of rates.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Spread {
    /// One duration in twenty is less: what other work on the machine hardly disturbed.
    pub best: f64,
    /// A quarter of the measurements lies below.
    pub low: f64,
    /// The middle measurement.
    pub median: f64,
    /// A quarter lies above.
    pub high: f64,
}

impl Spread {
    /// Of one or more measurements.
    ///
    /// # Panics
    /// If there are none.
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |share: f64| values[((values.len() - 1) as f64 * share).round() as usize];
        Self { best: at(0.05), low: at(0.25), median: at(0.5), high: at(0.75) }
    }

    /// These durations as rates, of `count` things each.
    pub fn rates(self, count: f64) -> Self {
        let Self { best, low, median, high } = self;
        Self { best: count / best, low: count / high, median: count / median, high: count / low }
    }
}

/// Seconds that `work` takes: called until `least` has passed and `runs` are done, after one call
/// that is not counted.
pub fn seconds(least: Duration, runs: usize, mut work: impl FnMut()) -> Spread {
    work();
    let start = Instant::now();
    let mut taken = Vec::new();
    while taken.len() < runs || start.elapsed() < least {
        let begin = Instant::now();
        work();
        taken.push(begin.elapsed().as_secs_f64());
    }
    Spread::of(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_are_those_of_the_sorted_values() {
        let spread = Spread::of(vec![5.0, 1.0, 4.0, 2.0, 3.0]);
        assert_eq!(spread, Spread { best: 1.0, low: 2.0, median: 3.0, high: 4.0 });
        assert_eq!(Spread::of(vec![7.0]).median, 7.0);
        let rates = Spread { best: 60.0, low: 15.0, median: 20.0, high: 30.0 };
        assert_eq!(spread.rates(60.0), rates);
    }
}
