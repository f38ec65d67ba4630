//! End-to-end and cross-crate tests: what they share.

pub mod devices;
pub mod faulty;
pub mod golden;
pub mod golden_models;
pub mod made;
pub mod memory;
pub mod mutation;
pub mod npu;
pub mod numbers;
pub mod onnx;
pub mod running;
pub mod schemas;
pub mod serving;
pub mod tally;
pub mod touch;

pub use trefoil_kernels::cases::Random;
