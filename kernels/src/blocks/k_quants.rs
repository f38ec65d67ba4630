//! Formats of 256 weights in sub-blocks of 16 or 32, whose small scales share a half precision one.

use super::half_at;

/// Scales and minimums of the eight sub-blocks of Q4_K and Q5_K, six bits each in 12 bytes: bytes
/// 0..4 and 4..8 hold scales and minimums 0..4 in their low six bits; bytes 8..12 hold the low four
/// bits of scales (low half) and minimums (high half) 4..8, whose two high bits are the top bits of
/// bytes 0..4 and 4..8.
pub fn scales_and_mins(packed: &[u8]) -> ([u8; 8], [u8; 8]) {
    let (mut scales, mut mins) = ([0; 8], [0; 8]);
    for j in 0..4 {
        let (s, m, rest) = (packed[j], packed[j + 4], packed[j + 8]);
        scales[j] = s & 63;
        mins[j] = m & 63;
        scales[j + 4] = (rest & 15) | (s >> 6) << 4;
        mins[j + 4] = (rest >> 4) | (m >> 6) << 4;
    }
    (scales, mins)
}

/// Scales of the sixteen sub-blocks of Q3_K, six bits each with an offset of 32, in 12 bytes: low
/// halves of bytes 0..8 are the low four bits of scales 0..8, high halves those of 8..16; bits
/// `2i` and `2i + 1` of bytes 8..12 are the high bits of scales `4i..4i + 4`.
pub(crate) fn signed_scales(packed: &[u8]) -> [i8; 16] {
    std::array::from_fn(|j| {
        let low = if j < 8 { packed[j] & 15 } else { packed[j - 8] >> 4 };
        let high = (packed[8 + j % 4] >> (2 * (j / 4))) & 3;
        (low | high << 4) as i8 - 32
    })
}

/// 16 bytes of (scale, minimum) halves, 64 bytes of 2-bit codes, `d`, `dmin`. Code byte `j` of each
/// 32 holds elements `j`, `j + 32`, `j + 64`, `j + 96` of a half block.
pub(super) fn q2_k(block: &[u8], out: &mut [f32]) {
    let (scales, codes) = (&block[..16], &block[16..80]);
    let (d, dmin) = (half_at(block, 80), half_at(block, 82));
    for (i, value) in out.iter_mut().enumerate() {
        let scale = scales[i / 16];
        let q = (codes[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2)) & 3;
        *value = d * f32::from(scale & 15) * f32::from(q) - dmin * f32::from(scale >> 4);
    }
}

/// 32 bytes of third bits (set: no offset), 64 bytes of 2-bit codes laid out as in Q2_K, 12 bytes
/// of scales, `d`.
pub(super) fn q3_k(block: &[u8], out: &mut [f32]) {
    let (third, codes) = (&block[..32], &block[32..96]);
    let scales = signed_scales(&block[96..108]);
    let d = half_at(block, 108);
    for (i, value) in out.iter_mut().enumerate() {
        let low = (codes[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2)) & 3;
        let high = (third[i % 32] >> (i / 32)) & 1;
        let q = (low | high << 2) as i8 - 4;
        *value = d * f32::from(scales[i / 16]) * f32::from(q);
    }
}

/// `d`, `dmin`, 12 bytes of scales and minimums, 128 bytes of codes. Code byte `j` of each 32 holds
/// elements `j` (low half) and `j + 32` (high half) of a quarter block.
pub(super) fn q4_k(block: &[u8], out: &mut [f32]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let (scales, mins) = scales_and_mins(&block[4..16]);
    let codes = &block[16..144];
    for (i, value) in out.iter_mut().enumerate() {
        let q = (codes[i / 64 * 32 + i % 32] >> (i % 64 / 32 * 4)) & 15;
        *value = d * f32::from(scales[i / 32]) * f32::from(q) - dmin * f32::from(mins[i / 32]);
    }
}

/// As Q4_K with 32 bytes of fifth bits before the codes: bit `i / 32` of byte `i % 32`.
pub(super) fn q5_k(block: &[u8], out: &mut [f32]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let (scales, mins) = scales_and_mins(&block[4..16]);
    let (fifth, codes) = (&block[16..48], &block[48..176]);
    for (i, value) in out.iter_mut().enumerate() {
        let low = (codes[i / 64 * 32 + i % 32] >> (i % 64 / 32 * 4)) & 15;
        let q = low | ((fifth[i % 32] >> (i / 32)) & 1) << 4;
        *value = d * f32::from(scales[i / 32]) * f32::from(q) - dmin * f32::from(mins[i / 32]);
    }
}

/// 128 bytes of low codes (byte `j` of each 64: elements `j`, `j + 64` of a half block), 64 bytes of
/// high bit pairs (byte `j` of each 32: elements `j`, `j + 32`, `j + 64`, `j + 96`), 16 signed
/// scales, `d`: `d * scale * (q - 32)`.
pub(super) fn q6_k(block: &[u8], out: &mut [f32]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = half_at(block, 208);
    for (i, value) in out.iter_mut().enumerate() {
        let within = i % 128;
        let four = (low[i / 128 * 64 + within % 64] >> (within / 64 * 4)) & 15;
        let two = (high[i / 128 * 32 + within % 32] >> (within / 32 * 2)) & 3;
        let q = (four | two << 4) as i8 - 32;
        *value = d * f32::from(scales[i / 16] as i8) * f32::from(q);
    }
}

/// f32 `d`, 256 signed bytes, sums of sixteen (a help for integer products, no part of the values).
pub(super) fn q8_k(block: &[u8], out: &mut [f32]) {
    let d = f32::from_bits(super::u32_at(block, 0));
    for (value, &q) in out.iter_mut().zip(&block[4..260]) {
        *value = d * f32::from(q as i8);
    }
}
