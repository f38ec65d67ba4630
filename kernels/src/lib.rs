//! The computations: reference interpreter, CPU kernels, block codecs.

pub mod blocks;
pub mod cpu;

#[cfg(test)]
mod testing;
