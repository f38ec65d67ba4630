//! Reading one GGUF file.

use std::collections::HashSet;
use std::sync::Arc;

use super::cursor::{At, Cursor};
use super::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, GgufError, MAGIC, MAX_DIMENSIONS};
use crate::metadata::{Array, Metadata, Value, ValueType};
use crate::{BlockType, Storage, Tensor};

/// Deepest nesting of arrays in metadata; no known file nests them at all.
const MAX_NESTING: usize = 4;

/// Longest key or tensor name in bytes (the format's own limit for keys).
const MAX_NAME: u64 = 65_535;

/// Alignments taken: from that of the widest element to that of a large memory page.
const ALIGNMENTS: std::ops::RangeInclusive<u64> = 8..=65_536;

/// One GGUF file's contents.
#[derive(Debug)]
pub struct Part {
    /// Format version: 2 or 3.
    pub version: u32,
    /// Alignment of tensor data, in bytes.
    pub alignment: u64,
    /// Offset of the tensor data in the file, in bytes.
    pub data_offset: u64,
    /// The key-value table.
    pub metadata: Metadata,
    /// The tensors in the file's order, as views of `storage`.
    pub tensors: Vec<Tensor>,
}

/// Reads a GGUF file's header. Tensor data is only located and checked to lie in the file, each
/// tensor for itself, aligned to its elements (the bytes themselves must be aligned to 8).
pub fn read(storage: &Arc<Storage>) -> Result<Part, GgufError> {
    let bytes = storage.bytes();
    let (address, expected) = (bytes.as_ptr() as usize, *ALIGNMENTS.start() as usize);
    if !bytes.is_empty() && !address.is_multiple_of(expected) {
        return Err(GgufError::Address { expected, got: address });
    }
    let mut cursor = Cursor::new(bytes);
    let version = read_version(&mut cursor)?;
    // A tensor record takes at least 24 bytes, a key with its value at least 13.
    let tensor_count = cursor.count(24, At::Header("tensor count"))?;
    let key_count = cursor.count(13, At::Header("metadata count"))?;
    let metadata = read_metadata(&mut cursor, key_count as u64)?;
    let alignment = alignment(&metadata)?;

    let mut records = Vec::with_capacity(tensor_count);
    let mut names = HashSet::with_capacity(tensor_count);
    for index in 0..tensor_count as u64 {
        let record = read_record(&mut cursor, index)?;
        if !names.insert(record.name) {
            return Err(GgufError::DuplicateTensor { name: record.name.to_owned() });
        }
        records.push(record);
    }

    let data_offset = (cursor.position() as u64).next_multiple_of(alignment);
    let available = (bytes.len() as u64).saturating_sub(data_offset);
    for record in &records {
        record.check_place(alignment, available)?;
    }
    check_overlap(&records)?;
    let tensors = records
        .into_iter()
        .map(|record| Tensor {
            name: record.name.into(),
            block: record.block,
            shape: record.dimensions.iter().rev().copied().collect(),
            storage: storage.clone(),
            offset: data_offset + record.offset,
        })
        .collect();
    Ok(Part { version, alignment, data_offset, metadata, tensors })
}

fn read_version(cursor: &mut Cursor<'_>) -> Result<u32, GgufError> {
    let magic: [u8; 4] = cursor.array(At::Header("magic"))?;
    if magic != MAGIC {
        return Err(GgufError::Magic { got: magic.escape_ascii().to_string() });
    }
    let version = cursor.u32(At::Header("version"))?;
    match version {
        2 | 3 => Ok(version),
        // Versions are small numbers; one with only its upper half set is the other byte order.
        _ if version & 0xffff == 0 && version != 0 => {
            Err(GgufError::BigEndian { version: version.swap_bytes() })
        }
        got => Err(GgufError::Version { got }),
    }
}

fn alignment(metadata: &Metadata) -> Result<u64, GgufError> {
    let Some(field) = metadata.field(ALIGNMENT_KEY) else { return Ok(DEFAULT_ALIGNMENT) };
    match field.u64() {
        Ok(value) if value.is_power_of_two() && ALIGNMENTS.contains(&value) => Ok(value),
        _ => Err(GgufError::Alignment { got: field.value().to_string() }),
    }
}

