//! Products in f32.

use trefoil_graph::BlockType;

use super::super::lanes::{LANES, total};
use super::super::level::at_level;
use super::super::{Level, simd};

/// `out[m][n]` = product of row `m` of `x` with row `n` of `weights`, both of `columns` numbers.
fn check(weights: &[f32], x: &[f32], columns: usize, out: &[f32]) {
    let (n, m) = (weights.len() / columns, x.len() / columns);
    assert_eq!((weights.len(), x.len(), out.len()), (n * columns, m * columns, n * m));
}

/// `out[m][n]` = product of row `m` of `x` with row `n` of `weights`, both of `columns` numbers.
pub(super) fn products(level: Level, weights: &[f32], x: &[f32], columns: usize, out: &mut [f32]) {
    if !stored(level, BlockType::F32, bytemuck::cast_slice(weights), x, columns, out) {
        products_at(level, weights, x, columns, out);
    }
}

/// [`products`] straight from stored weights, where the level has code for their format; says
/// whether it has.
pub(super) fn stored(
    level: Level,
    block: BlockType,
    weights: &[u8],
    x: &[f32],
    columns: usize,
    out: &mut [f32],
) -> bool {
    #[cfg(all(target_arch = "x86_64", target_endian = "little"))]
    if level == Level::Avx512 && matches!(block, BlockType::F32 | BlockType::F16 | BlockType::BF16)
    {
        let (n, m) = (weights.len() / block.info().bytes / columns, x.len() / columns);
        assert_eq!(weights.len(), n * columns * block.info().bytes);
        assert_eq!((x.len(), out.len()), (m * columns, n * m));
        // SAFETY: the level has AVX-512; sizes were checked above.
        unsafe {
            match block {
                BlockType::F16 => simd::products::<simd::F16>(weights, x, columns, out),
                BlockType::BF16 => simd::products::<simd::Bf16>(weights, x, columns, out),
                _ => simd::products::<simd::F32>(weights, x, columns, out),
            }
        }
        return true;
    }
    let _ = (level, block, weights, x, columns, out);
    false
}

at_level! {
    fn products_at(weights: &[f32], x: &[f32], columns: usize, out: &mut [f32]) = products_body;
}

#[inline(always)]
fn products_body(weights: &[f32], x: &[f32], columns: usize, out: &mut [f32]) {
    check(weights, x, columns, out);
    let (n, m) = (weights.len() / columns, x.len() / columns);
    let mut row = 0;
    while row < m {
        let rows = if m - row >= 4 { 4 } else { 1 };
        let mut weight = 0;
        while weight < n {
            let weights = &weights[weight * columns..];
            let x = &x[row * columns..];
            if rows == 4 && n - weight >= 4 {
                put(block::<4, 4>(weights, x, columns), &mut out[row * n + weight..], n);
                weight += 4;
            } else if rows == 4 {
                put(block::<4, 1>(weights, x, columns), &mut out[row * n + weight..], n);
                weight += 1;
            } else if n - weight >= 4 {
                put(block::<1, 4>(weights, x, columns), &mut out[row * n + weight..], n);
                weight += 4;
            } else {
                put(block::<1, 1>(weights, x, columns), &mut out[row * n + weight..], n);
                weight += 1;
            }
        }
        row += rows;
    }
}

#[inline(always)]
fn put<const M: usize, const N: usize>(results: [[f32; N]; M], out: &mut [f32], stride: usize) {
    for (i, results) in results.iter().enumerate() {
        out[i * stride..i * stride + N].copy_from_slice(results);
    }
}

/// Products of `M` rows with `N` weight rows: sixteen partial sums each, see [`super::super::lanes`].
#[expect(clippy::needless_range_loop, reason = "lanes of several arrays at once")]
#[inline(always)]
fn block<const M: usize, const N: usize>(
    weights: &[f32],
    x: &[f32],
    columns: usize,
) -> [[f32; N]; M] {
    let mut sums = [[[0.0f32; LANES]; N]; M];
    let whole = columns / LANES * LANES;
    let rest = columns - whole;
    let at = |rows: &[f32], row: usize, column: usize| -> [f32; LANES] {
        *rows[row * columns + column..].first_chunk().expect("inside the row")
    };
    let end = |rows: &[f32], row: usize| -> [f32; LANES] {
        let mut padded = [0.0; LANES];
        padded[..rest].copy_from_slice(&rows[row * columns + whole..(row + 1) * columns]);
        padded
    };
    for column in (0..whole).step_by(LANES) {
        for j in 0..N {
            let w = at(weights, j, column);
            for i in 0..M {
                let x = at(x, i, column);
                for lane in 0..LANES {
                    sums[i][j][lane] = w[lane].mul_add(x[lane], sums[i][j][lane]);
                }
            }
        }
    }
    if rest > 0 {
        for j in 0..N {
            let w = end(weights, j);
            for i in 0..M {
                let x = end(x, i);
                for lane in 0..LANES {
                    sums[i][j][lane] = w[lane].mul_add(x[lane], sums[i][j][lane]);
                }
            }
        }
    }
    sums.map(|row| row.map(total))
}
