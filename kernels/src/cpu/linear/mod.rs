//! Products with weights: `y = x Wᵀ + b`, weights read where they lie in the file.

mod exact;
mod formats;
mod rounding;
#[cfg(test)]
mod tests;
mod tile;
mod unpack;

use std::ops::Range;

use trefoil_graph::{BlockType, Weight};

use super::kv::KvFormat;
use super::pool::SharedSlice;
use super::scratch::{Scratch, grown};
use super::{Level, ThreadPool, simd};
use crate::blocks;
pub use formats::{Int8Support, int8_support};
pub(super) use formats::{IntegerForm, Scaling, integer_form};
use formats::{LONG, SHORT};
use rounding::Rounded;
pub(super) use rounding::{Panel, PanelSums};
use tile::TILE;
pub(super) use tile::{Tile, TileBuffers, TileParts};

/// How a product is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// Weights decoded to f32, sixteen f32 partial sums with fused multiply-add.
    Exact,
    /// Activations rounded to eight bits (a scale for 32 columns, for formats of 256 weights a scale
    /// for 256), whole-number products, scales in f32. Formats of plain numbers are computed as
    /// [`Form::Exact`]; see [`int8_support`].
    Int8,
}

/// A weight as kernels take it: `rows` rows of `cols` elements next to each other.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    /// Element layout.
    pub block: BlockType,
    /// Output features, or entries of a table.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// All rows.
    pub bytes: &'a [u8],
}

impl<'a> Matrix<'a> {
    /// A matrix over bytes of exactly the right length; `None` for another length or a row that is
    /// no whole number of blocks.
    pub fn new(block: BlockType, rows: usize, cols: usize, bytes: &'a [u8]) -> Option<Self> {
        let row = usize::try_from(block.row_bytes(cols as u64)?).ok()?;
        (rows.checked_mul(row)? == bytes.len()).then_some(Self { block, rows, cols, bytes })
    }

    /// Bytes of row `index`.
    pub fn row(&self, index: usize) -> &'a [u8] {
        self.range(index..index + 1)
    }

    /// Bytes of some rows.
    fn range(&self, rows: Range<usize>) -> &'a [u8] {
        let info = self.block.info();
        let row = self.cols / info.elements * info.bytes;
        &self.bytes[rows.start * row..rows.end * row]
    }
}

impl<'a> From<&'a Weight> for Matrix<'a> {
    fn from(weight: &'a Weight) -> Self {
        let Weight { block, rows, cols, .. } = *weight;
        Self { block, rows, cols, bytes: weight.bytes() }
    }
}

/// Activations that one or more projections read.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// `[any rows, cols]`.
    pub x: &'a [f32],
    /// Columns.
    pub cols: usize,
    /// Rows of `x` to take, in this order; all if `None`.
    pub rows: Option<&'a [u32]>,
}

impl Input<'_> {
    fn row_count(&self) -> usize {
        self.rows.map_or_else(|| self.x.len() / self.cols.max(1), <[u32]>::len)
    }
}

/// One product of a [`linear_many`] call.
pub struct Projection<'a> {
    input: usize,
    weight: Matrix<'a>,
    bias: Option<&'a [f32]>,
    out: SharedSlice<'a, f32>,
}

impl<'a> Projection<'a> {
    /// `out = inputs[input] * weightᵀ + bias`; `out` is `[rows of the input, weight.rows]`, `bias`
    /// one row of it.
    pub fn new(
        input: usize,
        weight: Matrix<'a>,
        bias: Option<&'a [f32]>,
        out: &'a mut [f32],
    ) -> Self {
        Self { input, weight, bias, out: SharedSlice::new(out) }
    }
}

/// `out = x weightᵀ + bias` for all rows of `x` (`[rows, weight.cols]`).
///
/// # Panics
/// As [`linear_many`].
pub fn linear(
    pool: &ThreadPool,
    scratch: &mut Scratch,
    form: Form,
    x: &[f32],
    weight: Matrix<'_>,
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    let input = Input { x, cols: weight.cols, rows: None };
    linear_many(pool, scratch, form, &[input], &mut [Projection::new(0, weight, bias, out)]);
}

