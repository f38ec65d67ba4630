//! Text, KV cache, executor of plans, generation.
