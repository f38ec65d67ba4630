//! Model files lowered to a layer graph with costs.
//!
//! Nothing here knows a device, a thread or a clock.

mod blocks;
pub mod gguf;
mod layer_graph;
pub mod ops;
mod step;
mod weights;

pub use blocks::{BlockInfo, BlockType, TABLE as BLOCK_TABLE};
pub use layer_graph::{
    GraphBuilder, KvShape, LayerGraph, Lifetime, Node, Segment, ShapeError, SlotPlan, Unit, UnitId,
    UnitKind, assign_slots,
};
pub use petgraph::graph::NodeIndex;
pub use step::{Rows, SequenceRows, StepInputs, StepShape};
pub use weights::{Storage, Weight};
