//! Formats of 256 weights that are -1, 0 or 1 times one half precision scale.

use super::half_at;

/// Base-3 digits: 52 bytes, each the fraction `0.d0 d1 d2 d3 d4` in base 3 times 256, rounded up.
/// Multiplying by 3^n (mod 256) brings digit `n` to the front. 32 bytes hold elements 0..160 (digit
/// `n` of byte `j`: element `32n + j`), 16 bytes 160..240 likewise, 4 bytes of four digits the rest.
pub(super) fn tq1_0(block: &[u8], out: &mut [f32]) {
    let d = half_at(block, 52);
    let (parts, mut done) = ([(0, 32, 5), (32, 16, 5), (48, 4, 4)], 0);
    for (from, bytes, digits) in parts {
        let mut power = 1u8;
        for _ in 0..digits {
            for &byte in &block[from..from + bytes] {
                let digit = (u16::from(byte.wrapping_mul(power)) * 3) >> 8;
                out[done] = d * (f32::from(digit) - 1.0);
                done += 1;
            }
            power = power.wrapping_mul(3);
        }
    }
}

/// Two-bit codes: byte `j` of each 32 holds elements `j`, `j + 32`, `j + 64`, `j + 96` of a half
/// block. (Code 3 is never written, and means 2.)
pub(super) fn tq2_0(block: &[u8], out: &mut [f32]) {
    let d = half_at(block, 64);
    for (i, value) in out.iter_mut().enumerate() {
        let q = (block[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2)) & 3;
        *value = d * (f32::from(q) - 1.0);
    }
}
