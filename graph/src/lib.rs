//! Model files lowered to a layer graph with costs.
//!
//! Nothing here knows a device, a thread or a clock.

mod blocks;
pub mod gguf;
pub mod metadata;
mod model_file;
mod weights;

pub use blocks::{BlockInfo, BlockType, TABLE as BLOCK_TABLE};
pub use metadata::{Metadata, MetadataError};
pub use model_file::{ModelFile, ModelFileError, Origin, SAMPLE, Tensor};
pub use weights::{Storage, Weight};
