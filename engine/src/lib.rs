//! Text, KV cache, executor of plans, generation.

pub mod text;
