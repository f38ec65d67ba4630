//! End-to-end and cross-crate tests.

pub mod mutation;