fn read_metadata(cursor: &mut Cursor<'_>, count: u64) -> Result<Metadata, GgufError> {
    let mut metadata = Metadata::new();
    for index in 0..count {
        let key = name(cursor, At::Key(index))?;
        if key.is_empty() {
            return Err(GgufError::EmptyKey { index });
        }
        let kind = value_type(cursor, key)?;
        let value = read_value(cursor, key, kind)?;
        if metadata.set(key, value).is_some() {
            return Err(GgufError::DuplicateKey { key: key.to_owned() });
        }
    }
    Ok(metadata)
}

fn name<'a>(cursor: &mut Cursor<'a>, at: At<'_>) -> Result<&'a str, GgufError> {
    let text = cursor.text(at)?;
    let got = text.len() as u64;
    if got > MAX_NAME {
        return Err(GgufError::TooMany { at: format!("length of {at}"), most: MAX_NAME, got });
    }
    Ok(text)
}

fn value_type(cursor: &mut Cursor<'_>, key: &str) -> Result<ValueType, GgufError> {
    let got = cursor.u32(At::Value(key))?;
    ValueType::from_gguf(got).ok_or_else(|| GgufError::ValueType { key: key.to_owned(), got })
}

fn read_value(cursor: &mut Cursor<'_>, key: &str, kind: ValueType) -> Result<Value, GgufError> {
    let at = At::Value(key);
    Ok(match kind {
        ValueType::U8 => Value::U8(u8::from_le_bytes(cursor.array(at)?)),
        ValueType::I8 => Value::I8(i8::from_le_bytes(cursor.array(at)?)),
        ValueType::U16 => Value::U16(u16::from_le_bytes(cursor.array(at)?)),
        ValueType::I16 => Value::I16(i16::from_le_bytes(cursor.array(at)?)),
        ValueType::U32 => Value::U32(u32::from_le_bytes(cursor.array(at)?)),
        ValueType::I32 => Value::I32(i32::from_le_bytes(cursor.array(at)?)),
        ValueType::U64 => Value::U64(u64::from_le_bytes(cursor.array(at)?)),
        ValueType::I64 => Value::I64(i64::from_le_bytes(cursor.array(at)?)),
        ValueType::F32 => Value::F32(f32::from_le_bytes(cursor.array(at)?)),
        ValueType::F64 => Value::F64(f64::from_le_bytes(cursor.array(at)?)),
        ValueType::Bool => {
            let [byte] = cursor.array(at)?;
            Value::Bool(truth(key, byte)?)
        }
        ValueType::String => Value::String(cursor.text(at)?.to_owned()),
        ValueType::Array => Value::Array(read_array(cursor, key, 1)?),
    })
}

fn truth(key: &str, byte: u8) -> Result<bool, GgufError> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        got => Err(GgufError::Bool { key: key.to_owned(), got }),
    }
}

fn read_array(cursor: &mut Cursor<'_>, key: &str, depth: usize) -> Result<Array, GgufError> {
    let at = At::Value(key);
    if depth > MAX_NESTING {
        return Err(GgufError::Nesting { key: key.to_owned(), most: MAX_NESTING });
    }
    let kind = value_type(cursor, key)?;
    // Least bytes of one element: a number's own size, a text's length, an array's type and length.
    let least = match kind {
        ValueType::U8 | ValueType::I8 | ValueType::Bool => 1,
        ValueType::U16 | ValueType::I16 => 2,
        ValueType::U32 | ValueType::I32 | ValueType::F32 => 4,
        ValueType::U64 | ValueType::I64 | ValueType::F64 | ValueType::String => 8,
        ValueType::Array => 12,
    };
    let length = cursor.count(least, at)?;
    let count = length as u64;
    Ok(match kind {
        ValueType::U8 => Array::U8(cursor.numbers(count, at, u8::from_le_bytes)?),
        ValueType::I8 => Array::I8(cursor.numbers(count, at, i8::from_le_bytes)?),
        ValueType::U16 => Array::U16(cursor.numbers(count, at, u16::from_le_bytes)?),
        ValueType::I16 => Array::I16(cursor.numbers(count, at, i16::from_le_bytes)?),
        ValueType::U32 => Array::U32(cursor.numbers(count, at, u32::from_le_bytes)?),
        ValueType::I32 => Array::I32(cursor.numbers(count, at, i32::from_le_bytes)?),
        ValueType::U64 => Array::U64(cursor.numbers(count, at, u64::from_le_bytes)?),
        ValueType::I64 => Array::I64(cursor.numbers(count, at, i64::from_le_bytes)?),
        ValueType::F32 => Array::F32(cursor.numbers(count, at, f32::from_le_bytes)?),
        ValueType::F64 => Array::F64(cursor.numbers(count, at, f64::from_le_bytes)?),
        ValueType::Bool => {
            let bytes = cursor.take(count, at)?;
            Array::Bool(bytes.iter().map(|&b| truth(key, b)).collect::<Result<_, _>>()?)
        }
        ValueType::String => {
            let mut texts = Vec::with_capacity(length);
            for _ in 0..length {
                texts.push(cursor.text(at)?.to_owned());
            }
            Array::String(texts)
        }
        ValueType::Array => {
            let mut arrays = Vec::with_capacity(length);
            for _ in 0..length {
                arrays.push(read_array(cursor, key, depth + 1)?);
            }
            Array::Array(arrays)
        }
    })
}

