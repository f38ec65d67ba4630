//! Text, KV cache, executor of plans, generation.

pub mod backends;
pub mod bench;
pub mod cache;
pub mod calibrate;
pub mod embedding;
pub mod evaluate;
pub mod executor;
pub mod generate;
pub mod grammar;
pub mod host_access;
pub mod kv;
pub mod live;
pub mod loaded;
pub mod model;
pub mod npu_fallback;
pub mod quantize;
pub mod records;
pub mod runner;
pub mod self_test;
pub mod service;
pub mod synthetic;
pub mod text;
pub mod trace;
pub mod usage;
pub mod what_if;
