//! AVX-512.

use std::arch::x86_64::*;

/// Turns 16 rows of `columns` numbers, up to the last multiple of 16 columns.
///
/// # Safety
/// Both slices hold `16 * columns` numbers.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn transpose_16(rows: &[f32], columns: usize, out: &mut [f32]) {
    for column in (0..columns / 16 * 16).step_by(16) {
        // SAFETY: all 16 rows at columns `column..column + 16` are inside the slice.
        let loaded: [__m512; 16] = std::array::from_fn(|i| unsafe {
            _mm512_loadu_ps(rows.as_ptr().add(i * columns + column))
        });
        for (i, turned) in turn_16(loaded).into_iter().enumerate() {
            // SAFETY: row `column + i` of 16 numbers is inside the slice.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr().add((column + i) * 16), turned) };
        }
    }
}

/// The transpose of a matrix of 16 rows of 16 numbers.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) fn turn_16(rows: [__m512; 16]) -> [__m512; 16] {
    // Four steps: pairs and quads inside 128-bit parts, then parts inside halves, then halves.
    let mut a = rows;
    for i in 0..8 {
        a[2 * i] = _mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
        a[2 * i + 1] = _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
    }
    let mut b = a;
    for i in 0..4 {
        let [x0, x1, x2, x3] = [a[4 * i], a[4 * i + 1], a[4 * i + 2], a[4 * i + 3]];
        b[4 * i] = _mm512_shuffle_ps::<0x44>(x0, x2);
        b[4 * i + 1] = _mm512_shuffle_ps::<0xee>(x0, x2);
        b[4 * i + 2] = _mm512_shuffle_ps::<0x44>(x1, x3);
        b[4 * i + 3] = _mm512_shuffle_ps::<0xee>(x1, x3);
    }
    // Now b[4 * g + c] holds, in part p, rows 4g..4g + 4 of column 4p + c.
    let mut out = b;
    for c in 0..4 {
        let near = _mm512_shuffle_f32x4::<0x88>(b[c], b[4 + c]);
        let far = _mm512_shuffle_f32x4::<0xdd>(b[c], b[4 + c]);
        let near_2 = _mm512_shuffle_f32x4::<0x88>(b[8 + c], b[12 + c]);
        let far_2 = _mm512_shuffle_f32x4::<0xdd>(b[8 + c], b[12 + c]);
        out[c] = _mm512_shuffle_f32x4::<0x88>(near, near_2);
        out[8 + c] = _mm512_shuffle_f32x4::<0xdd>(near, near_2);
        out[4 + c] = _mm512_shuffle_f32x4::<0x88>(far, far_2);
        out[12 + c] = _mm512_shuffle_f32x4::<0xdd>(far, far_2);
    }
    out
}
