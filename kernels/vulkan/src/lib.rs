//! Vulkan kernels: shaders compiled at build time, and how a segment's ops become dispatches.

mod spirv;
mod tables;

pub use spirv::{shader, shaders};
pub use tables::tables;
