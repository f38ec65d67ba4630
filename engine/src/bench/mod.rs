//! Measuring the engine alone: how fast a model reads prompts and generates, at several depths of
//! the KV cache and for several sequences at once. Nothing is sampled and no text is made.

mod cases;
mod gpu_peaks;
mod peaks;
mod rig;
mod stats;

pub use cases::{Case, Grid, Traffic, Work};
pub use peaks::{Peak, Peaks, read_bandwidth};
pub use rig::{BenchError, Rig};
pub use stats::{Spread, seconds};
