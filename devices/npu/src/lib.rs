//! NPUs through ONNX Runtime, which is loaded at run time: a machine without it simply has no such device.
//!
//! [`NpuDevice::open`] finds the library and the provider that reaches the NPU, or says what is missing and
//! how to mend it. A segment is compiled ahead of time for a few static row counts (`rows`); what the
//! provider does not take is an error with its reason, never work for the processor's cores. What was
//! compiled is kept in a folder where the provider can write it down (`cache`).
//!
//! There is no `unsafe` here: ONNX Runtime's functions are called through `ort`.
#![forbid(unsafe_code)]

mod cache;
mod compile;
mod device;
mod error;
mod options;
mod program;
mod provider;
mod refusals;
mod rows;
mod runtime;
mod search;
mod session;
mod worker;

pub use device::NpuDevice;
pub use error::NpuError;
pub use options::{NpuOptions, Provider};
pub use refusals::RefusedSegment;
pub use trefoil_kernels_npu::{FormError, NumericForm};
