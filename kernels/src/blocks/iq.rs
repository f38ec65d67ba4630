//! Formats of 256 weights that name vectors of a codebook (IQ1, IQ2, IQ3), and those whose four-bit
//! codes stand for sixteen unevenly spaced values (IQ4).

use super::grids::{Grid, even_signs};
use super::{half_at, u16_at, u32_at};

/// Values of the four-bit codes of IQ4_NL and IQ4_XS.
pub const IQ4_VALUES: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Offset added to the elements of IQ1's codebook.
const IQ1_DELTA: f32 = 0.125;

/// `out = d * vector`, negated where a bit of `signs` is set.
fn put(out: &mut [f32], d: f32, vector: &[i8], signs: u8) {
    for (i, (value, &element)) in out.iter_mut().zip(vector).enumerate() {
        let magnitude = d * f32::from(element);
        *value = if signs >> i & 1 == 1 { -magnitude } else { magnitude };
    }
}

/// `d`, then for each 32 weights four vector numbers (bytes) and a word of four times seven sign
/// bits and a four-bit scale.
pub(super) fn iq2_xxs(block: &[u8], out: &mut [f32]) {
    let (d, grid) = (half_at(block, 0), Grid::Iq2Xxs);
    for (i, part) in out.chunks_exact_mut(8).enumerate() {
        let group = &block[2 + i / 4 * 8..];
        let word = u32_at(group, 4);
        let scale = d * (0.5 + (word >> 28) as f32) * 0.25;
        let index = usize::from(group[i % 4]);
        put(part, scale, grid.vector(index), even_signs(word >> (7 * (i % 4))));
    }
}

/// `d`, 32 words of nine bits of vector number and seven of signs, eight bytes of two scales for
/// sixteen weights each.
pub(super) fn iq2_xs(block: &[u8], out: &mut [f32]) {
    let (d, grid) = (half_at(block, 0), Grid::Iq2Xs);
    for (i, part) in out.chunks_exact_mut(8).enumerate() {
        let word = u16_at(block, 2 + 2 * i);
        let nibble = block[66 + i / 4] >> (i % 4 / 2 * 4) & 15;
        let scale = d * (0.5 + f32::from(nibble)) * 0.25;
        let index = usize::from(word & 511);
        put(part, scale, grid.vector(index), even_signs(u32::from(word >> 9)));
    }
}

/// `d`, 32 bytes of low vector numbers, 32 bytes of signs, 8 bytes of high number bits (two for each
/// vector), 8 bytes of scales as in IQ2_XS.
pub(super) fn iq2_s(block: &[u8], out: &mut [f32]) {
    let (d, grid) = (half_at(block, 0), Grid::Iq2S);
    for (i, part) in out.chunks_exact_mut(8).enumerate() {
        let high = block[66 + i / 4] >> (2 * (i % 4)) & 3;
        let nibble = block[74 + i / 4] >> (i % 4 / 2 * 4) & 15;
        let scale = d * (0.5 + f32::from(nibble)) * 0.25;
        let index = usize::from(block[2 + i]) | usize::from(high) << 8;
        put(part, scale, grid.vector(index), block[34 + i]);
    }
}

/// `d`, 64 bytes of vector numbers, then for each 32 weights a word of signs and scale as in IQ2_XXS.
pub(super) fn iq3_xxs(block: &[u8], out: &mut [f32]) {
    let (d, grid) = (half_at(block, 0), Grid::Iq3Xxs);
    for (i, part) in out.chunks_exact_mut(4).enumerate() {
        let word = u32_at(block, 66 + i / 8 * 4);
        let scale = d * (0.5 + (word >> 28) as f32) * 0.5;
        let signs = even_signs(word >> (7 * (i % 8 / 2)));
        put(part, scale, grid.vector(usize::from(block[2 + i])), signs >> (4 * (i % 2)));
    }
}

