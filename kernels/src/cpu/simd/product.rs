//! Integer products of a tile of weights with a panel of activations.
//!
//! The result of a row is defined by [`tile_portable`]; the others compute the same numbers: whole
//! number sums are exact in any order, and the floating point operations are the same.

use trefoil_graph::BlockType;

use super::super::Level;
use super::super::lanes::LANES;
use super::super::level::at_level;
use super::super::linear::{IntegerForm, Panel, PanelSums, Scaling, Tile, TileParts, integer_form};

/// Columns of a long span.
const LONG: usize = 256;
/// Columns of a short span.
const SHORT: usize = 32;

/// `out[m][lane]` = product of row `m` of the panel with row `lane` of the tile.
pub(in crate::cpu) fn tile(
    level: Level,
    tile: &Tile<'_>,
    panel: &Panel<'_>,
    sums: &PanelSums<'_>,
    out: &mut [f32],
) {
    check(tile, panel, sums, out);
    #[cfg(target_arch = "x86_64")]
    if level == Level::Avx512 {
        // SAFETY: the level has AVX-512; sizes were checked above.
        return unsafe { super::avx512_tile::tile(tile, panel, sums, out) };
    }
    match tile.form.scaling {
        Scaling::Single => single_at(level, tile, panel, sums, out),
        Scaling::Super => super_at(level, tile, panel, sums, out),
    }
}

/// [`tile`] straight from sixteen stored rows, where the level has code for that and the panel has
/// few rows; says whether it has.
pub(in crate::cpu) fn few(
    level: Level,
    block: BlockType,
    bytes: &[u8],
    columns: usize,
    panel: &Panel<'_>,
    sums: &PanelSums<'_>,
    out: &mut [f32],
) -> bool {
    #[cfg(target_arch = "x86_64")]
    if level == Level::Avx512
        && panel.rows <= super::stored_products::FEW
        && super::stored_products::reads(block)
    {
        let form = integer_form(block).expect("only quantised formats are read");
        assert_eq!(block.row_bytes(columns as u64), Some(bytes.len() as u64 / LANES as u64));
        check_panel(form, columns, panel, sums, out);
        // SAFETY: the level has AVX-512; sizes were checked above.
        unsafe { super::stored_products::few(block, bytes, panel, sums, out) };
        return true;
    }
    let _ = (level, block, bytes, columns, panel, sums, out);
    false
}

/// Takes sixteen stored rows apart where the level has code for that; says whether it has.
pub(in crate::cpu) fn unpack(
    level: Level,
    block: BlockType,
    columns: usize,
    bytes: &[u8],
    parts: &mut TileParts<'_>,
) -> bool {
    #[cfg(target_arch = "x86_64")]
    if level == Level::Avx512 && super::stored_products::reads(block) {
        let form = integer_form(block).expect("only quantised formats are read");
        assert_eq!(block.row_bytes(columns as u64), Some(bytes.len() as u64 / LANES as u64));
        let TileParts { codes, scales, mins, factors, min_factors } = parts;
        let sizes = [scales.len(), mins.len(), factors.len(), min_factors.len()];
        check_parts(form, columns, codes.len(), sizes);
        // SAFETY: the level has AVX-512; sizes were checked above.
        unsafe { super::stored_products::unpack(block, bytes, parts) };
        return true;
    }
    let _ = (level, block, columns, bytes, parts);
    false
}

/// The sizes that vector kernels rely on.
fn check(tile: &Tile<'_>, panel: &Panel<'_>, sums: &PanelSums<'_>, out: &[f32]) {
    let Tile { form, columns, codes, scales, mins, factors, min_factors } = tile;
    let sizes = [scales.len(), mins.len(), factors.len(), min_factors.len()];
    check_parts(*form, *columns, codes.len(), sizes);
    check_panel(*form, *columns, panel, sums, out);
}

/// Sizes of a tile: codes; scales, minimums, factors of both.
fn check_parts(form: IntegerForm, columns: usize, codes: usize, sizes: [usize; 4]) {
    let IntegerForm { group, minimum, .. } = form;
    assert!(group == 16 || group == 32);
    assert_eq!(codes, LANES * columns);
    let minimum = usize::from(minimum);
    let wanted = match form.scaling {
        Scaling::Single => {
            assert!(columns.is_multiple_of(SHORT));
            [columns / group, columns / SHORT * minimum, 0, 0]
        }
        Scaling::Super => {
            assert!(columns.is_multiple_of(LONG));
            let spans = columns / LONG;
            [spans, spans * minimum, columns / group, columns / group / 2 * minimum]
        }
    };
    assert_eq!(sizes, wanted.map(|count| LANES * count));
}