/// Several products at once: activations are prepared once for all that read them, and the threads
/// share all the work in one go. Projections of one input (q, k and v; gate and up), and experts with
/// a row list each, belong in one call.
///
/// A row's result does not depend on the other rows, on the other projections or on the threads.
///
/// # Panics
/// If lengths do not fit or a listed row does not exist.
pub fn linear_many(
    pool: &ThreadPool,
    scratch: &mut Scratch,
    form: Form,
    inputs: &[Input<'_>],
    projections: &mut [Projection<'_>],
) {
    scratch.prepare(pool);
    for projection in projections.iter() {
        let (input, weight) = (&inputs[projection.input], &projection.weight);
        assert_eq!(input.cols, weight.cols, "linear: columns of input and weight");
        assert!(input.cols > 0, "linear: no columns");
        assert!(input.x.len().is_multiple_of(input.cols), "linear: whole rows of input");
        assert_eq!(weight.range(0..weight.rows).len(), weight.bytes.len(), "linear: weight bytes");
        assert_eq!(projection.out.len(), input.row_count() * weight.rows, "linear: output length");
        assert!(projection.bias.is_none_or(|b| b.len() == weight.rows), "linear: bias length");
    }
    while scratch.inputs.len() < inputs.len() {
        scratch.inputs.push(Prepared::default());
    }
    for (index, (input, prepared)) in inputs.iter().zip(&mut scratch.inputs).enumerate() {
        let readers = projections.iter().filter(|p| p.input == index);
        prepared.prepare(pool, input, form, readers.map(|p| p.weight.block));
    }
    scratch.work.clear();
    for (index, projection) in projections.iter().enumerate() {
        let rows = inputs[projection.input].row_count();
        cut(pool, form, index, &projection.weight, rows, &mut scratch.work);
    }
    let (work, prepared, workers) = (&scratch.work, &scratch.inputs, &scratch.workers);
    let projections = &*projections;
    pool.run(work.len(), |task, worker| {
        let item = &work[task];
        let projection = &projections[item.projection];
        let (input, prepared) = (&inputs[projection.input], &prepared[projection.input]);
        let buffers = &mut workers.lock(worker).linear;
        let job = RowRange { projection, rows: item.start..item.end };
        match span(form, projection.weight.block) {
            Span::Plain => job.exact(pool.level(), prepared.plain(input), buffers),
            Span::Short => job.integer(pool.level(), &prepared.short, buffers),
            Span::Long => job.integer(pool.level(), &prepared.long, buffers),
        }
    });
}

/// In which form a product reads its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Span {
    Plain,
    Short,
    Long,
}

fn span(form: Form, block: BlockType) -> Span {
    match (form, integer_form(block)) {
        (Form::Exact, _) | (_, None) => Span::Plain,
        (Form::Int8, Some(IntegerForm { scaling: Scaling::Single, .. })) => Span::Short,
        (Form::Int8, Some(IntegerForm { scaling: Scaling::Super, .. })) => Span::Long,
    }
}

/// An input as the kernels of a call read it.
#[derive(Debug, Default)]
pub(super) struct Prepared {
    gathered: Vec<f32>,
    elements: usize,
    short: Rounded,
    long: Rounded,
}

impl Prepared {
    fn prepare(
        &mut self,
        pool: &ThreadPool,
        input: &Input<'_>,
        form: Form,
        readers: impl Iterator<Item = BlockType> + Clone,
    ) {
        self.elements = input.row_count() * input.cols;
        if let Some(rows) = input.rows {
            let gathered = grown(&mut self.gathered, self.elements);
            for (row, out) in rows.iter().zip(gathered.chunks_exact_mut(input.cols)) {
                let first = *row as usize * input.cols;
                out.copy_from_slice(&input.x[first..first + input.cols]);
            }
        }
        let x = if input.rows.is_some() { &self.gathered[..self.elements] } else { input.x };
        let forms = |wanted: Span| {
            let blocks = readers.clone().filter(move |block| span(form, *block) == wanted);
            blocks.filter_map(integer_form)
        };
        for (span, columns, rounded) in
            [(Span::Short, SHORT, &mut self.short), (Span::Long, LONG, &mut self.long)]
        {
            if forms(span).next().is_some() {
                rounded.fill(pool, x, input.cols, columns, forms(span));
            }
        }
    }

    fn plain<'a>(&'a self, input: &Input<'a>) -> &'a [f32] {
        if input.rows.is_some() { &self.gathered[..self.elements] } else { input.x }
    }
}

/// Rows `start..end` of a projection's weight: one task.
#[derive(Clone, Copy, Debug)]
pub(super) struct WorkItem {
    projection: usize,
    start: usize,
    end: usize,
}

/// Cuts a weight into tasks: whole tiles, small enough for all threads to end at about the same
/// time, large enough to be worth the hand-over, and within a core's own cache where many rows of
/// input read them again and again.
fn cut(
    pool: &ThreadPool,
    form: Form,
    projection: usize,
    weight: &Matrix<'_>,
    rows: usize,
    out: &mut Vec<WorkItem>,
) {
    if weight.rows == 0 || rows == 0 {
        return;
    }
    /// Bytes of unpacked weights that stay in a core's second-level cache.
    const CACHE: usize = 256 << 10;
    /// Bytes of weights worth a task when they are read once.
    const STREAM: usize = 64 << 10;
    let fit = if rows < 8 {
        let row_bytes = weight.bytes.len() / weight.rows;
        STREAM / row_bytes.max(1)
    } else {
        let element = if span(form, weight.block) == Span::Plain { 4 } else { 1 };
        CACHE / (weight.cols * element)
    };
    let even = weight.rows.div_ceil(4 * pool.threads());
    let step = fit.min(even).div_ceil(TILE).max(1) * TILE;
    for start in (0..weight.rows).step_by(step) {
        out.push(WorkItem { projection, start, end: weight.rows.min(start + step) });
    }
}

/// Some weight rows of a projection.
struct RowRange<'a> {
    projection: &'a Projection<'a>,
    rows: Range<usize>,
}

