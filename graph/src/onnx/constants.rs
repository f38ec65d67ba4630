//! Constants of a model: stored tensors and those of `Constant` nodes, with their data found and
//! checked.

use std::collections::{BTreeMap, HashMap};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::OnnxError;
use super::proto::{Element, Source, StoredTensor};
use crate::{BlockType, Storage};

/// A constant whose data is known to be as long as its shape says.
#[derive(Clone, Debug)]
pub(super) struct Constant {
    pub(super) name: String,
    pub(super) dims: Vec<usize>,
    pub(super) element: Element,
    storage: Arc<Storage>,
    offset: usize,
}

impl Constant {
    /// Number of elements.
    pub(super) fn len(&self) -> usize {
        self.dims.iter().product()
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.storage.bytes()[self.offset..self.offset + self.len() * self.element.bytes()]
    }

    /// Where the data lies.
    pub(super) fn place(&self) -> (&Arc<Storage>, usize) {
        (&self.storage, self.offset)
    }

    /// The format of a weight, if these are floating point numbers that weights come in.
    pub(super) fn block(&self) -> Option<BlockType> {
        match self.element {
            Element::F32 => Some(BlockType::F32),
            Element::F16 => Some(BlockType::F16),
            Element::BF16 => Some(BlockType::BF16),
            _ => None,
        }
    }

    /// Element `index` as a number, whatever its type.
    pub(super) fn number(&self, index: usize) -> f64 {
        let size = self.element.bytes();
        let at = self.offset + index * size;
        let b = &self.storage.bytes()[at..at + size];
        match self.element {
            Element::F32 => f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
            Element::F16 => half::f16::from_le_bytes([b[0], b[1]]).to_f64(),
            Element::BF16 => half::bf16::from_le_bytes([b[0], b[1]]).to_f64(),
            Element::F64 => f64::from_le_bytes(b.try_into().expect("eight bytes")),
            Element::U8 | Element::Bool => f64::from(b[0]),
            Element::I8 => f64::from(b[0] as i8),
            Element::I32 => f64::from(i32::from_le_bytes([b[0], b[1], b[2], b[3]])),
            Element::I64 => i64::from_le_bytes(b.try_into().expect("eight bytes")) as f64,
        }
    }

    /// Are these whole numbers by type?
    pub(super) fn is_integer(&self) -> bool {
        matches!(self.element, Element::I32 | Element::I64 | Element::Bool)
    }

    fn error(&self, expected: impl Into<String>, got: impl Into<String>) -> OnnxError {
        let (expected, got) = (expected.into(), got.into());
        OnnxError::Tensor { tensor: self.name.clone(), expected, got }
    }

    /// Rows and columns of a matrix.
    pub(super) fn matrix(&self) -> Result<(usize, usize), OnnxError> {
        match self.dims[..] {
            [rows, cols] => Ok((rows, cols)),
            _ => Err(self.error("a matrix", format!("shape {:?}", self.dims))),
        }
    }

    /// The format of a weight, or an error that says which there are.
    pub(super) fn weight_block(&self) -> Result<BlockType, OnnxError> {
        self.block().ok_or_else(|| self.error("F32, F16 or BF16", format!("{:?}", self.element)))
    }
}

/// Finds the data of tensors: in the model file, or in files beside it.
pub(super) struct Loader<'a> {
    /// The model file.
    file: &'a Arc<Storage>,
    folder: &'a Path,
    /// The folder without links, once it was needed.
    real_folder: Option<PathBuf>,
    others: BTreeMap<String, Arc<Storage>>,
    /// Ranges of other files that tensors take: path, first and last byte, tensor.
    ranges: Vec<(String, u64, u64, String)>,
}

impl<'a> Loader<'a> {
    pub(super) fn new(file: &'a Arc<Storage>, folder: &'a Path) -> Self {
        Self { file, folder, real_folder: None, others: BTreeMap::new(), ranges: Vec::new() }
    }

    /// Bytes of all files that were opened.
    pub(super) fn file_bytes(&self) -> u64 {
        let all = self.others.values().chain([self.file]);
        all.map(|storage| storage.bytes().len() as u64).sum()
    }

