//! Sixteen rows of a quantised weight, taken apart for integer products.

use trefoil_graph::BlockType;

use super::super::lanes::LANES;
use super::super::scratch::grown;
use super::super::{Level, simd};
use super::formats::{IntegerForm, LONG, SHORT, Scaling, integer_form};
use super::unpack::{self, SuperScales};

/// Weight rows in a tile: one for each lane of a vector of sums.
pub(in crate::cpu) const TILE: usize = LANES;

/// Buffers of one worker.
#[derive(Debug, Default)]
pub(in crate::cpu) struct TileBuffers {
    codes: Vec<u8>,
    scales: Vec<f32>,
    mins: Vec<f32>,
    factors: Vec<i32>,
    min_factors: Vec<i32>,
    row: Vec<u8>,
    /// Decoded rows of the f32 form.
    pub(super) decoded: Vec<f32>,
    /// Results before they go to their rows.
    pub(super) results: Vec<f32>,
}

/// A tile: everything with sixteen numbers, one a row, innermost.
#[derive(Clone, Copy, Debug)]
pub(in crate::cpu) struct Tile<'a> {
    pub(in crate::cpu) form: IntegerForm,
    pub(in crate::cpu) columns: usize,
    /// `[columns / 4][16][4]`: codes plus the form's offset.
    pub(in crate::cpu) codes: &'a [u8],
    /// `[columns / group][16]` (`Single`) or `[columns / 256][16]` (`Super`).
    pub(in crate::cpu) scales: &'a [f32],
    /// `[columns / 32][16]` (`Single`, added) or `[columns / 256][16]` (`Super`, subtracted), where
    /// the form has minimums.
    pub(in crate::cpu) mins: &'a [f32],
    /// `[columns / group][16]`, `Super` only.
    pub(in crate::cpu) factors: &'a [i32],
    /// `[columns / group / 2][16]`: the same for minimums, two groups a number (see [`pair`]).
    pub(in crate::cpu) min_factors: &'a [i32],
}

/// Room for what a tile consists of, in the layout of [`Tile`].
pub(in crate::cpu) struct TileParts<'a> {
    pub(in crate::cpu) codes: &'a mut [u8],
    pub(in crate::cpu) scales: &'a mut [f32],
    pub(in crate::cpu) mins: &'a mut [f32],
    pub(in crate::cpu) factors: &'a mut [i32],
    pub(in crate::cpu) min_factors: &'a mut [i32],
}

/// Numbers in the parts of a tile of `columns` columns.
struct Sizes {
    scales: usize,
    mins: usize,
    factors: usize,
    min_factors: usize,
}

impl Sizes {
    fn new(form: IntegerForm, columns: usize) -> Self {
        let groups = TILE * columns / form.group;
        let minimum = usize::from(form.minimum);
        match form.scaling {
            Scaling::Single => Self {
                scales: groups,
                mins: TILE * columns / SHORT * minimum,
                factors: 0,
                min_factors: 0,
            },
            Scaling::Super => Self {
                scales: TILE * columns / LONG,
                mins: TILE * columns / LONG * minimum,
                factors: groups,
                min_factors: groups / 2 * minimum,
            },
        }
    }
}

/// Two numbers of 16 bits in one: `first` in the low half.
pub(super) fn pair(first: i32, second: i32) -> i32 {
    (first & 0xffff) | second << 16
}

