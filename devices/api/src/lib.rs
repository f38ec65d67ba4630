//! The device contract: what a backend implements, and what the engine may rely on.
//!
//! The bargain: the caller checks plans and step inputs ([`trefoil_graph::StepInputs::check`]) and
//! keeps buffers that overlap in time apart by fences; a device checks capability, memory and its own
//! driver's answers. A device never decides placement, never blocks the caller of
//! [`Device::submit`], and never falls back to another device.

mod device;
mod error;
mod memory;
mod queue;
mod timeline;
mod work;

pub use device::{
    AllocRequest, Binding, Bucket, Device, DeviceInfo, DeviceKind, Job, Limits, Link, OpQuery,
    Phase, Program, Purpose, Role, Sample, Support, check_segment, streamed_bytes,
};
pub use error::{CompileError, DeviceError, Failure, LostReason, Recovery};
pub use memory::{
    AlignedBytes, Backing, Buffer, BufferId, BufferRef, DomainId, DomainInfo, MemoryManager,
    Reservation,
};
pub use queue::{WorkQueue, Worker};
pub use timeline::{Point, Timeline};
pub use work::{
    Candidate, Columns, Completion, Dropped, KvPages, Points, RunArgs, Submission, SubmissionId,
    Work,
};
