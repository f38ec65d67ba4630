//! Vulkan kernels: shaders compiled at build time, and how a segment's ops become dispatches.

mod dispatch;
mod program;
mod spirv;
mod tables;

pub use dispatch::{Counts, Dispatch, Features, Kernel, Place, Push, StepField, Tuning};
pub use program::{Form, Largest, MOST_CANDIDATES, Program, SPLIT, Turns, awake, supported};
pub use spirv::{shader, shaders};
pub use tables::tables;
