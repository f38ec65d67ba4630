//! GGUF files (versions 2 and 3): reading, writing, split files.
//!
//! Layout: magic `GGUF`, version (u32), tensor count and key count (u64), the keys with their
//! values, the tensor records (name, dimensions innermost first, type, offset), padding up to a
//! multiple of `general.alignment` (32 if absent), then the tensors' data. All little-endian.

mod cursor;
mod error;
mod reader;
mod split;
mod writer;

#[cfg(test)]
mod tests;

pub use error::GgufError;
pub use reader::{Part, read};
pub(crate) use split::{SplitName, open};
pub(crate) use writer::encode_entry;
pub use writer::{FileWriter, TensorSpec, Writer, to_bytes};

/// The first four bytes of every GGUF file.
pub const MAGIC: [u8; 4] = *b"GGUF";

/// Alignment of tensor data where `general.alignment` does not say another.
pub const DEFAULT_ALIGNMENT: u64 = 32;

/// Most dimensions a tensor may have.
pub const MAX_DIMENSIONS: usize = 4;

/// Key of the alignment.
const ALIGNMENT_KEY: &str = "general.alignment";
