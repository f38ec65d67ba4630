//! Writing GGUF files tensor by tensor: memory stays flat whatever the model's size.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MAGIC, MAX_DIMENSIONS};
use crate::BlockType;
use crate::metadata::{Array, Metadata, Value};

/// Version written.
const VERSION: u32 = 3;

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name.
    pub name: Arc<str>,
    /// Element layout.
    pub block: BlockType,
    /// Dimensions, outermost first, at most four.
    pub shape: Vec<u64>,
}

impl TensorSpec {
    /// A tensor of this name, layout and shape (outermost first).
    pub fn new(name: impl Into<Arc<str>>, block: BlockType, shape: impl Into<Vec<u64>>) -> Self {
        Self { name: name.into(), block, shape: shape.into() }
    }

    /// Bytes of the tensor's data; an error if a row is not a whole number of blocks or the size
    /// overflows.
    pub fn bytes(&self) -> io::Result<u64> {
        let (columns, outer) = self.shape.split_last().map_or((1, &[][..]), |(&c, r)| (c, r));
        let row = self.block.row_bytes(columns);
        row.and_then(|row| outer.iter().try_fold(row, |n, &d| n.checked_mul(d))).ok_or_else(|| {
            invalid(format!(
                "tensor `{}`: shape {:?} is not storable as {}",
                self.name, self.shape, self.block
            ))
        })
    }
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

/// Writes a GGUF file to any sink: the header at once, then each tensor's data in the order of the
/// specifications, in pieces of any size.
#[derive(Debug)]
pub struct Writer<W> {
    sink: W,
    /// Name and bytes of each tensor.
    tensors: Vec<(Arc<str>, u64)>,
    alignment: u64,
    /// Tensor being written and its bytes so far.
    current: usize,
    written: u64,
}

impl<W: Write> Writer<W> {
    /// Writes everything before the data. The alignment is that of `general.alignment`, if set.
    pub fn new(mut sink: W, metadata: &Metadata, specs: &[TensorSpec]) -> io::Result<Self> {
        let alignment = metadata
            .u64(ALIGNMENT_KEY)
            .map_err(|error| invalid(error.to_string()))?
            .unwrap_or(DEFAULT_ALIGNMENT);
        if !alignment.is_power_of_two() {
            return Err(invalid(format!(
                "{ALIGNMENT_KEY}: expected a power of two, got {alignment}"
            )));
        }
        let (header, tensors) = header(metadata, specs, alignment)?;
        sink.write_all(&header)?;
        Ok(Self { sink, tensors, alignment, current: 0, written: 0 })
    }

    /// Writes the next bytes of the tensor `name`, which must be the one whose turn it is.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let Some((turn, size)) = self.tensors.get(self.current) else {
            return Err(invalid(format!("tensor `{name}`: all tensors are written already")));
        };
        if **turn != *name {
            return Err(invalid(format!("tensor `{name}`: it is the turn of `{turn}`")));
        }
        let after = self.written + bytes.len() as u64;
        if after > *size {
            return Err(invalid(format!("tensor `{name}`: expected {size} bytes, got {after}")));
        }
        self.sink.write_all(bytes)?;
        self.written = after;
        if after == *size {
            let padding = after.next_multiple_of(self.alignment) - after;
            io::copy(&mut io::Read::take(io::repeat(0), padding), &mut self.sink)?;
            self.current += 1;
            self.written = 0;
        }
        Ok(())
    }

    /// Flushes and gives the sink back; an error if a tensor is missing or incomplete.
    pub fn finish(mut self) -> io::Result<W> {
        if let Some((name, size)) = self.tensors.get(self.current) {
            return Err(invalid(format!(
                "tensor `{name}`: expected {size} bytes, got {}",
                self.written
            )));
        }
        self.sink.flush()?;
        Ok(self.sink)
    }
}

