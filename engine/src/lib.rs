//! Text, KV cache, executor of plans, generation.

pub mod backends;
pub mod executor;
pub mod kv;
pub mod model;
pub mod quantize;
pub mod runner;
pub mod self_test;
pub mod text;
