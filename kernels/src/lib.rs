//! The computations: block codecs, the reference interpreter, CPU kernels.

pub mod blocks;
pub mod cases;
pub mod cpu;
pub mod host;
pub mod reference;
#[cfg(test)]
mod testing;
