//! Model files lowered to a layer graph with costs.
//!
//! Nothing here knows a device, a thread or a clock.

mod blocks;
pub mod gguf;
mod huggingface;
pub mod metadata;
mod model_file;
pub mod safetensors;
#[cfg(test)]
mod test_data;
mod weights;

pub use blocks::{BlockInfo, BlockType, TABLE as BLOCK_TABLE};
pub use huggingface::HuggingFaceError;
pub use metadata::{Metadata, MetadataError};
pub use model_file::{ModelFile, ModelFileError, Origin, SAMPLE, Tensor};
pub use weights::{Storage, Weight};
