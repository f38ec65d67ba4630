//! Integer products of a tile of weights with a panel of activations.
//!
//! The result of a row is defined by [`tile_portable`]; the others compute the same numbers: whole
//! number sums are exact in any order, and the floating point operations are the same.

use super::super::Level;
use super::super::lanes::LANES;
use super::super::level::at_level;
use super::super::linear::{Panel, PanelSums, Scaling, Tile};

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

/// The sizes that vector kernels rely on.
fn check(tile: &Tile<'_>, panel: &Panel<'_>, sums: &PanelSums<'_>, out: &[f32]) {
    let (columns, m, group) = (tile.columns, panel.rows, tile.form.group);
    assert!(columns.is_multiple_of(SHORT) && (group == 16 || group == 32));
    assert_eq!(tile.codes.len(), LANES * columns);
    assert_eq!((panel.codes.len(), out.len()), (m * columns, m * LANES));
    assert_eq!(sums.groups.len(), m * columns / group);
    let (mins, shifts) = match tile.form.scaling {
        Scaling::Single => {
            assert_eq!(tile.scales.len(), LANES * columns / group);
            assert_eq!(panel.scales.len(), m * columns / SHORT);
            (columns / SHORT, columns / SHORT)
        }
        Scaling::Super => {
            assert!(columns.is_multiple_of(LONG));
            assert_eq!(tile.scales.len(), LANES * columns / LONG);
            assert_eq!(tile.factors.len(), LANES * columns / group);
            assert_eq!(tile.min_factors.len(), LANES * columns / group);
            assert_eq!(panel.scales.len(), m * columns / LONG);
            (columns / LONG, 0)
        }
    };
    if tile.form.minimum {
        assert_eq!((tile.mins.len(), sums.shifts.len()), (LANES * mins, m * shifts));
    }
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
            for g in span * groups..(span + 1) * groups {
                let sum = sums.groups[g * m + row];
                let start = if tile.form.minimum { 0 } else { sum };
                let products = group_products(tile, panel, g, row, start);
                for i in 0..LANES {
                    whole[i] += factors[g][i] * products[i];
                }
                if tile.form.minimum {
                    for i in 0..LANES {
                        below[i] += min_factors[g][i] * sum;
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