/// Sizes of a panel and of its results.
fn check_panel(
    form: IntegerForm,
    columns: usize,
    panel: &Panel<'_>,
    sums: &PanelSums<'_>,
    out: &[f32],
) {
    let m = panel.rows;
    assert_eq!((panel.codes.len(), out.len()), (m * columns, m * LANES));
    let (span, group, shifts) = match (form.scaling, form.minimum) {
        (Scaling::Single, false) => (SHORT, form.group, 0),
        (Scaling::Single, true) => (SHORT, form.group, columns / SHORT),
        (Scaling::Super, false) => (LONG, form.group, 0),
        (Scaling::Super, true) => (LONG, 2 * form.group, 0),
    };
    assert_eq!(panel.scales.len(), m * columns / span);
    assert_eq!((sums.groups.len(), sums.shifts.len()), (m * columns / group, m * shifts));
}

at_level! {
    fn single_at(tile: &Tile<'_>, panel: &Panel<'_>, sums: &PanelSums<'_>, out: &mut [f32])
        = single_portable;
    fn super_at(tile: &Tile<'_>, panel: &Panel<'_>, sums: &PanelSums<'_>, out: &mut [f32])
        = super_portable;
}

/// Products of one group: sixteen whole numbers, one a weight row.
#[inline(always)]
fn group_products(
    tile: &Tile<'_>,
    panel: &Panel<'_>,
    group: usize,
    row: usize,
    start: i32,
) -> [i32; LANES] {
    let mut products = [start; LANES];
    let fours = tile.form.group / 4;
    for four in group * fours..(group + 1) * fours {
        let x = &panel.codes[(four * panel.rows + row) * 4..][..4];
        let codes = &tile.codes[four * LANES * 4..][..LANES * 4];
        for (product, codes) in products.iter_mut().zip(codes.as_chunks::<4>().0) {
            for i in 0..4 {
                *product += i32::from(codes[i]) * i32::from(x[i]);
            }
        }
    }
    products
}

/// The two numbers of 16 bits in one.
#[inline(always)]
fn halves(two: i32) -> [i32; 2] {
    [i32::from(two as i16), two >> 16]
}

#[inline(always)]
fn lanes_at(numbers: &[f32], index: usize) -> &[f32; LANES] {
    &numbers.as_chunks().0[index]
}

#[inline(always)]
fn single_portable(tile: &Tile<'_>, panel: &Panel<'_>, sums: &PanelSums<'_>, out: &mut [f32]) {
    let (m, group) = (panel.rows, tile.form.group);
    for (row, out) in out.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        let mut total = [0.0f32; LANES];
        for span in 0..tile.columns / SHORT {
            let x_scale = panel.scales[span * m + row];
            for g in span * (SHORT / group)..(span + 1) * (SHORT / group) {
                let start = if tile.form.minimum { 0 } else { sums.groups[g * m + row] };
                let products = group_products(tile, panel, g, row, start);
                let scales = lanes_at(tile.scales, g);
                for i in 0..LANES {
                    total[i] = (products[i] as f32).mul_add(scales[i] * x_scale, total[i]);
                }
            }
            if tile.form.minimum {
                let (mins, shift) = (lanes_at(tile.mins, span), sums.shifts[span * m + row]);
                for i in 0..LANES {
                    total[i] = mins[i].mul_add(shift, total[i]);
                }
            }
        }
        *out = total;
    }
}

#[inline(always)]
fn super_portable(tile: &Tile<'_>, panel: &Panel<'_>, sums: &PanelSums<'_>, out: &mut [f32]) {
    let (m, groups) = (panel.rows, LONG / tile.form.group);
    let factors = tile.factors.as_chunks::<LANES>().0;
    let min_factors = tile.min_factors.as_chunks::<LANES>().0;
    for (row, out) in out.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        let mut total = [0.0f32; LANES];
        for span in 0..tile.columns / LONG {
            let x_scale = panel.scales[span * m + row];
            let (mut whole, mut below) = ([0i32; LANES], [0i32; LANES]);
            for (n, factors) in factors[span * groups..(span + 1) * groups].iter().enumerate() {
                let g = span * groups + n;
                let start = if tile.form.minimum { 0 } else { sums.groups[g * m + row] };
                let products = group_products(tile, panel, g, row, start);
                for i in 0..LANES {
                    whole[i] += factors[i] * products[i];
                }
            }
            if tile.form.minimum {
                let pairs = span * groups / 2..(span + 1) * groups / 2;
                let sums = sums.groups[row..].iter().step_by(m).skip(pairs.start);
                for (factors, sum) in min_factors[pairs].iter().zip(sums) {
                    let sum = halves(*sum);
                    for i in 0..LANES {
                        let two = halves(factors[i]);
                        below[i] += two[0] * sum[0] + two[1] * sum[1];
                    }
                }
            }
            let scales = lanes_at(tile.scales, span);
            for i in 0..LANES {
                total[i] = (whole[i] as f32).mul_add(scales[i] * x_scale, total[i]);
            }
            if tile.form.minimum {
                let mins = lanes_at(tile.mins, span);
                for i in 0..LANES {
                    total[i] = (below[i] as f32).mul_add(-(mins[i] * x_scale), total[i]);
                }
            }
        }
        *out = total;
    }
}
