//! Weights of `MatMulNBits`: integers of 4 or 8 bits with a scale, and perhaps a zero point, for each
//! block of a row, turned into the formats that kernels read.
//!
//! Codes and scales lie apart in ONNX files and together in [`BlockType`]s, so that a copy cannot be
//! avoided. `(code - 8) * scale` is a Q4_0, `(code - zero) * scale` a Q4_1, `(code - 128) * scale` a
//! Q8_0; a block of 64 or more becomes several of 32 with the same scale. Those formats keep scales in
//! half precision. Where a file's are not, they are rounded if that changes the weights by less than
//! [`MOST_ERROR`]; else the weights are written out in F32, exactly.

use half::f16;

use super::OnnxError;
use super::constants::{Constant, Constants};
use super::proto::Element;
use crate::BlockType;

/// Most squared error, relative to the squared weights, that rounding scales may cause.
const MOST_ERROR: f64 = 1e-6;

/// Weights per block of the formats that kernels read.
const BLOCK: usize = 32;

/// The inputs and attributes of one `MatMulNBits`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct NBits {
    pub(super) codes: usize,
    pub(super) scales: usize,
    pub(super) zeros: Option<usize>,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) bits: usize,
    pub(super) block: usize,
}

/// Weights in a format of ours.
pub(super) struct Repacked {
    pub(super) block: BlockType,
    pub(super) bytes: Vec<u8>,
    /// Squared error relative to the squared weights; 0 if exact.
    pub(super) error: f64,
}

/// A matrix being read.
struct Source<'a> {
    shape: &'a NBits,
    codes: &'a [u8],
    scales: &'a Constant,
    zeros: Option<&'a [u8]>,
    blocks_per_row: usize,
}

impl NBits {
    /// Checks all sizes against the constants.
    pub(super) fn check(&self, constants: &Constants) -> Result<(), String> {
        let &Self { rows, cols, bits, block, .. } = self;
        if !matches!(bits, 4 | 8) {
            return Err(format!("expected 4 or 8 bits, got {bits}"));
        }
        if !block.is_power_of_two() || !(16..=4096).contains(&block) {
            return Err(format!("expected blocks of 16 to 4096 weights, got {block}"));
        }
        if rows == 0 || cols == 0 {
            return Err(format!("expected weights, got {rows} x {cols}"));
        }
        let constant = |index: usize| &constants.all[index];
        let blocks = rows.saturating_mul(cols.div_ceil(block));
        let codes = constant(self.codes);
        let want = blocks.saturating_mul(block / 8 * bits);
        if codes.element != Element::U8 || codes.len() != want {
            let (name, got) = (&codes.name, codes.len());
            return Err(format!("expected {want} bytes of codes in `{name}`, got {got}"));
        }
        let scales = constant(self.scales);
        if scales.block().is_none() || scales.len() != blocks {
            let (name, got) = (&scales.name, scales.len());
            return Err(format!("expected {blocks} scales in `{name}`, got {got}"));
        }
        if let Some(zeros) = self.zeros.map(constant) {
            let want = rows * (cols.div_ceil(block) * bits).div_ceil(8);
            if zeros.element != Element::U8 || zeros.len() != want {
                let (name, got) = (&zeros.name, zeros.len());
                return Err(format!("expected {want} bytes of zero points in `{name}`, got {got}"));
            }
        }
        Ok(())
    }

    fn source<'a>(&'a self, constants: &'a Constants) -> Source<'a> {
        Source {
            shape: self,
            codes: constants.all[self.codes].bytes(),
            scales: &constants.all[self.scales],
            zeros: self.zeros.map(|index| constants.all[index].bytes()),
            blocks_per_row: self.cols.div_ceil(self.block),
        }
    }