/// `d`, 64 bytes of low vector numbers, 8 bytes of their ninth bits, 32 bytes of signs, 4 bytes of
/// scales, two for 32 weights each.
pub(super) fn iq3_s(block: &[u8], out: &mut [f32]) {
    let (d, grid) = (half_at(block, 0), Grid::Iq3S);
    for (i, part) in out.chunks_exact_mut(4).enumerate() {
        let ninth = block[66 + i / 8] >> (i % 8) & 1;
        let nibble = block[106 + i / 16] >> (i % 16 / 8 * 4) & 15;
        let scale = d * (1.0 + 2.0 * f32::from(nibble));
        let index = usize::from(block[2 + i]) | usize::from(ninth) << 8;
        put(part, scale, grid.vector(index), block[74 + i / 2] >> (4 * (i % 2)));
    }
}

/// `out = d * (vector ± delta)`.
fn put_shifted(out: &mut [f32], d: f32, vector: &[i8], negative: bool) {
    let delta = if negative { -IQ1_DELTA } else { IQ1_DELTA };
    for (value, &element) in out.iter_mut().zip(vector) {
        *value = d * (f32::from(element) + delta);
    }
}

/// `d`, 32 bytes of low vector numbers, then a word for each 32 weights: four times three high
/// number bits, three bits of scale, sign of the offset.
pub(super) fn iq1_s(block: &[u8], out: &mut [f32]) {
    let (d, grid) = (half_at(block, 0), Grid::Iq1S);
    for (i, part) in out.chunks_exact_mut(8).enumerate() {
        let word = u16_at(block, 34 + i / 4 * 2);
        let scale = d * f32::from(2 * (word >> 12 & 7) + 1);
        let index = usize::from(block[2 + i]) | usize::from(word >> (3 * (i % 4)) & 7) << 8;
        put_shifted(part, scale, grid.vector(index), word >> 15 == 1);
    }
}

/// 32 bytes of low vector numbers, 16 bytes with a half for each vector (three high number bits,
/// sign of the offset), four words of four times three bits of scale for sixteen weights each, whose
/// top halves together are `d`.
pub(super) fn iq1_m(block: &[u8], out: &mut [f32]) {
    let grid = Grid::Iq1S;
    let words: [u16; 4] = std::array::from_fn(|i| u16_at(block, 48 + 2 * i));
    let bits = words.iter().enumerate().fold(0, |bits, (i, word)| bits | (word >> 12) << (4 * i));
    let d = half::f16::from_bits(bits).to_f32();
    for (i, part) in out.chunks_exact_mut(8).enumerate() {
        let high = block[32 + i / 2] >> (4 * (i % 2));
        let sixteen = i / 2;
        let scale = d * f32::from(2 * (words[sixteen / 4] >> (3 * (sixteen % 4)) & 7) + 1);
        let index = usize::from(block[i]) | usize::from(high & 7) << 8;
        put_shifted(part, scale, grid.vector(index), high & 8 != 0);
    }
}

fn put_iq4(out: &mut [f32], d: f32, codes: &[u8]) {
    for (j, byte) in codes.iter().enumerate() {
        out[j] = d * f32::from(IQ4_VALUES[usize::from(byte & 15)]);
        out[j + 16] = d * f32::from(IQ4_VALUES[usize::from(byte >> 4)]);
    }
}

/// 32 weights: `d`, 16 bytes of codes, byte `j` for elements `j` and `j + 16`.
pub(super) fn iq4_nl(block: &[u8], out: &mut [f32]) {
    put_iq4(out, half_at(block, 0), &block[2..18]);
}

/// `d`, eight times two high bits of scale (a word), eight low halves of scale, then codes of 32
/// weights each as in IQ4_NL. Scales have an offset of 32.
pub(super) fn iq4_xs(block: &[u8], out: &mut [f32]) {
    let (d, high) = (half_at(block, 0), u16_at(block, 2));
    for (i, part) in out.chunks_exact_mut(32).enumerate() {
        let low = u16::from(block[4 + i / 2] >> (i % 2 * 4) & 15);
        let scale = (low | (high >> (2 * i) & 3) << 4) as f32 - 32.0;
        put_iq4(part, d * scale, &block[8 + 16 * i..24 + 16 * i]);
    }
}