impl RowRange<'_> {
    /// Stores results `[m][n]` of weight rows `first..first + n` and input rows `m`.
    fn store(&self, first: usize, n: usize, input_rows: Range<usize>, results: &[f32]) {
        let stride = results.len() / input_rows.len();
        let (out, width) = (&self.projection.out, self.projection.weight.rows);
        for (row, results) in input_rows.zip(results.chunks_exact(stride)) {
            let at = row * width + first;
            // SAFETY: a task writes only the columns of its own weight rows.
            let out = unsafe { out.part(at..at + n) };
            match self.projection.bias {
                Some(bias) => {
                    let sums = results.iter().zip(&bias[first..first + n]).map(|(v, b)| v + b);
                    out.iter_mut().zip(sums).for_each(|(out, v)| *out = v);
                }
                None => match (out.first_chunk_mut::<TILE>(), results.first_chunk::<TILE>()) {
                    // A copy of known length is one instruction.
                    (Some(out), Some(results)) if n == TILE => *out = *results,
                    _ => out.copy_from_slice(&results[..n]),
                },
            }
        }
    }

    fn integer(&self, level: Level, x: &Rounded, buffers: &mut TileBuffers) {
        let Matrix { block, cols, .. } = self.projection.weight;
        let form = integer_form(block).expect("asked only for formats that have one");
        for first in self.rows.clone().step_by(TILE) {
            let end = self.rows.end.min(first + TILE);
            let bytes = self.projection.weight.range(first..end);
            if x.panel_count() == 1 && end - first == TILE {
                let (panel, sums, input_rows) = x.panel(0, form);
                let out = grown(&mut buffers.results, panel.rows * TILE);
                if simd::product::few(level, block, bytes, cols, &panel, &sums, out) {
                    self.store(first, TILE, input_rows, out);
                    continue;
                }
            }
            buffers.unpack(level, block, bytes, end - first, cols);
            for index in 0..x.panel_count() {
                let (panel, sums, input_rows) = x.panel(index, form);
                let (tile, out) = buffers.parts(form, cols, panel.rows);
                simd::product::tile(level, &tile, &panel, &sums, out);
                self.store(first, end - first, input_rows, out);
            }
        }
    }

    fn exact(&self, level: Level, x: &[f32], buffers: &mut TileBuffers) {
        /// Input rows at a time: with their weights they stay near the core.
        const ROWS: usize = 16;
        let cols = self.projection.weight.cols;
        for first in self.rows.clone().step_by(TILE) {
            let end = self.rows.end.min(first + TILE);
            let n = end - first;
            let bytes = self.projection.weight.range(first..end);
            let TileBuffers { decoded, results, .. } = buffers;
            // One to four rows read each weight once: widening it on the way costs nothing.
            if x.len() <= 4 * cols {
                let m = x.len() / cols;
                let results = grown(results, m * n);
                if exact::stored(level, self.projection.weight.block, bytes, x, cols, results) {
                    self.store(first, n, 0..m, results);
                    continue;
                }
            }
            let weights = decode(level, self.projection.weight.block, bytes, n * cols, decoded);
            for (index, x) in x.chunks(ROWS * cols).enumerate() {
                let m = x.len() / cols;
                let results = grown(results, m * n);
                exact::products(level, weights, x, cols, results);
                self.store(first, n, index * ROWS..index * ROWS + m, results);
            }
        }
    }
}

/// Weight rows as f32: the bytes themselves where they are f32 already.
fn decode<'a>(
    level: Level,
    block: BlockType,
    bytes: &'a [u8],
    elements: usize,
    buffer: &'a mut Vec<f32>,
) -> &'a [f32] {
    if block == BlockType::F32
        && cfg!(target_endian = "little")
        && let Ok(numbers) = bytemuck::try_cast_slice(bytes)
    {
        return numbers;
    }
    let out = grown(buffer, elements);
    match block {
        BlockType::F32 => simd::widen(level, KvFormat::F32, bytes, out),
        BlockType::F16 => simd::widen(level, KvFormat::F16, bytes, out),
        BlockType::BF16 => simd::widen_bf16(level, bytes, out),
        _ => blocks::decode_row(block, bytes, out),
    }
    out
}
