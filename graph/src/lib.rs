//! Model files lowered to a layer graph with costs.
//!
//! Nothing here knows a device, a thread or a clock.

pub mod architectures;
mod blocks;
pub mod gguf;
mod huggingface;
mod hyper;
pub mod inspect;
mod layer_graph;
mod linear_part;
mod lowering;
pub mod metadata;
mod model_file;
mod onnx;
pub mod ops;
mod rope_scaling;
pub mod safetensors;
pub mod shape;
mod step;
#[cfg(test)]
mod test_data;
mod weights;

pub use blocks::{BlockInfo, BlockType, TABLE as BLOCK_TABLE};
pub use huggingface::HuggingFaceError;
pub use hyper::{ExpertHyper, Hyper, HyperError};
pub use layer_graph::{
    GraphBuilder, KvShape, LayerGraph, Lifetime, Node, Segment, ShapeError, SlotPlan, Unit, UnitId,
    UnitKind, assign_slots,
};
pub use linear_part::linear_part;
pub use lowering::{LowerError, LowerOptions, PoolingChoice, lower};
pub use metadata::{Metadata, MetadataError};
pub use model_file::{ModelFile, ModelFileError, Origin, SAMPLE, Tensor};
pub use onnx::OnnxError;
pub use petgraph::graph::NodeIndex;
pub use step::{Rows, SequenceRows, StepInputs, StepShape};
pub use weights::{Storage, Weight};
