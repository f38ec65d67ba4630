//! GPUs through Vulkan, loaded at run time: a machine without Vulkan simply has no such device.
//!
//! [`adapters`] lists what the drivers show, with what each lacks; [`device`] opens one. Memory is
//! reached by address, programs are lists of dispatches ([`trefoil_kernels_vulkan::Program`]) that are
//! recorded once for each step size and replayed. On memory that GPU and host share, weights are
//! the mapped file's own pages and tensors lie in host memory; a card of its own gets copies.
//!
//! `unsafe` is confined to the modules that call the driver: `instance`, `adapter`, `context`,
//! `memory`, `pipelines`, `profile`, `recording`, `stopwatch`, `transfer`, `weights`.

mod adapter;
mod awake;
mod context;
mod device;
mod instance;
mod largest;
mod loader;
mod memory;
mod pipelines;
mod profile;
mod program;
mod recording;
mod stopwatch;
mod transfer;
mod weights;
mod worker;

pub use adapter::{Adapter, AdapterKind, Matrices};
pub use device::{VulkanOptions, device};
pub use instance::{Instance, InstanceError};
pub use trefoil_kernels_vulkan::Tuning;

/// Version of the kernels: part of every cache key.
pub(crate) const KERNEL_SET: &str = "1";