/// The header with its padding, and each tensor's name and size.
#[allow(clippy::type_complexity)] // a private pair
fn header(
    metadata: &Metadata,
    specs: &[TensorSpec],
    alignment: u64,
) -> io::Result<(Vec<u8>, Vec<(Arc<str>, u64)>)> {
    let mut out = Vec::new();
    out.extend(MAGIC);
    out.extend(VERSION.to_le_bytes());
    out.extend((specs.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata.iter() {
        encode_entry(&mut out, key, value);
    }
    let mut offset = 0u64;
    let mut tensors = Vec::with_capacity(specs.len());
    for spec in specs {
        if spec.shape.len() > MAX_DIMENSIONS {
            return Err(invalid(format!(
                "tensor `{}`: expected at most {MAX_DIMENSIONS} dimensions, got {:?}",
                spec.name, spec.shape
            )));
        }
        let size = spec.bytes()?;
        encode_text(&mut out, &spec.name);
        out.extend((spec.shape.len() as u32).to_le_bytes());
        for dimension in spec.shape.iter().rev() {
            out.extend(dimension.to_le_bytes());
        }
        out.extend(spec.block.info().gguf_id.to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset =
            offset
                .checked_add(size)
                .and_then(|end| end.checked_next_multiple_of(alignment))
                .ok_or_else(|| invalid(format!("tensor `{}`: the file is too large", spec.name)))?;
        tensors.push((spec.name.clone(), size));
    }
    out.resize(out.len().next_multiple_of(alignment as usize), 0);
    Ok((out, tensors))
}

fn encode_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// Appends one key and its value as they stand in a file.
pub(crate) fn encode_entry(out: &mut Vec<u8>, key: &str, value: &Value) {
    encode_text(out, key);
    out.extend(value.kind().gguf_id().to_le_bytes());
    match value {
        Value::U8(v) => out.extend(v.to_le_bytes()),
        Value::I8(v) => out.extend(v.to_le_bytes()),
        Value::U16(v) => out.extend(v.to_le_bytes()),
        Value::I16(v) => out.extend(v.to_le_bytes()),
        Value::U32(v) => out.extend(v.to_le_bytes()),
        Value::I32(v) => out.extend(v.to_le_bytes()),
        Value::U64(v) => out.extend(v.to_le_bytes()),
        Value::I64(v) => out.extend(v.to_le_bytes()),
        Value::F32(v) => out.extend(v.to_le_bytes()),
        Value::F64(v) => out.extend(v.to_le_bytes()),
        Value::Bool(v) => out.push(u8::from(*v)),
        Value::String(v) => encode_text(out, v),
        Value::Array(v) => encode_array(out, v),
    }
}

fn encode_array(out: &mut Vec<u8>, array: &Array) {
    out.extend(array.kind().gguf_id().to_le_bytes());
    out.extend((array.len() as u64).to_le_bytes());
    match array {
        Array::U8(v) => out.extend(v),
        Array::I8(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Array::U16(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Array::I16(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Array::U32(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Array::I32(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Array::U64(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Array::I64(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Array::F32(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Array::F64(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Array::Bool(v) => out.extend(v.iter().map(|&x| u8::from(x))),
        Array::String(v) => v.iter().for_each(|x| encode_text(out, x)),
        Array::Array(v) => v.iter().for_each(|x| encode_array(out, x)),
    }
}

/// A whole file in memory, for tests and small synthetic models.
pub fn to_bytes(metadata: &Metadata, tensors: &[(TensorSpec, &[u8])]) -> io::Result<Vec<u8>> {
    let specs: Vec<_> = tensors.iter().map(|(spec, _)| spec.clone()).collect();
    let mut writer = Writer::new(Vec::new(), metadata, &specs)?;
    for (spec, bytes) in tensors {
        writer.write(&spec.name, bytes)?;
    }
    writer.finish()
}

/// Writes a GGUF file that appears under its name only once it is complete: until
/// [`finish`](Self::finish) the data goes to a temporary file beside it, removed on drop.
#[derive(Debug)]
pub struct FileWriter {
    writer: Option<Writer<BufWriter<File>>>,
    temporary: PathBuf,
    path: PathBuf,
}

impl FileWriter {
    /// Creates the temporary file and writes everything before the data.
    pub fn create(path: &Path, metadata: &Metadata, specs: &[TensorSpec]) -> io::Result<Self> {
        let name = path.file_name().ok_or_else(|| {
            invalid(format!("{}: expected the path of a file to write", path.display()))
        })?;
        let mut temporary_name = std::ffi::OsString::from(".");
        temporary_name.push(name);
        temporary_name.push(format!(".{}.tmp", std::process::id()));
        let temporary = path.with_file_name(temporary_name);
        let sink = BufWriter::with_capacity(1 << 20, File::create_new(&temporary)?);
        // From here on a drop removes the file.
        let mut this = Self { writer: None, temporary, path: path.to_path_buf() };
        this.writer = Some(Writer::new(sink, metadata, specs)?);
        Ok(this)
    }

    /// Writes the next bytes of the tensor `name`, which must be the one whose turn it is.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.writer.as_mut().expect("present until finish").write(name, bytes)
    }

    /// Completes the file and gives it its name, replacing a file that is there.
    pub fn finish(mut self) -> io::Result<()> {
        let writer = self.writer.take().expect("present until finish");
        let file = writer.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        std::fs::rename(&self.temporary, &self.path)
    }
}

impl Drop for FileWriter {
    fn drop(&mut self) {
        // Fails after a successful rename, when there is nothing to remove.
        let _ = std::fs::remove_file(&self.temporary);
    }
}
