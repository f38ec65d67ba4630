//! What can be wrong with a GGUF file.

use crate::metadata::MetadataError;

/// Why a GGUF file was refused. The file's name is added where the file was opened
/// ([`ModelFileError`](crate::ModelFileError)).
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say what each field is
pub enum GgufError {
    #[error("magic: expected \"GGUF\", got \"{got}\"; is this a GGUF file?")]
    Magic { got: String },
    #[error(
        "version: expected 2 or 3, got {got}; convert the model again with a current converter"
    )]
    Version { got: u32 },
    #[error(
        "version {version} is written in big-endian byte order, expected little-endian; \
         convert the model again for little-endian machines"
    )]
    BigEndian { version: u32 },
    #[error(
        "{at}: expected {needed} more bytes at offset {offset}, got {left} before the end; \
         is the file truncated?"
    )]
    Truncated { at: String, offset: u64, needed: u64, left: u64 },
    #[error("{at}: expected at most {most}, got {got}; the file is damaged")]
    TooMany { at: String, most: u64, got: u64 },
    #[error("{at}: expected UTF-8 text, got invalid bytes from byte {valid_up_to} on")]
    NotUtf8 { at: String, valid_up_to: usize },
    #[error("metadata key `{key}`: expected a value type from 0 to 12, got {got}")]
    ValueType { key: String, got: u32 },
    #[error("metadata key `{key}`: expected a bool of 0 or 1, got {got}")]
    Bool { key: String, got: u8 },
    #[error("metadata key `{key}`: expected arrays nested at most {most} deep, got more")]
    Nesting { key: String, most: usize },
    #[error("metadata key number {index} is empty; expected a name")]
    EmptyKey { index: u64 },
    #[error("metadata key `{key}`: expected it once, got it twice")]
    DuplicateKey { key: String },
    #[error("general.alignment: expected a power of two from 8 to 65536, got {got}")]
    Alignment { got: String },
    #[error("tensor number {index} has an empty name; expected a name")]
    EmptyName { index: u64 },
    #[error("tensor `{name}`: expected it once, got it twice")]
    DuplicateTensor { name: String },
    #[error("tensor `{name}`: expected at most 4 dimensions, got {got}")]
    Dimensions { name: String, got: u32 },
    #[error("tensor `{name}`: expected dimensions of at least 1, got {shape:?}")]
    EmptyTensor { name: String, shape: Vec<u64> },
    #[error("tensor `{name}`: dimensions {shape:?} (innermost first) overflow 64 bits")]
    Overflow { name: String, shape: Vec<u64> },
    #[error(
        "tensor `{name}`: type {id} is not one of the known block types; \
         convert or quantise the model to a known one such as Q4_K, Q8_0 or BF16"
    )]
    TensorType { name: String, id: u32 },
    #[error(
        "tensor `{name}`: rows of {block} need a multiple of {elements} elements, got {columns}"
    )]
    PartBlock { name: String, block: &'static str, elements: usize, columns: u64 },
    #[error("tensor `{name}`: expected an offset that is a multiple of {alignment}, got {offset}")]
    Misaligned { name: String, alignment: u64, offset: u64 },
    #[error(
        "tensor `{name}`: its {bytes} bytes at offset {offset} of the data end outside the file \
         ({available} bytes of data); is the file truncated?"
    )]
    OutOfFile { name: String, offset: u64, bytes: u64, available: u64 },
    #[error("tensors `{first}` and `{second}` share bytes of the file; the file is damaged")]
    Overlap { first: String, second: String },
    #[error("expected bytes aligned to {expected} in memory, got address {got:#x}")]
    Address { expected: usize, got: usize },
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    #[error(
        "this is part {number} of {count}, but its name is not of the form \
         NAME-{number:05}-of-{count:05}.gguf; give the parts their original names"
    )]
    SplitName { number: u64, count: u64 },
    #[error(
        "this is part {number} of {count} by its metadata, but part {named} of {named_count} by its name"
    )]
    SplitMismatch { number: u64, count: u64, named: u64, named_count: u64 },
    #[error("a model in several parts cannot be read from memory; open the files instead")]
    SplitInMemory,
    #[error("split.tensors.count: expected {expected} tensors in all parts, got {got}")]
    SplitTensors { expected: u64, got: u64 },
}
