//! A part's matrices in the layout and number format that products read.

use std::collections::HashMap;
use std::sync::Arc;

use half::f16;
use trefoil_graph::ops::Op;
use trefoil_graph::{BlockType, LayerGraph, NodeIndex, Weight};
use trefoil_kernels::blocks::{decode_row, encode_row};

use crate::codes::{Layout, encode, layout};
use crate::{NumericForm, Part};

/// Elements of a block of four-bit codes.
pub(crate) const BLOCK: usize = 32;
/// Bytes of such a block as Q4_0 stores it: a half scale, then codes.
const Q4_0_BYTES: usize = 2 + BLOCK / 2;
/// Boundary on which each array begins.
const ALIGNMENT: usize = 64;
/// Rows that are transposed together, so that what is written lies together.
const TOGETHER: usize = 16;

/// Bytes of an array among the packed ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) offset: usize,
    pub(crate) len: usize,
}

/// Where a matrix of `[out, in]` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packed {
    /// `[in, out]` of f32.
    F32(Place),
    /// `[in, out]` of f16.
    F16(Place),
    /// Codes of `[out, in / 32, 16]` bytes, element `2j` in the low half of byte `j`, and scales of
    /// `[out, in / 32]` f32; a value is `scale * (code - 8)`.
    Int4 { codes: Place, scales: Place },
    /// Codes of `[out, blocks, bytes]`, scales and, where the layout has them, zero points of
    /// `[out, blocks]` f32.
    Codes { layout: Layout, codes: Place, scales: Place, zeros: Option<Place> },
}

/// A part's matrices, packed for a numeric form.
#[derive(Clone, Debug)]
pub struct PartWeights {
    /// The form.
    pub form: NumericForm,
    /// All arrays, one after the other.
    pub data: Arc<[u8]>,
    /// Squared error of the packed values over the squared values of the file's, over all matrices: 0
    /// where the form holds them exactly.
    pub error: f64,
    pub(crate) places: HashMap<NodeIndex, Packed>,
}

impl PartWeights {
    /// Packs the matrices of a part.
    pub fn pack(graph: &LayerGraph, part: &Part, form: NumericForm) -> Self {
        let mut places = HashMap::new();
        let mut len = 0;
        let mut take = |bytes: usize| {
            let place = Place { offset: len, len: bytes };
            len = (len + bytes).next_multiple_of(ALIGNMENT);
            place
        };
        let matrices = || {
            part.nodes.iter().filter_map(|&node| match &graph.node(node).op {
                Op::Linear(linear) => Some((node, &linear.weight)),
                _ => None,
            })
        };
        for (node, weight) in matrices() {
            let elements = weight.elements();
            let own = layout(weight.block).filter(|_| form == NumericForm::Codes);
            let packed = match form {
                NumericForm::Codes if let Some(layout) = own => {
                    let blocks = elements / layout.block * size_of::<f32>();
                    Packed::Codes {
                        layout,
                        codes: take(elements * layout.bits / 8),
                        scales: take(blocks),
                        zeros: layout.zeros.then(|| take(blocks)),
                    }
                }
                NumericForm::F16 => Packed::F16(take(elements * size_of::<f16>())),
                NumericForm::Int4 if weight.cols.is_multiple_of(BLOCK) => Packed::Int4 {
                    codes: take(elements / 2),
                    scales: take(elements / BLOCK * size_of::<f32>()),
                },
                NumericForm::F32 | NumericForm::Codes | NumericForm::Int4 => {
                    Packed::F32(take(elements * size_of::<f32>()))
                }
            };
            places.insert(node, packed);
        }
        // Made in its last place: a vector would have to be copied to be shared.
        let mut data: Arc<[u8]> = std::iter::repeat_n(0u8, len).collect();
        let bytes = Arc::get_mut(&mut data).expect("nobody else has it yet");
        let mut loss = Loss::default();
        for (node, weight) in matrices() {
            match places[&node] {
                Packed::F32(place) => {
                    transpose(weight, &mut bytes[place.range()], f32::to_le_bytes);
                }
                Packed::F16(place) => {
                    transpose(weight, &mut bytes[place.range()], |value| {
                        let rounded = f16::from_f32(value);
                        loss.add(value, rounded.to_f32());
                        rounded.to_le_bytes()
                    });
                }
                Packed::Codes { layout, codes, scales, zeros } => {
                    own_codes(weight, layout, bytes, [Some(codes), Some(scales), zeros]);
                }
                Packed::Int4 { codes, scales } => {
                    // Codes come before their scales, with nothing between but the boundary.
                    let (front, back) = bytes.split_at_mut(scales.offset);
                    int4(weight, &mut front[codes.range()], &mut back[..scales.len], &mut loss);
                }
            }
        }
        Self { form, data, error: loss.ratio(), places }
    }
}

