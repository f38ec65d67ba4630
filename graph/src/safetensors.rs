//! The safetensors container: a JSON table of tensors, then their bytes.
//!
//! Layout: length of the header (u64, little-endian), the header (`{"NAME": {"dtype": "BF16",
//! "shape": [..], "data_offsets": [from, to]}, ..., "__metadata__": {..}}`), the data without gaps.

use std::fmt;
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::{BlockType, Storage, Tensor};

/// Longest header the format allows, in bytes.
const MAX_HEADER: u64 = 100_000_000;

/// Most dimensions a tensor may have (as in GGUF files).
const MAX_DIMENSIONS: usize = 4;

/// Why a safetensors file was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say what each field is
pub enum SafetensorsError {
    #[error("header length: expected 8 bytes, got a file of {got}; is this a safetensors file?")]
    NoLength { got: u64 },
    #[error(
        "header length: expected at most {most} bytes, got {got}; \
         is the file truncated, or no safetensors file?"
    )]
    HeaderLength { most: u64, got: u64 },
    #[error("header: expected a JSON table of tensors")]
    Header(#[source] serde_json::Error),
    #[error("tensor `{name}`: expected data from byte {expected} on, got from {from} to {to}")]
    Offsets { name: String, expected: u64, from: u64, to: u64 },
    #[error("tensors take {expected} bytes, the file has {got}; is it truncated?")]
    Size { expected: u64, got: u64 },
    #[error("tensor `{name}`: shape {shape:?} of {dtype} overflows 64 bits")]
    Overflow { name: String, dtype: String, shape: Vec<u64> },
    #[error("tensor `{name}`: shape {shape:?} of {dtype} takes {expected} bytes, got {got}")]
    Length { name: String, dtype: String, shape: Vec<u64>, expected: u64, got: u64 },
    #[error(
        "tensor `{name}`: expected F32, F16 or BF16, got {dtype}; \
         save the model in one of these, or use a GGUF file of it"
    )]
    Dtype { name: String, dtype: String },
    #[error(
        "tensor `{name}`: expected at most {MAX_DIMENSIONS} dimensions of at least 1, got {shape:?}"
    )]
    Shape { name: String, shape: Vec<u64> },
}

/// A tensor as the header gives it; its bytes are known to lie in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Name.
    pub name: String,
    /// Element type as written.
    pub dtype: String,
    /// Dimensions, outermost first.
    pub shape: Vec<u64>,
    /// First byte, from the start of the file.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
}

#[derive(serde::Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// The header's entries in the order written; a name that comes twice is refused.
struct Header(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut entries = Vec::new();
                let mut seen = std::collections::HashSet::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    if !seen.insert(name.clone()) {
                        return Err(serde::de::Error::custom(format!(
                            "tensor `{name}`: expected it once, got it twice"
                        )));
                    }
                    entries.push((name, map.next_value()?));
                }
                Ok(Header(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// Reads the header; the tensors in the order of their data. Every range is checked to lie in the
/// file, and lengths to agree with shapes where the element type is one that can be used.
pub fn read(storage: &Storage) -> Result<Vec<Record>, SafetensorsError> {
    let bytes = storage.bytes();
    let Some((length, rest)) = bytes.split_first_chunk() else {
        return Err(SafetensorsError::NoLength { got: bytes.len() as u64 });
    };
    let length = u64::from_le_bytes(*length);
    let most = MAX_HEADER.min(rest.len() as u64);
    if length > most {
        return Err(SafetensorsError::HeaderLength { most, got: length });
    }
    let (header, data) = rest.split_at(length as usize);
    let Header(entries) = serde_json::from_slice(header).map_err(SafetensorsError::Header)?;
    let data_offset = 8 + length;
    let mut records: Vec<_> = entries.into_iter().collect();
    records.sort_by_key(|(_, entry)| entry.data_offsets);
    let mut expected = 0;
    let mut out = Vec::with_capacity(records.len());
    for (name, entry) in records {
        let (from, to) = entry.data_offsets;
        if from != expected || to < from {
            return Err(SafetensorsError::Offsets { name, expected, from, to });
        }
        if to > data.len() as u64 {
            return Err(SafetensorsError::Size { expected: to, got: data.len() as u64 });
        }
        let Entry { dtype, shape, .. } = entry;
        out.push(Record { name, dtype, shape, offset: data_offset + from, bytes: to - from });
        expected = to;
    }
    if expected != data.len() as u64 {
        return Err(SafetensorsError::Size { expected, got: data.len() as u64 });
    }
    Ok(out)
}

impl Record {
    /// The tensor under its internal name. Data that is not aligned to its elements (writers before
    /// 2023 did not care) is copied, all other data stays where it is.
    pub fn tensor(
        self,
        name: Arc<str>,
        storage: &Arc<Storage>,
    ) -> Result<Tensor, SafetensorsError> {
        let block = match self.dtype.as_str() {
            "F32" => BlockType::F32,
            "F16" => BlockType::F16,
            "BF16" => BlockType::BF16,
            _ => return Err(SafetensorsError::Dtype { name: self.name, dtype: self.dtype }),
        };
        if self.shape.len() > MAX_DIMENSIONS || self.shape.contains(&0) {
            return Err(SafetensorsError::Shape { name: self.name, shape: self.shape });
        }
        let element = block.info().bytes as u64;
        let length = self.shape.iter().try_fold(element, |n, &d| n.checked_mul(d));
        let Some(expected) = length else {
            let Self { name, dtype, shape, .. } = self;
            return Err(SafetensorsError::Overflow { name, dtype, shape });
        };
        if expected != self.bytes {
            let Self { name, dtype, shape, bytes: got, .. } = self;
            return Err(SafetensorsError::Length { name, dtype, shape, expected, got });
        }
        // Within the file, as `read` checked, so both fit in a usize.
        let range = self.offset as usize..(self.offset + self.bytes) as usize;
        let data = &storage.bytes()[range];
        let (storage, offset) = if (data.as_ptr() as usize).is_multiple_of(element as usize) {
            (storage.clone(), self.offset)
        } else {
            (Arc::new(Storage::Owned(data.to_vec())), 0)
        };
        Ok(Tensor { name, block, shape: self.shape, storage, offset })
    }
}
