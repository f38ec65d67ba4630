//! Tensors under internal names, out of the constants of a graph.
//!
//! A constant that lies as a weight should is a view of the file. What must be turned, unpacked or
//! moved to an aligned place is a copy of its own; copies are counted and bounded.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::OnnxError;
use super::blocks::NBits;
use super::constants::Constants;
use super::value::{Dense, Matrix};
use crate::{BlockType, Storage, Tensor};

/// Most bytes of copies for each byte of files: 4-bit codes in F32 are eight, and the rest is scales.
const COPIES_PER_BYTE: u64 = 9;

/// A matrix as rows of a storage.
#[derive(Clone)]
struct Stored {
    block: BlockType,
    rows: usize,
    cols: usize,
    storage: Arc<Storage>,
    offset: usize,
}

#[derive(PartialEq, Eq, Hash)]
enum Key {
    Dense(Dense),
    Blocks(NBits),
}

/// Tensors, and what their making took.
pub(super) struct Builder<'c> {
    constants: &'c Constants,
    pub(super) tensors: BTreeMap<Arc<str>, Tensor>,
    made: HashMap<Key, Stored>,
    /// Bytes that are copies.
    pub(super) copied: u64,
    most_copied: u64,
    /// Largest error of a matrix whose scales were rounded.
    pub(super) rounding: f64,
}

impl<'c> Builder<'c> {
    /// Tensors from files of `file_bytes`.
    pub(super) fn new(constants: &'c Constants, file_bytes: u64) -> Self {
        Self {
            constants,
            tensors: BTreeMap::new(),
            made: HashMap::new(),
            copied: 0,
            most_copied: file_bytes.saturating_mul(COPIES_PER_BYTE),
            rounding: 0.0,
        }
    }

    fn own(&mut self, bytes: u64) -> Result<(), OnnxError> {
        self.copied = self.copied.saturating_add(bytes);
        if self.copied > self.most_copied {
            return Err(OnnxError::Copies { most: self.most_copied });
        }
        Ok(())
    }

    /// A matrix as `[out, in]`.
    fn stored(&mut self, matrix: &Matrix) -> Result<Stored, OnnxError> {
        let key = match matrix {
            Matrix::Dense(dense) => Key::Dense(*dense),
            Matrix::Blocks(blocks) => Key::Blocks((**blocks).clone()),
        };
        if let Some(stored) = self.made.get(&key) {
            return Ok(stored.clone());
        }
        let stored = match matrix {
            Matrix::Dense(dense) => self.dense(*dense)?,
            Matrix::Blocks(blocks) => {
                // What F32 would take, which is the most.
                let (rows, cols) = (blocks.rows as u64, blocks.cols as u64);
                let before = self.copied;
                self.own(rows.saturating_mul(cols).saturating_mul(4))?;
                let repacked = blocks.repack(self.constants)?;
                self.copied = before + repacked.bytes.len() as u64;
                self.rounding = self.rounding.max(repacked.error);
                Stored {
                    block: repacked.block,
                    rows: blocks.rows,
                    cols: blocks.cols,
                    storage: Arc::new(Storage::Owned(repacked.bytes)),
                    offset: 0,
                }
            }
        };
        self.made.insert(key, stored.clone());
        Ok(stored)
    }

    /// A plain matrix: turned if it lies as `[in, out]`.
    fn dense(&mut self, dense: Dense) -> Result<Stored, OnnxError> {
        let constant = &self.constants.all[dense.constant];
        let block = constant.weight_block()?;
        let (rows, cols) = constant.matrix()?;
        if dense.turned {
            let (storage, offset) = self.aligned(dense.constant)?;
            return Ok(Stored { block, rows, cols, storage, offset });
        }
        let bytes = constant.bytes();
        self.own(bytes.len() as u64)?;
        let turned = turned(bytes, rows, cols, constant.element.bytes());
        let storage = Arc::new(Storage::Owned(turned));
        Ok(Stored { block, rows: cols, cols: rows, storage, offset: 0 })
    }

    /// Where a constant's data lies, copied if it does not lie at a multiple of its elements' size.
    fn aligned(&mut self, constant: usize) -> Result<(Arc<Storage>, usize), OnnxError> {
        let constant = &self.constants.all[constant];
        let bytes = constant.bytes();
        if (bytes.as_ptr() as usize).is_multiple_of(constant.element.bytes()) {
            let (storage, offset) = constant.place();
            return Ok((storage.clone(), offset));
        }
        self.own(bytes.len() as u64)?;
        Ok((Arc::new(Storage::Owned(bytes.to_vec())), 0))
    }

