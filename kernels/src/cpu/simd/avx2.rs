//! AVX2, FMA and F16C.

use std::arch::x86_64::*;

/// Widens half precision numbers, one slice of the same length to the other.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn widen_f16(halves: &[[u8; 2]], out: &mut [f32]) {
    let (whole, rest) = halves.as_chunks::<8>();
    let (out_whole, out_rest) = out.as_chunks_mut::<8>();
    for (halves, out) in whole.iter().zip(out_whole) {
        // SAFETY: eight halves are 16 bytes, eight floats 32; unaligned access.
        unsafe {
            let wide = _mm256_cvtph_ps(_mm_loadu_si128(halves.as_ptr().cast()));
            _mm256_storeu_ps(out.as_mut_ptr(), wide);
        }
    }
    for (half, out) in rest.iter().zip(out_rest) {
        *out = half::f16::from_le_bytes(*half).to_f32();
    }
}

/// Rounds numbers to half precision, one slice of the same length to the other.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn narrow_f16(values: &[f32], out: &mut [[u8; 2]]) {
    let (whole, rest) = values.as_chunks::<8>();
    let (out_whole, out_rest) = out.as_chunks_mut::<8>();
    for (values, out) in whole.iter().zip(out_whole) {
        // SAFETY: eight floats are 32 bytes, eight halves 16; unaligned access.
        unsafe {
            let wide = _mm256_loadu_ps(values.as_ptr());
            let half = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(wide);
            _mm_storeu_si128(out.as_mut_ptr().cast(), half);
        }
    }
    for (v, half) in rest.iter().zip(out_rest) {
        *half = half::f16::from_f32(*v).to_le_bytes();
    }
}

/// Turns 16 rows of `columns` numbers, up to the last multiple of 8 columns.
///
/// # Safety
/// Both slices hold `16 * columns` numbers.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn transpose_16(rows: &[f32], columns: usize, out: &mut [f32]) {
    for column in (0..columns / 8 * 8).step_by(8) {
        for half in [0, 8] {
            // SAFETY: rows `half..half + 8` at columns `column..column + 8` are inside the slice.
            let load = |i: usize| unsafe {
                _mm256_loadu_ps(rows.as_ptr().add((half + i) * columns + column))
            };
            let pairs = |a: __m256, b: __m256| (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
            let (a0, a1) = pairs(load(0), load(1));
            let (a2, a3) = pairs(load(2), load(3));
            let (a4, a5) = pairs(load(4), load(5));
            let (a6, a7) = pairs(load(6), load(7));
            let low = |a: __m256, b: __m256| _mm256_shuffle_ps::<0x44>(a, b);
            let high = |a: __m256, b: __m256| _mm256_shuffle_ps::<0xee>(a, b);
            let quads = [
                (low(a0, a2), low(a4, a6)),
                (high(a0, a2), high(a4, a6)),
                (low(a1, a3), low(a5, a7)),
                (high(a1, a3), high(a5, a7)),
            ];
            for (i, (x, y)) in quads.into_iter().enumerate() {
                let near = _mm256_permute2f128_ps::<0x20>(x, y);
                let far = _mm256_permute2f128_ps::<0x31>(x, y);
                // SAFETY: rows `column + i` and `column + i + 4` of 16 numbers are inside.
                unsafe {
                    let to = out.as_mut_ptr().add((column + i) * 16 + half);
                    _mm256_storeu_ps(to, near);
                    _mm256_storeu_ps(to.add(64), far);
                }
            }
        }
    }
}
