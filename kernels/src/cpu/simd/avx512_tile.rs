//! Integer products of a tile with a panel in AVX-512 VNNI: one lane a weight row, one register a
//! panel row, so that the sum over a group needs no horizontal step.

use std::arch::x86_64::*;

use super::super::linear::{Panel, PanelSums, Scaling, Tile};

const LONG: usize = 256;
const SHORT: usize = 32;

/// See [`super::product::tile`].
///
/// # Safety
/// The processor has the features, and the sizes are as `super::product::check` demands, with 1 to
/// 12 rows in the panel.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn tile(
    tile: &Tile<'_>,
    panel: &Panel<'_>,
    sums: &PanelSums<'_>,
    out: &mut [f32],
) {
    macro_rules! by_rows {
        ($($m:literal)*) => {
            match panel.rows {
                // SAFETY: the caller's promise.
                $($m => unsafe { by_form::<$m>(tile, panel, sums, out) },)*
                m => unreachable!("a panel of {m} rows"),
            }
        };
    }
    by_rows!(1 2 3 4 5 6 7 8 9 10 11 12);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn by_form<const M: usize>(
    tile: &Tile<'_>,
    panel: &Panel<'_>,
    sums: &PanelSums<'_>,
    out: &mut [f32],
) {
    // SAFETY: the caller's promise.
    unsafe {
        match (tile.form.scaling, tile.form.group, tile.form.minimum) {
            (Scaling::Single, 32, false) => single::<M, 32, false>(tile, panel, sums, out),
            (Scaling::Single, 32, true) => single::<M, 32, true>(tile, panel, sums, out),
            (Scaling::Single, _, false) => single::<M, 16, false>(tile, panel, sums, out),
            (Scaling::Single, _, true) => single::<M, 16, true>(tile, panel, sums, out),
            (Scaling::Super, 32, false) => super_block::<M, 32, false>(tile, panel, sums, out),
            (Scaling::Super, 32, true) => super_block::<M, 32, true>(tile, panel, sums, out),
            (Scaling::Super, _, false) => super_block::<M, 16, false>(tile, panel, sums, out),
            (Scaling::Super, _, true) => super_block::<M, 16, true>(tile, panel, sums, out),
        }
    }
}

/// Where a kernel reads.
#[derive(Clone, Copy)]
struct Source<const M: usize> {
    codes: *const u8,
    x: *const i8,
    sums: *const i32,
}

impl<const M: usize> Source<M> {
    fn new(tile: &Tile<'_>, panel: &Panel<'_>, sums: &PanelSums<'_>) -> Self {
        Self { codes: tile.codes.as_ptr(), x: panel.codes.as_ptr(), sums: sums.groups.as_ptr() }
    }

    /// Products of group number `group`, with the sums' offsets to start from or 0.
    ///
    /// # Safety
    /// The group exists in all three arrays.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    unsafe fn group<const G: usize, const MIN: bool>(self, group: usize) -> [__m512i; M] {
        let mut products = [_mm512_setzero_si512(); M];
        if !MIN {
            for (m, product) in products.iter_mut().enumerate() {
                // SAFETY: `[groups][M]` sums.
                *product = _mm512_set1_epi32(unsafe { *self.sums.add(group * M + m) });
            }
        }
        for four in group * (G / 4)..(group + 1) * (G / 4) {
            // SAFETY: `[columns / 4][16][4]` codes.
            let codes = unsafe { _mm512_loadu_si512(self.codes.add(four * 64).cast()) };
            for (m, product) in products.iter_mut().enumerate() {
                // SAFETY: `[columns / 4][M][4]` codes of the panel.
                let x = unsafe { self.x.add((four * M + m) * 4).cast::<i32>().read_unaligned() };
                *product = _mm512_dpbusd_epi32(*product, codes, _mm512_set1_epi32(x));
            }
        }
        products
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn single<const M: usize, const G: usize, const MIN: bool>(
    tile: &Tile<'_>,
    panel: &Panel<'_>,
    sums: &PanelSums<'_>,
    out: &mut [f32],
) {
    let source = Source::<M>::new(tile, panel, sums);
    let mut total = [_mm512_setzero_ps(); M];
    for span in 0..tile.columns / SHORT {
        for group in span * (SHORT / G)..(span + 1) * (SHORT / G) {
            // SAFETY: the group is one of `columns / G`.
            let products = unsafe { source.group::<G, MIN>(group) };
            // SAFETY: `[columns / G][16]` scales.
            let scales = unsafe { _mm512_loadu_ps(tile.scales.as_ptr().add(group * 16)) };
            for m in 0..M {
                // SAFETY: `[columns / 32][M]` scales of the panel.
                let x_scale = unsafe { *panel.scales.as_ptr().add(span * M + m) };
                let scale = _mm512_mul_ps(scales, _mm512_set1_ps(x_scale));
                total[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products[m]), scale, total[m]);
            }
        }
        if MIN {
            // SAFETY: `[columns / 32][16]` minimums.
            let mins = unsafe { _mm512_loadu_ps(tile.mins.as_ptr().add(span * 16)) };
            for (m, total) in total.iter_mut().enumerate() {
                // SAFETY: `[columns / 32][M]` sums of activations.
                let shift = unsafe { *sums.shifts.as_ptr().add(span * M + m) };
                *total = _mm512_fmadd_ps(mins, _mm512_set1_ps(shift), *total);
            }
        }
    }
    // SAFETY: `[M][16]` results.
    unsafe { store(total, out) };
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn super_block<const M: usize, const G: usize, const MIN: bool>(
    tile: &Tile<'_>,
    panel: &Panel<'_>,
    sums: &PanelSums<'_>,
    out: &mut [f32],
) {
    let source = Source::<M>::new(tile, panel, sums);
    let mut total = [_mm512_setzero_ps(); M];
    for span in 0..tile.columns / LONG {
        let groups = span * (LONG / G)..(span + 1) * (LONG / G);
        let mut whole = [_mm512_setzero_si512(); M];
        for group in groups.clone() {
            // SAFETY: the group is one of `columns / G`.
            let products = unsafe { source.group::<G, MIN>(group) };
            // SAFETY: `[columns / G][16]` factors.
            let factors = unsafe { load(tile.factors.as_ptr().add(group * 16)) };
            for m in 0..M {
                let scaled = _mm512_mullo_epi32(products[m], factors);
                whole[m] = _mm512_add_epi32(whole[m], scaled);
            }
        }
        // SAFETY: `[columns / 256][16]` scales.
        let scales = unsafe { _mm512_loadu_ps(tile.scales.as_ptr().add(span * 16)) };
        let x_scale = |m: usize| {
            // SAFETY: `[columns / 256][M]` scales of the panel.
            _mm512_set1_ps(unsafe { *panel.scales.as_ptr().add(span * M + m) })
        };
        for m in 0..M {
            let scale = _mm512_mul_ps(scales, x_scale(m));
            total[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole[m]), scale, total[m]);
        }
        if MIN {
            let mut below = [_mm512_setzero_si512(); M];
            for two in groups.start / 2..groups.end / 2 {
                // SAFETY: `[columns / G / 2][16]` pairs of factors.
                let factors = unsafe { load(tile.min_factors.as_ptr().add(two * 16)) };
                for (m, below) in below.iter_mut().enumerate() {
                    // SAFETY: `[columns / G / 2][M]` pairs of sums.
                    let sum = _mm512_set1_epi32(unsafe { *source.sums.add(two * M + m) });
                    *below = _mm512_dpwssd_epi32(*below, factors, sum);
                }
            }
            // SAFETY: `[columns / 256][16]` scales of minimums.
            let mins = unsafe { _mm512_loadu_ps(tile.mins.as_ptr().add(span * 16)) };
            for m in 0..M {
                let scale = _mm512_mul_ps(mins, x_scale(m));
                total[m] = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(below[m]), scale, total[m]);
            }
        }
    }
    // SAFETY: `[M][16]` results.
    unsafe { store(total, out) };
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn load(from: *const i32) -> __m512i {
    // SAFETY: the caller has sixteen numbers there.
    unsafe { _mm512_loadu_si512(from.cast()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn store<const M: usize>(total: [__m512; M], out: &mut [f32]) {
    for (m, total) in total.into_iter().enumerate() {
        // SAFETY: the caller has `[M][16]` numbers there.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr().add(m * 16), total) };
    }
}