    /// A tensor's data, checked to be there whole.
    pub(super) fn load(&mut self, tensor: &StoredTensor<'a>) -> Result<Constant, OnnxError> {
        let fail = |expected: String, got: String| OnnxError::Tensor {
            tensor: tensor.name.to_owned(),
            expected,
            got,
        };
        let element = tensor.element.ok_or_else(|| {
            fail("a known element type".to_owned(), format!("type {}", tensor.type_number))
        })?;
        let elements = tensor.dims.iter().try_fold(1u64, |n, &dim| n.checked_mul(dim));
        let want = elements
            .and_then(|n| n.checked_mul(element.bytes() as u64))
            .filter(|&bytes| bytes < 1 << 46)
            .ok_or_else(|| fail("a shape that fits".to_owned(), format!("{:?}", tensor.dims)))?;
        let (storage, offset, got) = match &tensor.source {
            Source::Raw(data) => {
                let base = self.file.bytes().as_ptr() as usize;
                // Data that is left out lies nowhere.
                let offset = if data.is_empty() { 0 } else { data.as_ptr() as usize - base };
                (self.file.clone(), offset, data.len() as u64)
            }
            Source::Integers(numbers) => {
                let bytes = little_endian(element, numbers);
                let length = bytes.len() as u64;
                (Arc::new(Storage::Owned(bytes)), 0, length)
            }
            Source::External { path, offset, length } => {
                let storage = self.external(tensor.name, path)?;
                let there = (storage.bytes().len() as u64).saturating_sub(*offset);
                let got = length.unwrap_or(want.min(there));
                if got > there {
                    let got = format!("{got} bytes from {offset} of a file with {there} left");
                    return Err(fail("data within its file".to_owned(), got));
                }
                self.ranges.push((
                    (*path).to_owned(),
                    *offset,
                    offset + got,
                    tensor.name.to_owned(),
                ));
                (storage, *offset as usize, got)
            }
        };
        if got != want {
            let expected = format!("{want} bytes for {:?} of {element:?}", tensor.dims);
            return Err(fail(expected, format!("{got}")));
        }
        // All within a file that is mapped, so that each fits.
        let dims = tensor.dims.iter().map(|&dim| dim as usize).collect();
        // An empty tensor's data may be anywhere.
        let offset = if want == 0 { 0 } else { offset };
        Ok(Constant { name: tensor.name.to_owned(), dims, element, storage, offset })
    }

    /// Checks that no two tensors share a part of another file; all of it they may.
    pub(super) fn check_overlaps(&mut self) -> Result<(), OnnxError> {
        self.ranges.retain(|(_, from, to, _)| from != to);
        self.ranges.sort();
        for pair in self.ranges.windows(2) {
            let [(file_a, from_a, to_a, first), (file_b, from_b, to_b, second)] = pair else {
                continue;
            };
            if file_a == file_b && from_b < to_a && (from_a, to_a) != (from_b, to_b) {
                let (first, second) = (first.clone(), second.clone());
                return Err(OnnxError::Overlap { first, second });
            }
        }
        Ok(())
    }

    /// Another file of the folder. It must lie in it: by its name, and when links are followed.
    fn external(&mut self, tensor: &str, path: &str) -> Result<Arc<Storage>, OnnxError> {
        if let Some(storage) = self.others.get(path) {
            return Ok(storage.clone());
        }
        let outside = || OnnxError::Outside { tensor: tensor.to_owned(), path: path.to_owned() };
        let missing = || OnnxError::NoSuchFile { tensor: tensor.to_owned(), path: path.to_owned() };
        let normal = |part| matches!(part, Component::Normal(_));
        // A backslash or a colon is a separator on other systems: no model needs one.
        if path.is_empty()
            || path.contains(['\\', ':', '\0'])
            || !Path::new(path).components().all(normal)
        {
            return Err(outside());
        }
        if self.real_folder.is_none() {
            let folder = self.folder.canonicalize().map_err(|_| missing())?;
            self.real_folder = Some(folder);
        }
        let file = self.folder.join(path).canonicalize().map_err(|_| missing())?;
        if !self.real_folder.as_ref().is_some_and(|folder| file.starts_with(folder)) {
            return Err(outside());
        }
        if !file.is_file() {
            return Err(missing());
        }
        let storage = Storage::map(&file).map_err(|_| missing())?;
        self.others.insert(path.to_owned(), storage.clone());
        Ok(storage)
    }
}

/// Integers as they would lie in a file; floating point numbers of two bytes come as their bits.
fn little_endian(element: Element, numbers: &[u64]) -> Vec<u8> {
    let size = element.bytes();
    numbers.iter().flat_map(|number| number.to_le_bytes().into_iter().take(size)).collect()
}

/// Constants by the names that nodes read them under.
#[derive(Debug, Default)]
pub(super) struct Constants {
    pub(super) all: Vec<Constant>,
    by_name: HashMap<String, usize>,
}

impl Constants {
    /// Adds a constant; a name that is there is an error.
    pub(super) fn add(&mut self, name: &str, constant: Constant) -> Result<usize, OnnxError> {
        let index = self.all.len();
        if self.by_name.insert(name.to_owned(), index).is_some() {
            return Err(constant.error("one tensor of each name", "two"));
        }
        self.all.push(constant);
        Ok(index)
    }

    /// The number of a constant.
    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }
}
