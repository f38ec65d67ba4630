//! Products of stored plain numbers with f32 rows in AVX-512: the order of sums of
//! [`super::super::linear`]'s plain functions (element `i` in partial sum `i % 16`).

use std::arch::x86_64::*;

use super::super::lanes::{LANES, total};

/// A stored number format that widens to f32.
pub(in crate::cpu) trait Number {
    const BYTES: usize;

    /// Sixteen numbers.
    ///
    /// # Safety
    /// The processor has AVX-512; the numbers are there.
    unsafe fn load(from: *const u8) -> __m512;
}

pub(in crate::cpu) struct F32;
pub(in crate::cpu) struct F16;
pub(in crate::cpu) struct Bf16;

impl Number for F32 {
    const BYTES: usize = 4;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_loadu_ps(from.cast()) }
    }
}

impl Number for F16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }
}

impl Number for Bf16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
}

/// `out[m][n]` = product of row `m` of `x` with row `n` of the stored weights.
///
/// # Safety
/// The processor has AVX-512; `weights` is `n` rows, `x` `m` rows of `columns` numbers and `out`
/// `[m][n]`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(in crate::cpu) unsafe fn products<W: Number>(
    weights: &[u8],
    x: &[f32],
    columns: usize,
    out: &mut [f32],
) {
    let (n, m) = (weights.len() / W::BYTES / columns, x.len() / columns);
    let (mut row, mut weight);
    row = 0;
    while row < m {
        let rows = if m - row >= 4 { 4 } else { 1 };
        weight = 0;
        while weight < n {
            let wide = n - weight >= 4;
            // SAFETY: rows `row..` and weights `weight..` of the block's size exist.
            unsafe {
                let w = weights.as_ptr().add(weight * columns * W::BYTES);
                let x = x.as_ptr().add(row * columns);
                let out = out.as_mut_ptr().add(row * n + weight);
                match (rows, wide) {
                    (4, true) => block::<W, 4, 4>(w, x, columns, out, n),
                    (4, false) => block::<W, 4, 1>(w, x, columns, out, n),
                    (_, true) => block::<W, 1, 4>(w, x, columns, out, n),
                    (_, false) => block::<W, 1, 1>(w, x, columns, out, n),
                }
            }
            weight += if wide { 4 } else { 1 };
        }
        row += rows;
    }
}

/// Products of `M` rows with `N` weight rows.
#[inline(always)]
unsafe fn block<W: Number, const M: usize, const N: usize>(
    weights: *const u8,
    x: *const f32,
    columns: usize,
    out: *mut f32,
    stride: usize,
) {
    let whole = columns / LANES * LANES;
    let rest = columns - whole;
    // SAFETY: the caller's promise; what is beyond the last whole sixteen is copied to padded
    // buffers first.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); N]; M];
        let mut column = 0;
        while column < whole {
            if M == 1 {
                // One row waits for memory: ask for the weight rows that follow these.
                let ahead = N * (columns + column) * W::BYTES;
                for line in (0..N * LANES * W::BYTES).step_by(64) {
                    _mm_prefetch::<_MM_HINT_T1>(weights.wrapping_add(ahead + line).cast());
                }
            }
            let mut w = [_mm512_setzero_ps(); N];
            for (j, w) in w.iter_mut().enumerate() {
                *w = W::load(weights.add((j * columns + column) * W::BYTES));
            }
            for (i, sums) in sums.iter_mut().enumerate() {
                let x = _mm512_loadu_ps(x.add(i * columns + column));
                for j in 0..N {
                    sums[j] = _mm512_fmadd_ps(w[j], x, sums[j]);
                }
            }
            column += LANES;
        }
        if rest > 0 {
            for (i, sums) in sums.iter_mut().enumerate() {
                let mut padded = [0f32; LANES];
                let from = x.add(i * columns + whole);
                std::ptr::copy_nonoverlapping(from, padded.as_mut_ptr(), rest);
                let x = _mm512_loadu_ps(padded.as_ptr());
                for (j, sum) in sums.iter_mut().enumerate() {
                    let mut padded = [0u8; 4 * LANES];
                    let from = weights.add((j * columns + whole) * W::BYTES);
                    std::ptr::copy_nonoverlapping(from, padded.as_mut_ptr(), rest * W::BYTES);
                    *sum = _mm512_fmadd_ps(W::load(padded.as_ptr()), x, *sum);
                }
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            for (j, sum) in sums.iter().enumerate() {
                let mut lanes = [0f32; LANES];
                _mm512_storeu_ps(lanes.as_mut_ptr(), *sum);
                *out.add(i * stride + j) = total(lanes);
            }
        }
    }
}
