//! Choosing the next token from logits.
//!
//! The chain of steps, in order: log probabilities of the raw logits are taken; biases are added;
//! a mask and the ban of end tokens apply; repeated ids are penalised, first those of the recent
//! text, then by how often they were generated; greedy choice ends here; else the k largest,
//! typical, nucleus (top p) and minimum probability filters apply, the temperature, and a token is
//! drawn. Logits are f32 and sums f64; every tie goes to the lower id; every filter keeps at least
//! one token. Random numbers depend on seed, choice and position only, so that the same request
//! gives the same tokens whatever else runs.

mod exp;
mod filters;
mod logprobs;
mod params;
mod prefix;
mod random;
#[cfg(test)]
mod reference;
mod sampler;
mod select;
mod settings;

pub use logprobs::{LOGPROB_FLOOR, Logprob, Logprobs, TOP_LOGPROBS_MAX};
pub use params::{ParamError, SamplingParams};
pub use random::uniform;
pub use sampler::{Sampler, SamplerVocabulary};
pub use settings::SamplingSettings;
