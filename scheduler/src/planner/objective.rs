//! What a plan is to be good at, and for which request.

use serde::{Deserialize, Serialize};
use trefoil_devices_api::{Bucket, Phase};
use trefoil_graph::StepShape;

use crate::cost::Cost;

/// What counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Goal {
    /// Seconds of one request: to its first token, and for all that follow.
    Latency,
    /// Seconds of the machine per request when many are served at once.
    Throughput,
    /// Joules per request.
    Energy,
    /// A weighted sum of all of these, each as a multiple of the least that the devices could do.
    #[default]
    Balanced,
}

impl Goal {
    /// Name as users write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Latency => "latency",
            Self::Throughput => "throughput",
            Self::Energy => "energy",
            Self::Balanced => "balanced",
        }
    }
}

/// Weights of [`Goal::Balanced`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Weights {
    /// Of the time to the first token.
    pub ttft: f64,
    /// Of the time of all tokens that follow.
    pub decode: f64,
    /// Of the energy.
    pub energy: f64,
    /// Of the share of all memory that weights and KV pages take.
    pub memory: f64,
}

impl Default for Weights {
    fn default() -> Self {
        Self { ttft: 1.0, decode: 1.0, energy: 0.3, memory: 0.1 }
    }
}

/// The request that a plan is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    /// Tokens of the prompt that are not in the cache yet.
    pub prompt: u64,
    /// Tokens generated after it.
    pub generate: u64,
}

impl Default for Workload {
    fn default() -> Self {
        Self { prompt: 512, generate: 128 }
    }
}

/// A bucket as the request meets it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Use {
    pub(crate) phase: Phase,
    /// The step whose cost stands for all: sizes in the middle of the request.
    pub(crate) step: StepShape,
    /// Steps of the request, the last one by its part; 0 if it does not use the bucket.
    pub(crate) steps: f64,
}

impl Use {
    /// How often a step counts; one that the request does not use is placed for its own sake.
    pub(crate) fn weight(&self) -> f64 {
        if self.steps > 0.0 { self.steps } else { 1.0 }
    }
}

impl Workload {
    /// How the request uses each bucket: prompts go to the smallest prefill bucket that takes them
    /// whole, else in chunks to the largest; decode goes to the smallest bucket, or under
    /// `throughput` to the largest, shared with other requests.
    pub(crate) fn uses(&self, buckets: &[Bucket], goal: Goal, kv_element_bytes: f64) -> Vec<Use> {
        let of = |phase: Phase| buckets.iter().filter(move |bucket| bucket.phase == phase);
        let prefill = of(Phase::Prefill)
            .filter(|bucket| bucket.max_tokens as u64 >= self.prompt)
            .min_by_key(|bucket| bucket.max_tokens)
            .or_else(|| of(Phase::Prefill).max_by_key(|bucket| bucket.max_tokens));
        let decode = match goal {
            Goal::Throughput => of(Phase::Decode).max_by_key(|bucket| bucket.max_tokens),
            _ => of(Phase::Decode).min_by_key(|bucket| bucket.max_tokens),
        };
        let use_of = |bucket: &Bucket| {
            let most = bucket.max_tokens as u64;
            let used = Some(bucket) == prefill || Some(bucket) == decode;
            let (tokens, past, sequences, steps) = match bucket.phase {
                Phase::Prefill => {
                    let prompt = if used { self.prompt.max(1) } else { most };
                    // Chunks are full but for the last one, which counts as its part of a full one:
                    // equal chunks would all be padded where shapes are static.
                    let tokens = prompt.min(most);
                    (tokens, (prompt - tokens) / 2, 1, prompt as f64 / tokens as f64)
                }
                Phase::Decode => {
                    let past = self.prompt + self.generate / 2;
                    (most, past, most, self.generate as f64 / most as f64)
                }
            };
            let rows_out = if bucket.phase == Phase::Prefill { 1 } else { tokens };
            Use {
                phase: bucket.phase,
                step: StepShape { tokens, past, rows_out, sequences, kv_element_bytes },
                steps: if used { steps } else { 0.0 },
            }
        };
        buckets.iter().map(use_of).collect()
    }
}

/// Prices of seconds and joules, by phase.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Prices {
    pub(crate) prefill_second: f64,
    pub(crate) decode_second: f64,
    pub(crate) joule: f64,
    /// Of a byte.
    pub(crate) byte: f64,
}

impl Prices {
    pub(crate) fn of(&self, phase: Phase, cost: Cost) -> f64 {
        let second = match phase {
            Phase::Prefill => self.prefill_second,
            Phase::Decode => self.decode_second,
        };
        cost.seconds * second + cost.joules * self.joule
    }

    /// Prices of a goal. `least` is what the request takes at least in prefill and in decode, each
    /// unit on the device that is best for it; `bytes` is all memory there is.
    pub(crate) fn new(goal: Goal, weights: Weights, least: [Cost; 2], bytes: u64) -> Self {
        let [prefill, decode] = least;
        let per = |weight: f64, least: f64| if least > 0.0 { weight / least } else { 0.0 };
        match goal {
            Goal::Latency | Goal::Throughput => {
                Self { prefill_second: 1.0, decode_second: 1.0, joule: 0.0, byte: 0.0 }
            }
            Goal::Energy => Self { prefill_second: 0.0, decode_second: 0.0, joule: 1.0, byte: 0.0 },
            Goal::Balanced => Self {
                prefill_second: per(weights.ttft, prefill.seconds),
                decode_second: per(weights.decode, decode.seconds),
                joule: per(weights.energy, prefill.joules + decode.joules),
                byte: per(weights.memory, bytes as f64),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(phase: Phase, max_tokens: usize) -> Bucket {
        Bucket { phase, min_tokens: 1, max_tokens, max_outputs: 1 }
    }

    #[test]
    fn a_request_uses_the_buckets_that_fit_it() {
        let buckets = [
            bucket(Phase::Prefill, 128),
            bucket(Phase::Prefill, 512),
            bucket(Phase::Decode, 1),
            bucket(Phase::Decode, 8),
        ];
        let steps = |prompt, goal| -> Vec<(f64, u64, u64)> {
            let uses = Workload { prompt, generate: 64 }.uses(&buckets, goal, 2.0);
            uses.iter().map(|u| (u.steps, u.step.tokens, u.step.past)).collect()
        };
        let short = steps(100, Goal::Latency);
        assert_eq!(short[0], (1.0, 100, 0));
        assert_eq!((short[1].0, short[2], short[3].0), (0.0, (64.0, 1, 132), 0.0));
        let long = steps(1000, Goal::Throughput);
        assert_eq!((long[0].0, long[1]), (0.0, (1000.0 / 512.0, 512, 244)));
        assert_eq!((long[2].0, long[3]), (0.0, (8.0, 8, 1032)));
    }
}
