//! What devices over host memory have in common: one in-order queue with its thread, and programs
//! that walk a segment's ops with a family of kernels.

mod device;
mod worker;

pub use device::{HostDevice, HostDeviceSpec};
