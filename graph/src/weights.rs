//! Views of weights in mapped files: the file's pages are the weights, nothing is copied.

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::{Mmap, MmapOptions};

use crate::BlockType;

/// Bytes that weights are views of: a mapped file, bytes of the program itself, or owned bytes.
pub enum Storage {
    /// A memory-mapped model file.
    Mapped {
        /// The pages.
        map: Mmap,
        /// Where the file was found.
        path: PathBuf,
    },
    /// Bytes carried inside the program.
    Static(&'static [u8]),
    /// Bytes made at run time (synthetic models, converted biases).
    Owned(Vec<u8>),
    /// Address space that holds nothing: it reads as zeroes and takes no memory until it is touched
    /// (models that are planned without their weights).
    Reserved(Mmap),
}

impl Storage {
    /// Maps a file read-only. Truncating the file while it is mapped is undefined behaviour at the
    /// operating system's level (a fault on access), as with every mapped file.
    pub fn map(path: &Path) -> std::io::Result<Arc<Self>> {
        let file = File::open(path)?;
        // SAFETY: the mapping is read-only and private to this process' address space; the caller
        // accepts that another program may change the file, which changes values, not memory safety
        // of this program's own objects (weights are plain bytes, any bit pattern is valid).
        let map = unsafe { Mmap::map(&file)? };
        Ok(Arc::new(Self::Mapped { map, path: path.to_path_buf() }))
    }

    /// Reserves address space without contents.
    pub fn reserve(len: usize) -> std::io::Result<Arc<Self>> {
        let map = MmapOptions::new().len(len.max(1)).no_reserve_swap().map_anon()?;
        Ok(Arc::new(Self::Reserved(map.make_read_only()?)))
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Mapped { map, .. } | Self::Reserved(map) => map,
            Self::Static(bytes) => bytes,
            Self::Owned(bytes) => bytes,
        }
    }

    /// Name for messages: the path, or what kind of memory it is.
    pub fn label(&self) -> String {
        match self {
            Self::Mapped { path, .. } => path.display().to_string(),
            Self::Static(_) => "built-in model".to_owned(),
            Self::Owned(_) => "memory".to_owned(),
            Self::Reserved(_) => "no file".to_owned(),
        }
    }
}

impl fmt::Debug for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Storage({}, {} bytes)", self.label(), self.bytes().len())
    }
}

/// A matrix (or vector: one row) of stored elements, rows next to each other.
#[derive(Clone)]
pub struct Weight {
    /// Internal (GGUF style) name, such as `blk.3.ffn_down.weight`.
    pub name: Arc<str>,
    /// Element layout.
    pub block: BlockType,
    /// Rows: output features of a linear, entries of a table.
    pub rows: usize,
    /// Columns: input features.
    pub cols: usize,
    storage: Arc<Storage>,
    offset: usize,
}

impl Weight {
    /// A view of `rows` x `cols` elements at `offset` in `storage`; `None` if it would leave the
    /// storage or a row is not a whole number of blocks.
    pub fn new(
        name: impl Into<Arc<str>>,
        block: BlockType,
        rows: usize,
        cols: usize,
        storage: Arc<Storage>,
        offset: usize,
    ) -> Option<Self> {
        let row = usize::try_from(block.row_bytes(cols as u64)?).ok()?;
        let end = offset.checked_add(rows.checked_mul(row)?)?;
        (end <= storage.bytes().len()).then(|| Self {
            name: name.into(),
            block,
            rows,
            cols,
            storage,
            offset,
        })
    }

    /// An owned F32 weight, for values that no file holds in this form.
    pub fn from_f32(name: impl Into<Arc<str>>, rows: usize, cols: usize, values: &[f32]) -> Self {
        assert_eq!(values.len(), rows * cols, "from_f32: values do not fill {rows} x {cols}");
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self {
            name: name.into(),
            block: BlockType::F32,
            rows,
            cols,
            storage: Arc::new(Storage::Owned(bytes)),
            offset: 0,
        }
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        let info = self.block.info();
        self.cols / info.elements * info.bytes
    }

    /// Bytes of the whole view.
    pub fn len_bytes(&self) -> usize {
        self.rows * self.row_bytes()
    }

    /// All bytes of the view, row after row.
    pub fn bytes(&self) -> &[u8] {
        &self.storage.bytes()[self.offset..self.offset + self.len_bytes()]
    }

    /// Bytes of row `index`.
    pub fn row(&self, index: usize) -> &[u8] {
        let size = self.row_bytes();
        &self.bytes()[index * size..(index + 1) * size]
    }

    /// A view of `count` rows from `first` on, under its own name; panics if out of range (callers
    /// check shapes when they lower a model).
    pub fn slice_rows(&self, name: impl Into<Arc<str>>, first: usize, count: usize) -> Self {
        assert!(first + count <= self.rows, "slice_rows: {first}+{count} of {} rows", self.rows);
        Self {
            name: name.into(),
            rows: count,
            offset: self.offset + first * self.row_bytes(),
            ..self.clone()
        }
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.rows * self.cols
    }

    /// The storage this is a view of.
    pub fn storage(&self) -> &Arc<Storage> {
        &self.storage
    }

    /// Offset of the view in its storage, in bytes.
    pub fn offset(&self) -> usize {
        self.offset
    }
}

impl fmt::Debug for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}x{} {}", self.name, self.rows, self.cols, self.block)
    }
}
