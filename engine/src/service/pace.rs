//! How much of a prompt is read between two tokens of others.

use std::time::Duration;

use trefoil_devices_api::Phase;
use trefoil_scheduler::Plan;

/// Longest time between two tokens that reading the prompts of others should make, where nobody says
/// otherwise: about as fast as people read.
pub const INTER_TOKEN_TARGET: Duration = Duration::from_millis(100);

/// Fewest tokens that are read between two tokens, so that prompts get on whatever the target is.
const LEAST_CHUNK: usize = 32;
/// Tokens of a first chunk whose time is not known at all.
const UNKNOWN_CHUNK: usize = 128;
/// Chunks end where pages do: so that no page is half of one and half of the next.
const GRAIN: usize = 16;
/// Share of a new measurement in what is known.
const LEARN: f64 = 0.2;

/// What a plan predicts of its steps, in seconds; what is not predicted is learned from the first ones.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Forecast {
    /// Of a token in a full prompt chunk.
    pub prompt_token: Option<f64>,
    /// Of a decode step.
    pub decode_step: Option<f64>,
}

impl Forecast {
    /// That of a plan.
    pub fn of(plan: &Plan) -> Self {
        let bucket = |phase| {
            let buckets = plan.buckets.iter().filter(|bucket| bucket.bucket.phase == phase);
            buckets.max_by_key(|bucket| bucket.bucket.max_tokens)
        };
        let prompt_token = bucket(Phase::Prefill).and_then(|bucket| {
            Some(bucket.predicted_seconds? / bucket.bucket.max_tokens.max(1) as f64)
        });
        let decode_step = bucket(Phase::Decode).and_then(|bucket| bucket.predicted_seconds);
        Self { prompt_token, decode_step }
    }
}

/// What is known of the time of steps: as predicted at first, then as measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    target: f64,
    known: Forecast,
}

impl Pace {
    pub(super) fn new(target: Duration, forecast: Forecast) -> Self {
        Self { target: target.as_secs_f64(), known: forecast }
    }

    /// A chunk of `tokens` took this time.
    pub(super) fn read(&mut self, tokens: usize, took: Duration) {
        // Of a few tokens, most of the time is that of the step itself.
        if tokens >= LEAST_CHUNK {
            learn(&mut self.known.prompt_token, took.as_secs_f64() / tokens as f64);
        }
    }

    /// A decode step took this time.
    pub(super) fn decoded(&mut self, took: Duration) {
        learn(&mut self.known.decode_step, took.as_secs_f64());
    }

    /// Tokens to read between two decode steps.
    pub(super) fn chunk(&self) -> usize {
        let left = self.target - self.known.decode_step.unwrap_or(0.0);
        let tokens = match self.known.prompt_token {
            Some(seconds) => (left / seconds.max(1e-9)).clamp(0.0, 1e6) as usize,
            None => UNKNOWN_CHUNK,
        };
        (tokens / GRAIN * GRAIN).max(LEAST_CHUNK)
    }
}

fn learn(known: &mut Option<f64>, measured: f64) {
    *known = Some(known.map_or(measured, |known| known + LEARN * (measured - known)));
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn chunks_fill_what_a_decode_step_leaves_of_the_target() {
        let mut pace = Pace::new(100 * MS, Forecast::default());
        assert_eq!(pace.chunk(), UNKNOWN_CHUNK);
        pace.read(100, 100 * MS);
        assert_eq!(pace.chunk(), 96);
        pace.decoded(40 * MS);
        assert_eq!(pace.chunk(), 48);
        // A decode step that fills the target alone does not stop prompts.
        (0..50).for_each(|_| pace.decoded(300 * MS));
        assert_eq!(pace.chunk(), LEAST_CHUNK);
    }

    #[test]
    fn predictions_count_until_measurements_correct_them() {
        let forecast = Forecast { prompt_token: Some(1e-4), decode_step: Some(0.02) };
        let mut pace = Pace::new(100 * MS, forecast);
        assert_eq!(pace.chunk(), 800);
        (0..100).for_each(|_| pace.read(64, 64 * MS));
        assert!((64..=80).contains(&pace.chunk()), "{}", pace.chunk());
    }
}