    /// The weights in a format of ours.
    pub(super) fn repack(&self, constants: &Constants) -> Result<Repacked, OnnxError> {
        let source = self.source(constants);
        let middle = 1u8 << (self.bits - 1);
        let blocks = self.rows * source.blocks_per_row;
        let centred = self.zeros.is_none() || (0..blocks).all(|at| source.zero(at) == middle);
        let format = match (self.bits, centred) {
            (4, true) => Some(BlockType::Q4_0),
            (4, false) => Some(BlockType::Q4_1),
            (8, true) => Some(BlockType::Q8_0),
            _ => None,
        };
        let whole = self.cols.is_multiple_of(BLOCK) && self.block.is_multiple_of(BLOCK);
        if let Some(format) = format.filter(|_| whole) {
            let error = source.error(format == BlockType::Q4_1);
            if error <= MOST_ERROR {
                return Ok(Repacked { block: format, bytes: source.pack(format), error });
            }
        }
        Ok(Repacked { block: BlockType::F32, bytes: source.decode(), error: 0.0 })
    }
}

impl Source<'_> {
    /// Code `index` of a block.
    fn code(&self, block: usize, index: usize) -> u8 {
        let start = block * (self.shape.block / 8 * self.shape.bits);
        match self.shape.bits {
            4 => self.codes[start + index / 2] >> (4 * (index % 2)) & 15,
            _ => self.codes[start + index],
        }
    }

    /// Zero point of a block; each row of them begins with a byte of its own.
    fn zero(&self, block: usize) -> u8 {
        let Some(zeros) = self.zeros else { return 1 << (self.shape.bits - 1) };
        let (row, at) = (block / self.blocks_per_row, block % self.blocks_per_row);
        match self.shape.bits {
            4 => zeros[row * self.blocks_per_row.div_ceil(2) + at / 2] >> (4 * (at % 2)) & 15,
            _ => zeros[block],
        }
    }

    fn blocks(&self) -> std::ops::Range<usize> {
        0..self.shape.rows * self.blocks_per_row
    }

    /// Squared error of the weights with scales (and minima) in half precision.
    fn error(&self, with_minimum: bool) -> f64 {
        let (mut error, mut norm) = (0.0, 0.0);
        for block in self.blocks() {
            let (scale, zero) = (self.scales.number(block), f64::from(self.zero(block)));
            let half = f16::from_f64(scale).to_f64();
            let minimum =
                if with_minimum { f16::from_f64(-zero * scale).to_f64() } else { -zero * half };
            for index in 0..self.shape.block {
                let code = f64::from(self.code(block, index));
                let weight = (code - zero) * scale;
                error += (code * half + minimum - weight).powi(2);
                norm += weight * weight;
            }
        }
        match error {
            0.0 => 0.0,
            error if error.is_finite() => error / norm,
            // A scale beyond half precision.
            _ => f64::INFINITY,
        }
    }

    fn pack(&self, format: BlockType) -> Vec<u8> {
        let parts = self.shape.block / BLOCK;
        let mut out = Vec::with_capacity(self.blocks().len() * parts * format.info().bytes);
        let columns = self.shape.cols;
        for block in self.blocks() {
            let (scale, zero) = (self.scales.number(block), f64::from(self.zero(block)));
            // The last block of a row may reach past its end.
            let left = columns - (block % self.blocks_per_row) * self.shape.block;
            for part in 0..parts.min(left / BLOCK) {
                let code = |index: usize| self.code(block, part * BLOCK + index);
                out.extend(f16::from_f64(scale).to_le_bytes());
                match format {
                    BlockType::Q8_0 => out.extend((0..BLOCK).map(|i| code(i).wrapping_sub(128))),
                    _ => {
                        if format == BlockType::Q4_1 {
                            out.extend(f16::from_f64(-zero * scale).to_le_bytes());
                        }
                        out.extend((0..BLOCK / 2).map(|i| code(i) | code(i + BLOCK / 2) << 4));
                    }
                }
            }
        }
        out
    }

    fn decode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.shape.rows * self.shape.cols * 4);
        for row in 0..self.shape.rows {
            for column in 0..self.shape.cols {
                let block = row * self.blocks_per_row + column / self.shape.block;
                let code = f64::from(self.code(block, column % self.shape.block));
                let weight = (code - f64::from(self.zero(block))) * self.scales.number(block);
                out.extend((weight as f32).to_le_bytes());
            }
        }
        out
    }
}
