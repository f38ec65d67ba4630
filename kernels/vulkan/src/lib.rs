//! Vulkan kernels: shaders compiled at build time, and how a segment's ops become dispatches.

mod spirv;

pub use spirv::{shader, shaders};
