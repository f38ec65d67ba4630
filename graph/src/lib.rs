//! Model files lowered to a layer graph with costs.
//!
//! Nothing here knows a device, a thread or a clock.

mod blocks;
pub mod gguf;
mod weights;

pub use blocks::{BlockInfo, BlockType, TABLE as BLOCK_TABLE};
pub use weights::{Storage, Weight};
