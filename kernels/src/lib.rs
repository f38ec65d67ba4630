//! The computations: block codecs, the reference interpreter, CPU kernels.

pub mod blocks;
pub mod cases;
pub mod host;
pub mod reference;
