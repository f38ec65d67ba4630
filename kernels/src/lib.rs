//! The computations: reference interpreter, CPU kernels, block codecs.

pub mod blocks;
