//! What devices over host memory have in common: one in-order queue with its thread, and programs
//! that walk a segment's ops with a family of kernels; and what any device over host memory does with
//! work that only moves bytes ([`move_bytes`]).

mod device;
mod side;
mod worker;

pub use device::{HostDevice, HostDeviceSpec};
pub use side::HostSide;
pub use worker::{Floats, FloatsMut, ProgramRun, move_bytes};
