//! The computations: reference interpreter, CPU kernels, block codecs.