impl Place {
    fn range(self) -> std::ops::Range<usize> {
        self.offset..self.offset + self.len
    }
}

/// Squared values and squared errors.
#[derive(Debug, Default)]
struct Loss {
    error: f64,
    norm: f64,
}

impl Loss {
    fn add(&mut self, want: f32, got: f32) {
        self.error += (f64::from(want) - f64::from(got)).powi(2);
        self.norm += f64::from(want).powi(2);
    }

    fn ratio(&self) -> f64 {
        if self.norm > 0.0 { self.error / self.norm } else { 0.0 }
    }
}

/// Writes the matrix column by column, each value as `write` says.
fn transpose<const SIZE: usize>(
    weight: &Weight,
    out: &mut [u8],
    mut write: impl FnMut(f32) -> [u8; SIZE],
) {
    let (rows, cols) = (weight.rows, weight.cols);
    let mut decoded = vec![0.0; TOGETHER * cols];
    for first in (0..rows).step_by(TOGETHER) {
        let count = TOGETHER.min(rows - first);
        for (row, values) in decoded.chunks_exact_mut(cols.max(1)).take(count).enumerate() {
            decode_row(weight.block, weight.row(first + row), values);
        }
        for col in 0..cols {
            let start = (col * rows + first) * SIZE;
            let target = out[start..start + count * SIZE].chunks_exact_mut(SIZE);
            for (row, target) in target.enumerate() {
                target.copy_from_slice(&write(decoded[row * cols + col]));
            }
        }
    }
}

/// A format's own codes, scales and zero points, in this order.
fn own_codes(weight: &Weight, layout: Layout, bytes: &mut [u8], places: [Option<Place>; 3]) {
    let mut rest = bytes;
    let mut start = 0;
    // Each array begins behind the one before it.
    let [codes, scales, zeros] = places.map(|place| {
        let Some(place) = place else { return Default::default() };
        let (before, after) =
            std::mem::take(&mut rest).split_at_mut(place.offset + place.len - start);
        rest = after;
        let array = &mut before[place.offset - start..];
        start = place.offset + place.len;
        array
    });
    let mut scales = scales.chunks_exact_mut(size_of::<f32>());
    let mut zeros = zeros.chunks_exact_mut(size_of::<f32>());
    let mut values = vec![0.0; weight.cols];
    let row_bytes = weight.cols * layout.bits / 8;
    for (row, codes) in codes.chunks_exact_mut(row_bytes.max(1)).enumerate() {
        let write = |to: Option<&mut [u8]>, value: f32| {
            to.expect("one for each block").copy_from_slice(&value.to_le_bytes());
        };
        let sinks: [&mut dyn FnMut(f32); 2] =
            [&mut |scale| write(scales.next(), scale), &mut |zero| write(zeros.next(), zero)];
        encode(weight.block, layout, weight.row(row), &mut values, codes, sinks);
    }
}

/// Four-bit codes with scales: those of Q4_0 as they are, other formats by way of it.
fn int4(weight: &Weight, codes: &mut [u8], scales: &mut [u8], loss: &mut Loss) {
    let row_bytes = weight.cols / BLOCK * Q4_0_BYTES;
    let (mut anew, mut values) = (vec![0; row_bytes], vec![0.0; weight.cols]);
    let mut back = values.clone();
    let targets = codes.chunks_exact_mut(BLOCK / 2).zip(scales.chunks_exact_mut(size_of::<f32>()));
    let mut targets = targets;
    for row in 0..weight.rows {
        let stored: &[u8] = if weight.block == BlockType::Q4_0 {
            weight.row(row)
        } else {
            decode_row(weight.block, weight.row(row), &mut values);
            encode_row(BlockType::Q4_0, &values, &mut anew);
            decode_row(BlockType::Q4_0, &anew, &mut back);
            values.iter().zip(&back).for_each(|(&want, &got)| loss.add(want, got));
            &anew
        };
        for (block, (codes, scale)) in stored.chunks_exact(Q4_0_BYTES).zip(&mut targets) {
            let half = f16::from_le_bytes([block[0], block[1]]);
            scale.copy_from_slice(&half.to_f32().to_le_bytes());
            interleave(&block[2..], codes);
        }
    }
}

/// From "element j low, element j + 16 high" to "element 2j low, element 2j + 1 high".
fn interleave(from: &[u8], to: &mut [u8]) {
    let code = |element: usize| match element.checked_sub(BLOCK / 2) {
        None => from[element] & 15,
        Some(element) => from[element] >> 4,
    };
    for (j, byte) in to.iter_mut().enumerate() {
        *byte = code(2 * j) | code(2 * j + 1) << 4;
    }
}