/// A tensor record as it stands in the file.
struct Record<'a> {
    name: &'a str,
    block: BlockType,
    /// Innermost first.
    dimensions: Vec<u64>,
    /// From the start of the tensor data.
    offset: u64,
    bytes: u64,
}

fn read_record<'a>(cursor: &mut Cursor<'a>, index: u64) -> Result<Record<'a>, GgufError> {
    let name = name(cursor, At::TensorName(index))?;
    if name.is_empty() {
        return Err(GgufError::EmptyName { index });
    }
    let at = At::Tensor(name);
    let rank = cursor.u32(at)?;
    if rank as usize > MAX_DIMENSIONS {
        return Err(GgufError::Dimensions { name: name.to_owned(), got: rank });
    }
    let dimensions = cursor.numbers(rank.into(), at, u64::from_le_bytes)?;
    let id = cursor.u32(at)?;
    let offset = cursor.u64(at)?;
    let block = BlockType::from_gguf(id)
        .ok_or_else(|| GgufError::TensorType { name: name.to_owned(), id })?;
    let bytes = size(name, block, &dimensions)?;
    Ok(Record { name, block, dimensions, offset, bytes })
}

/// Bytes of a tensor with these dimensions, innermost first.
fn size(name: &str, block: BlockType, dimensions: &[u64]) -> Result<u64, GgufError> {
    if dimensions.contains(&0) {
        return Err(GgufError::EmptyTensor { name: name.to_owned(), shape: dimensions.to_vec() });
    }
    let overflow = || GgufError::Overflow { name: name.to_owned(), shape: dimensions.to_vec() };
    let (columns, outer) = dimensions.split_first().map_or((1, &[][..]), |(&c, rest)| (c, rest));
    let info = block.info();
    if !columns.is_multiple_of(info.elements as u64) {
        return Err(GgufError::PartBlock {
            name: name.to_owned(),
            block: info.name,
            elements: info.elements,
            columns,
        });
    }
    // The count of elements must fit too: it is larger than the bytes for quantised formats.
    dimensions.iter().try_fold(1u64, |n, &d| n.checked_mul(d)).ok_or_else(overflow)?;
    let row = block.row_bytes(columns).ok_or_else(overflow)?;
    outer.iter().try_fold(row, |n, &d| n.checked_mul(d)).ok_or_else(overflow)
}

impl Record<'_> {
    fn check_place(&self, alignment: u64, available: u64) -> Result<(), GgufError> {
        if !self.offset.is_multiple_of(alignment) {
            return Err(GgufError::Misaligned {
                name: self.name.to_owned(),
                alignment,
                offset: self.offset,
            });
        }
        if self.offset.checked_add(self.bytes).is_none_or(|end| end > available) {
            return Err(GgufError::OutOfFile {
                name: self.name.to_owned(),
                offset: self.offset,
                bytes: self.bytes,
                available,
            });
        }
        Ok(())
    }
}

/// Refuses tensors that share bytes; all must have passed [`Record::check_place`].
fn check_overlap(records: &[Record<'_>]) -> Result<(), GgufError> {
    let mut by_offset: Vec<_> = records.iter().collect();
    by_offset.sort_by_key(|record| record.offset);
    match by_offset.windows(2).find(|pair| pair[0].offset + pair[0].bytes > pair[1].offset) {
        Some(pair) => Err(GgufError::Overlap {
            first: pair[0].name.to_owned(),
            second: pair[1].name.to_owned(),
        }),
        None => Ok(()),
    }
}
