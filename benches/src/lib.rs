//! What the benchmark programs share: made-up weights and the statistics of repeated runs.

pub mod stats;
pub mod synthetic;
pub mod weights;
