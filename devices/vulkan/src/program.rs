//! A segment on a Vulkan device: its dispatches, its weights, its vectors.

use std::sync::Arc;

use parking_lot::Mutex;
use trefoil_devices_api::{Binding, Program};
use trefoil_kernels_vulkan::Program as Kernels;
use trefoil_telemetry::Bytes;

use crate::memory::Allocation;
use crate::recording::Recording;
use crate::weights::{Resident, Stream};

/// Recordings kept for each program: one for each step size in use.
pub(crate) const RECORDINGS: usize = 12;

/// A compiled segment.
#[derive(Debug)]
pub(crate) struct VulkanSegment {
    pub(crate) kernels: Kernels,
    pub(crate) bindings: Vec<Binding>,
    pub(crate) weights: Resident,
    /// What must be copied before a run, where weights are not kept.
    pub(crate) stream: Option<Stream>,
    /// Decoded vectors, then lists of addresses.
    pub(crate) constants: Allocation,
    /// Offsets of the lists in `constants`.
    pub(crate) lists: Vec<u64>,
    pub(crate) turns: Vec<Arc<Allocation>>,
    pub(crate) tables: Arc<Allocation>,
    /// Most recently used last.
    pub(crate) recordings: Mutex<Vec<Recording>>,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
}

impl Program for VulkanSegment {
    fn bindings(&self) -> &[Binding] {
        &self.bindings
    }

    fn scratch(&self) -> Bytes {
        Bytes(self.kernels.slots().iter().sum())
    }

    fn streamed(&self) -> Bytes {
        Bytes(self.stream.as_ref().map_or(0, Stream::bytes))
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}