    fn insert(&mut self, name: String, tensor: (BlockType, Vec<u64>, Arc<Storage>, usize)) {
        let (block, shape, storage, offset) = tensor;
        let name: Arc<str> = name.into();
        let offset = offset as u64;
        let tensor = Tensor { name: name.clone(), block, shape, storage, offset };
        self.tensors.insert(name, tensor);
    }

    /// Rows `first..first + count` of a matrix.
    pub(super) fn rows(
        &mut self,
        name: String,
        matrix: &Matrix,
        first: usize,
        count: usize,
    ) -> Result<(), OnnxError> {
        let stored = self.stored(matrix)?;
        let row = stored.block.row_bytes(stored.cols as u64).filter(|_| {
            count > 0 && first.checked_add(count).is_some_and(|end| end <= stored.rows)
        });
        let Some(row) = row else {
            return Err(OnnxError::Tensor {
                tensor: name,
                expected: format!("rows {first} to {}", first.saturating_add(count)),
                got: format!("{} rows", stored.rows),
            });
        };
        let offset = stored.offset + first * row as usize;
        let shape = vec![count as u64, stored.cols as u64];
        self.insert(name, (stored.block, shape, stored.storage, offset));
        Ok(())
    }

    /// A whole matrix; returns its rows and columns.
    pub(super) fn matrix(
        &mut self,
        name: String,
        matrix: &Matrix,
    ) -> Result<(usize, usize), OnnxError> {
        let Stored { rows, cols, .. } = self.stored(matrix)?;
        self.rows(name, matrix, 0, rows)?;
        Ok((rows, cols))
    }

    /// A table whose rows are read by id: it lies as it should.
    pub(super) fn table(&mut self, name: String, table: Dense) -> Result<usize, OnnxError> {
        let matrix = Matrix::Dense(Dense { turned: true, ..table });
        self.matrix(name, &matrix).map(|(rows, _)| rows)
    }

    /// Elements `first..first + count` of a vector.
    pub(super) fn vector(
        &mut self,
        name: String,
        vector: Dense,
        first: usize,
        count: usize,
    ) -> Result<(), OnnxError> {
        let constant = &self.constants.all[vector.constant];
        let (block, size) = (constant.weight_block()?, constant.element.bytes());
        let length = constant.len();
        if first.checked_add(count).is_none_or(|end| end > length) {
            let expected = format!("elements {first} to {}", first.saturating_add(count));
            return Err(OnnxError::Tensor { tensor: name, expected, got: format!("{length}") });
        }
        let (storage, offset) = self.aligned(vector.constant)?;
        self.insert(name, (block, vec![count as u64], storage, offset + first * size));
        Ok(())
    }

    /// Numbers that no file holds in this form.
    pub(super) fn numbers(&mut self, name: &str, values: &[f32]) -> Result<(), OnnxError> {
        self.own(values.len() as u64 * 4)?;
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let storage = Arc::new(Storage::Owned(bytes));
        self.insert(name.to_owned(), (BlockType::F32, vec![values.len() as u64], storage, 0));
        Ok(())
    }
}

/// The transpose of a matrix of `rows` x `cols` elements of `size` bytes.
fn turned(bytes: &[u8], rows: usize, cols: usize, size: usize) -> Vec<u8> {
    // A tile of both sides fits in the first cache.
    const TILE: usize = 32;
    let mut out = vec![0; bytes.len()];
    for row_start in (0..rows).step_by(TILE) {
        for col_start in (0..cols).step_by(TILE) {
            for row in row_start..rows.min(row_start + TILE) {
                for col in col_start..cols.min(col_start + TILE) {
                    let (from, to) = ((row * cols + col) * size, (col * rows + row) * size);
                    out[to..to + size].copy_from_slice(&bytes[from..from + size]);
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::turned;

    #[test]
    fn a_transpose_turned_again_is_the_matrix() {
        let (rows, cols) = (37, 65);
        let bytes: Vec<u8> = (0..rows * cols * 2).map(|i| (i % 251) as u8).collect();
        let once = turned(&bytes, rows, cols, 2);
        assert_eq!(once[2 * (3 * rows + 5)..][..2], bytes[2 * (5 * cols + 3)..][..2]);
        assert_eq!(turned(&once, cols, rows, 2), bytes);
    }
}
