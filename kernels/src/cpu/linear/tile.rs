//! Sixteen rows of a quantised weight, taken apart for integer products.

use trefoil_graph::BlockType;

use super::super::lanes::LANES;
use super::super::scratch::grown;
use super::formats::{IntegerForm, LONG, SHORT, Scaling, integer_form};
use super::rounding::{Panel, SUM};
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
    sums: Vec<i32>,
    shifts: Vec<f32>,
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
    /// The same for minimums.
    pub(in crate::cpu) min_factors: &'a [i32],
}

/// What a panel of activations adds for a format.
#[derive(Clone, Copy, Debug)]
pub(in crate::cpu) struct PanelSums<'a> {
    /// `[columns / group][m]`: sums of codes; times minus the offset where the form has one (so that
    /// products of unsigned codes can start from it).
    pub(in crate::cpu) groups: &'a [i32],
    /// `[columns / 32][m]`: sums of activations, for `Single` forms with minimums.
    pub(in crate::cpu) shifts: &'a [f32],
}

impl TileBuffers {
    /// Makes room for the tile of `columns` columns.
    fn reserve(&mut self, form: IntegerForm, columns: usize) {
        grown(&mut self.codes, TILE * columns);
        let spans = match form.scaling {
            Scaling::Single => columns / form.group,
            Scaling::Super => columns / LONG,
        };
        grown(&mut self.scales, TILE * spans);
        grown(&mut self.mins, TILE * columns / SHORT);
        grown(&mut self.factors, TILE * columns / form.group);
        grown(&mut self.min_factors, TILE * columns / form.group);
        grown(&mut self.row, columns);
    }

    /// Takes rows apart: `bytes` holds 1 to 16 rows next to each other; rows that are missing repeat
    /// the last one (their results are not used).
    pub(super) fn unpack(&mut self, block: BlockType, bytes: &[u8], rows: usize, columns: usize) {
        let form = integer_form(block).expect("only quantised formats are taken apart");
        self.reserve(form, columns);
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
                for i in 0..groups {
                    self.min_factors[(n * groups + i) * TILE + lane] = scales.mins[i];
                }
            }
        }
    }

    /// The sums of a panel as the format needs them.
    pub(super) fn sum_panel(&mut self, form: IntegerForm, columns: usize, panel: &Panel<'_>) {
        let m = panel.rows;
        let factor = if form.offset == 0 { 1 } else { -form.offset };
        let groups = grown(&mut self.sums, columns / form.group * m);
        let per_group = form.group / SUM;
        for (i, sum) in groups.iter_mut().enumerate() {
            let (group, row) = (i / m, i % m);
            let parts = (0..per_group).map(|n| panel.sums[(group * per_group + n) * m + row]);
            *sum = factor * parts.sum::<i32>();
        }
        if form.minimum && form.scaling == Scaling::Single {
            let shifts = grown(&mut self.shifts, columns / SHORT * m);
            for (i, (shift, scale)) in shifts.iter_mut().zip(panel.scales).enumerate() {
                *shift = scale * groups[i] as f32;
            }
        }
    }

    /// The tile last unpacked, the sums last made, and room for a result `[m][16]`.
    pub(super) fn parts(
        &mut self,
        form: IntegerForm,
        columns: usize,
        m: usize,
    ) -> (Tile<'_>, PanelSums<'_>, &mut [f32]) {
        let spans = match form.scaling {
            Scaling::Single => columns / form.group,
            Scaling::Super => columns / LONG,
        };
        let groups = TILE * columns / form.group;
        let mins = match (form.minimum, form.scaling) {
            (false, _) => 0,
            (true, Scaling::Single) => TILE * columns / SHORT,
            (true, Scaling::Super) => TILE * columns / LONG,
        };
        let shifts = match (form.minimum, form.scaling) {
            (true, Scaling::Single) => columns / SHORT * m,
            _ => 0,
        };
        let tile = Tile {
            form,
            columns,
            codes: &self.codes[..TILE * columns],
            scales: &self.scales[..TILE * spans],
            mins: &self.mins[..mins],
            factors: &self.factors[..groups],
            min_factors: &self.min_factors[..groups],
        };
        let sums = PanelSums {
            groups: &self.sums[..columns / form.group * m],
            shifts: &self.shifts[..shifts],
        };
        (tile, sums, grown(&mut self.results, TILE * m))
    }
}
