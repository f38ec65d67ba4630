//! Half precision to f32 and back, and the turning of small matrices.

use super::super::Level;
use super::super::kv::KvFormat;
use super::super::lanes::LANES;
use super::super::level::at_level;

/// Decodes little-endian numbers. `bytes` holds `out.len()` of them.
pub(in crate::cpu) fn widen(level: Level, format: KvFormat, bytes: &[u8], out: &mut [f32]) {
    debug_assert_eq!(bytes.len(), format.bytes(out.len()));
    match format {
        KvFormat::F32 => {
            for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *out = f32::from_le_bytes(*bytes);
            }
        }
        KvFormat::F16 => {
            let halves = bytes.as_chunks::<2>().0;
            let halves = &halves[..out.len()];
            #[cfg(target_arch = "x86_64")]
            if level != Level::Portable {
                // SAFETY: both vector levels have F16C (Level::detect).
                return unsafe { super::avx2::widen_f16(halves, out) };
            }
            let _ = level;
            for (out, half) in out.iter_mut().zip(halves) {
                *out = half::f16::from_le_bytes(*half).to_f32();
            }
        }
    }
}

/// Encodes numbers as little-endian ones of the format, rounded to nearest even.
pub(in crate::cpu) fn narrow(level: Level, format: KvFormat, values: &[f32], out: &mut [u8]) {
    debug_assert_eq!(out.len(), format.bytes(values.len()));
    match format {
        KvFormat::F32 => {
            for (v, bytes) in values.iter().zip(out.as_chunks_mut::<4>().0) {
                *bytes = v.to_le_bytes();
            }
        }
        KvFormat::F16 => {
            let halves = out.as_chunks_mut::<2>().0;
            let halves = &mut halves[..values.len()];
            #[cfg(target_arch = "x86_64")]
            if level != Level::Portable {
                // SAFETY: both vector levels have F16C (Level::detect).
                return unsafe { super::avx2::narrow_f16(values, halves) };
            }
            let _ = level;
            for (v, half) in values.iter().zip(halves) {
                *half = half::f16::from_f32(*v).to_le_bytes();
            }
        }
    }
}

at_level! {
    /// Decodes little-endian bfloat16 numbers.
    pub(in crate::cpu) fn widen_bf16(bytes: &[u8], out: &mut [f32]) = widen_bf16_body;
}

#[inline(always)]
fn widen_bf16_body(bytes: &[u8], out: &mut [f32]) {
    for (out, half) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *out = f32::from_bits(u32::from(u16::from_le_bytes(*half)) << 16);
    }
}

/// Turns sixteen rows of `columns` numbers into `columns` rows of sixteen.
pub(in crate::cpu) fn transpose(level: Level, rows: &[f32], columns: usize, out: &mut [f32]) {
    assert_eq!((rows.len(), out.len()), (LANES * columns, LANES * columns));
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if level == Level::Avx512 {
        done = columns / LANES * LANES;
        // SAFETY: the level has AVX-512; sizes were checked above.
        unsafe { super::avx512::transpose_16(rows, columns, out) };
    } else if level == Level::Avx2 {
        done = columns / 8 * 8;
        // SAFETY: the level has AVX2; sizes were checked above.
        unsafe { super::avx2::transpose_16(rows, columns, out) };
    }
    let _ = level;
    for column in done..columns {
        for row in 0..LANES {
            out[column * LANES + row] = rows[row * columns + column];
        }
    }
}