impl TileBuffers {
    /// Room for a tile.
    fn room(&mut self, form: IntegerForm, columns: usize) -> TileParts<'_> {
        let sizes = Sizes::new(form, columns);
        TileParts {
            codes: grown(&mut self.codes, TILE * columns),
            scales: grown(&mut self.scales, sizes.scales),
            mins: grown(&mut self.mins, sizes.mins),
            factors: grown(&mut self.factors, sizes.factors),
            min_factors: grown(&mut self.min_factors, sizes.min_factors),
        }
    }

    /// Takes rows apart: `bytes` holds 1 to 16 rows next to each other; rows that are missing repeat
    /// the last one (their results are not used).
    pub(super) fn unpack(
        &mut self,
        level: Level,
        block: BlockType,
        bytes: &[u8],
        rows: usize,
        columns: usize,
    ) {
        let form = integer_form(block).expect("only quantised formats are taken apart");
        let mut parts = self.room(form, columns);
        if rows == TILE && simd::product::unpack(level, block, columns, bytes, &mut parts) {
            return;
        }
        grown(&mut self.row, columns);
        let row_bytes = bytes.len() / rows;
        for lane in 0..TILE {
            let row = lane.min(rows - 1);
            let bytes = &bytes[row * row_bytes..(row + 1) * row_bytes];
            match form.scaling {
                Scaling::Single => self.unpack_single(block, form, bytes, lane, columns),
                Scaling::Super => self.unpack_super(block, form, bytes, lane),
            }
            let targets = self.codes.as_chunks_mut::<4>().0[lane..].iter_mut().step_by(TILE);
            let sources = self.row[..columns].as_chunks::<4>().0;
            targets.zip(sources).for_each(|(target, source)| *target = *source);
        }
    }

    fn unpack_single(
        &mut self,
        block: BlockType,
        form: IntegerForm,
        bytes: &[u8],
        lane: usize,
        columns: usize,
    ) {
        let take_apart = unpack::single(block).expect("a function for every such format");
        let info = block.info();
        let (mut scales, mut mins) = ([0.0; 8], [0.0; 8]);
        let groups = info.elements / form.group;
        let spans = info.elements / SHORT;
        let blocks = bytes.chunks_exact(info.bytes);
        let rows = self.row[..columns].chunks_exact_mut(info.elements);
        for (n, (bytes, codes)) in blocks.zip(rows).enumerate() {
            take_apart(bytes, codes, &mut scales[..groups], &mut mins[..spans]);
            for (i, scale) in scales[..groups].iter().enumerate() {
                self.scales[(n * groups + i) * TILE + lane] = *scale;
            }
            if form.minimum {
                for (i, min) in mins[..spans].iter().enumerate() {
                    self.mins[(n * spans + i) * TILE + lane] = *min;
                }
            }
        }
    }

    fn unpack_super(&mut self, block: BlockType, form: IntegerForm, bytes: &[u8], lane: usize) {
        let take_apart = unpack::super_block(block).expect("a function for every such format");
        let mut scales = SuperScales::default();
        let groups = LONG / form.group;
        let blocks = bytes.chunks_exact(block.info().bytes);
        for (n, (bytes, codes)) in blocks.zip(self.row.as_chunks_mut().0).enumerate() {
            take_apart(bytes, codes, &mut scales);
            self.scales[n * TILE + lane] = scales.scale;
            for i in 0..groups {
                self.factors[(n * groups + i) * TILE + lane] = scales.scales[i];
            }
            if form.minimum {
                self.mins[n * TILE + lane] = scales.min_scale;
                for (i, two) in scales.mins[..groups].as_chunks::<2>().0.iter().enumerate() {
                    let at = (n * groups / 2 + i) * TILE + lane;
                    self.min_factors[at] = pair(two[0], two[1]);
                }
            }
        }
    }

    /// The tile last unpacked, and room for a result `[m][16]`.
    pub(super) fn parts(
        &mut self,
        form: IntegerForm,
        columns: usize,
        m: usize,
    ) -> (Tile<'_>, &mut [f32]) {
        let sizes = Sizes::new(form, columns);
        let tile = Tile {
            form,
            columns,
            codes: &self.codes[..TILE * columns],
            scales: &self.scales[..sizes.scales],
            mins: &self.mins[..sizes.mins],
            factors: &self.factors[..sizes.factors],
            min_factors: &self.min_factors[..sizes.min_factors],
        };
        (tile, grown(&mut self.results, TILE * m))
    }
}
