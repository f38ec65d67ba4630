//! End-to-end and cross-crate tests: what they share.

pub mod devices;
pub mod faulty;
pub mod golden;
pub mod made;
pub mod memory;
pub mod mutation;
pub mod numbers;
pub mod running;
pub mod serving;
pub mod touch;

pub use trefoil_kernels::cases::Random;
