//! Blocks taken apart into codes and scales.
//!
//! The functions mirror [`crate::blocks`], which defines the formats; a test holds
//! `scale * (code - offset) (± minimum)` against it for every format.

use trefoil_graph::BlockType;

use crate::blocks::{
    E2M1_DOUBLED, Grid, IQ4_VALUES, even_signs, half_at, half_e8m0, half_ue4m3, scales_and_mins,
    signed_scales, u16_at, u32_at,
};

/// Takes one block of a [`super::formats::Scaling::Single`] format apart: codes in order, one scale
/// a group, one minimum for each 32 weights.
pub(super) type UnpackSingle = fn(&[u8], &mut [u8], &mut [f32], &mut [f32]);

/// Scales of one block of a [`super::formats::Scaling::Super`] format.
#[derive(Clone, Debug, Default)]
pub(super) struct SuperScales {
    /// Of the whole block.
    pub(super) scale: f32,
    /// Of the whole block's minimums.
    pub(super) min_scale: f32,
    /// Whole factors of the groups.
    pub(super) scales: [i32; 16],
    /// Whole factors of the groups' minimums.
    pub(super) mins: [i32; 16],
}

/// Takes one block of 256 apart.
pub(super) type UnpackSuper = fn(&[u8], &mut [u8; 256], &mut SuperScales);

/// The function for a format with scaling `Single`.
pub(super) fn single(block: BlockType) -> Option<UnpackSingle> {
    Some(match block {
        BlockType::Q4_0 => |b, codes, scales, _| {
            scales[0] = half_at(b, 0);
            low_high(&b[2..18], codes, |q| q);
        },
        BlockType::Q4_1 => |b, codes, scales, mins| {
            (scales[0], mins[0]) = (half_at(b, 0), half_at(b, 2));
            low_high(&b[4..20], codes, |q| q);
        },
        BlockType::Q5_0 => |b, codes, scales, _| {
            scales[0] = half_at(b, 0);
            low_high(&b[6..22], codes, |q| q);
            add_fifth(u32_at(b, 2), codes);
        },
        BlockType::Q5_1 => |b, codes, scales, mins| {
            (scales[0], mins[0]) = (half_at(b, 0), half_at(b, 2));
            low_high(&b[8..24], codes, |q| q);
            add_fifth(u32_at(b, 4), codes);
        },
        BlockType::Q8_0 => |b, codes, scales, _| {
            scales[0] = half_at(b, 0);
            codes.iter_mut().zip(&b[2..34]).for_each(|(code, q)| *code = q ^ 0x80);
        },
        BlockType::Q8_1 => |b, codes, scales, _| {
            scales[0] = half_at(b, 0);
            codes.iter_mut().zip(&b[4..36]).for_each(|(code, q)| *code = q ^ 0x80);
        },
        BlockType::IQ4_NL => |b, codes, scales, _| {
            scales[0] = half_at(b, 0);
            low_high(&b[2..18], codes, iq4_code);
        },
        BlockType::MXFP4 => |b, codes, scales, _| {
            scales[0] = half_e8m0(b[0]);
            low_high(&b[1..17], codes, e2m1_code);
        },
        BlockType::NVFP4 => |b, codes, scales, _| {
            for (part, scale) in scales.iter_mut().enumerate() {
                *scale = half_ue4m3(b[part]);
                let source = &b[4 + 8 * part..12 + 8 * part];
                low_high(source, &mut codes[16 * part..16 * part + 16], e2m1_code);
            }
        },
        BlockType::Q1_0 => |b, codes, scales, _| {
            scales.fill(half_at(b, 0));
            let bit = |i: usize| (b[2 + i / 8] >> (i % 8)) & 1;
            codes.iter_mut().enumerate().for_each(|(i, code)| *code = 2 * bit(i));
        },
        BlockType::Q2_0 => |b, codes, scales, _| {
            scales.fill(half_at(b, 0));
            let pair = |i: usize| (b[2 + i / 4] >> (2 * (i % 4))) & 3;
            codes.iter_mut().enumerate().for_each(|(i, code)| *code = pair(i));
        },
        _ => return None,
    })
}

/// Low halves of the bytes, then high halves.
fn low_high(source: &[u8], codes: &mut [u8], code: impl Fn(u8) -> u8) {
    let (low, high) = codes.split_at_mut(source.len());
    for ((byte, low), high) in source.iter().zip(low).zip(high) {
        (*low, *high) = (code(byte & 15), code(byte >> 4));
    }
}

fn add_fifth(bits: u32, codes: &mut [u8]) {
    for (i, code) in codes.iter_mut().enumerate() {
        *code |= (((bits >> i) & 1) as u8) << 4;
    }
}

fn iq4_code(q: u8) -> u8 {
    IQ4_VALUES[usize::from(q)] as u8 ^ 0x80
}

fn e2m1_code(q: u8) -> u8 {
    (E2M1_DOUBLED[usize::from(q)] + 16) as u8
}

/// The function for a format with scaling `Super`.
pub(super) fn super_block(block: BlockType) -> Option<UnpackSuper> {
    Some(match block {
        BlockType::Q2_K => q2_k,
        BlockType::Q3_K => q3_k,
        BlockType::Q4_K => q4_k,
        BlockType::Q5_K => q5_k,
        BlockType::Q6_K => q6_k,
        BlockType::Q8_K => q8_k,
        BlockType::IQ1_S => iq1_s,
        BlockType::IQ1_M => iq1_m,
        BlockType::IQ2_XXS => iq2_xxs,
        BlockType::IQ2_XS => iq2_xs,
        BlockType::IQ2_S => iq2_s,
        BlockType::IQ3_XXS => iq3_xxs,
        BlockType::IQ3_S => iq3_s,
        BlockType::IQ4_XS => iq4_xs,
        BlockType::TQ1_0 => tq1_0,
        BlockType::TQ2_0 => tq2_0,
        _ => return None,
    })
}

/// Two-bit codes of Q2_K, Q3_K, TQ2_0: byte `j` of each 32 holds `j`, `j + 32`, `j + 64`, `j + 96`.
fn two_bits(source: &[u8], codes: &mut [u8; 256]) {
    for (half, source) in source.chunks_exact(32).enumerate() {
        for n in 0..4 {
            let codes = &mut codes[128 * half + 32 * n..][..32];
            for (code, byte) in codes.iter_mut().zip(source) {
                *code = (byte >> (2 * n)) & 3;
            }
        }
    }
}

/// Four-bit codes of Q4_K, Q5_K: byte `j` of each 32 holds `j` and `j + 32`.
fn four_bits(source: &[u8], codes: &mut [u8; 256]) {
    for (source, codes) in source.chunks_exact(32).zip(codes.chunks_exact_mut(64)) {
        low_high(source, codes, |q| q);
    }
}

fn q2_k(b: &[u8], codes: &mut [u8; 256], out: &mut SuperScales) {
    two_bits(&b[16..80], codes);
    (out.scale, out.min_scale) = (half_at(b, 80), half_at(b, 82));
    for (i, byte) in b[..16].iter().enumerate() {
        out.scales[i] = i32::from(byte & 15);
        out.mins[i] = i32::from(byte >> 4);
    }
}

fn q3_k(b: &[u8], codes: &mut [u8; 256], out: &mut SuperScales) {
    two_bits(&b[32..96], codes);
    for (i, part) in codes.chunks_exact_mut(32).enumerate() {
        part.iter_mut().zip(&b[..32]).for_each(|(code, bits)| *code |= ((bits >> i) & 1) << 2);
    }
    out.scale = half_at(b, 108);
    out.scales = signed_scales(&b[96..108]).map(i32::from);
}

fn sixes(b: &[u8], out: &mut SuperScales) {
    (out.scale, out.min_scale) = (half_at(b, 0), half_at(b, 2));
    let (scales, mins) = scales_and_mins(&b[4..16]);
    for i in 0..8 {
        (out.scales[i], out.mins[i]) = (i32::from(scales[i]), i32::from(mins[i]));
    }
}

fn q4_k(b: &[u8], codes: &mut [u8; 256], out: &mut SuperScales) {
    sixes(b, out);
    four_bits(&b[16..144], codes);
}

fn q5_k(b: &[u8], codes: &mut [u8; 256], out: &mut SuperScales) {
    sixes(b, out);
    four_bits(&b[48..176], codes);
    for (i, part) in codes.chunks_exact_mut(32).enumerate() {
        part.iter_mut().zip(&b[16..48]).for_each(|(code, bits)| *code |= ((bits >> i) & 1) << 4);
    }
}

fn q6_k(b: &[u8], codes: &mut [u8; 256], out: &mut SuperScales) {
    let (low, high) = (&b[..128], &b[128..192]);
    for (half, codes) in codes.chunks_exact_mut(128).enumerate() {
        low_high(&low[64 * half..64 * half + 64], codes, |q| q);
        for (n, codes) in codes.chunks_exact_mut(32).enumerate() {
            let high = &high[32 * half..32 * half + 32];
            codes.iter_mut().zip(high).for_each(|(code, h)| *code |= ((h >> (2 * n)) & 3) << 4);
        }
    }
    out.scale = half_at(b, 208);
    for (scale, byte) in out.scales.iter_mut().zip(&b[192..208]) {
        *scale = i32::from(*byte as i8);
    }
}

fn q8_k(b: &[u8], codes: &mut [u8; 256], out: &mut SuperScales) {
    out.scale = f32::from_bits(u32_at(b, 0));
    out.scales = [1; 16];
    codes.iter_mut().zip(&b[4..260]).for_each(|(code, q)| *code = q ^ 0x80);
}

fn tq1_0(b: &[u8], codes: &mut [u8; 256], out: &mut SuperScales) {
    out.scale = half_at(b, 52);
    out.scales = [1; 16];
    let mut done = 0;
    for (from, bytes, digits) in [(0, 32, 5), (32, 16, 5), (48, 4, 4)] {
        let mut power = 1u8;
        for _ in 0..digits {
            for byte in &b[from..from + bytes] {
                codes[done] = ((u16::from(byte.wrapping_mul(power)) * 3) >> 8) as u8;
                done += 1;
            }
            power = power.wrapping_mul(3);
        }
    }
}

fn tq2_0(b: &[u8], codes: &mut [u8; 256], out: &mut SuperScales) {
    out.scale = half_at(b, 64);
    out.scales = [1; 16];
    two_bits(&b[..64], codes);
}

fn iq4_xs(b: &[u8], codes: &mut [u8; 256], out: &mut SuperScales) {
    out.scale = half_at(b, 0);
    let high = u16_at(b, 2);
    for (i, part) in codes.chunks_exact_mut(32).enumerate() {
        let low = u16::from((b[4 + i / 2] >> (i % 2 * 4)) & 15);
        out.scales[i] = i32::from(low | ((high >> (2 * i)) & 3) << 4) - 32;
        low_high(&b[8 + 16 * i..24 + 16 * i], part, iq4_code);
    }
}

/// `vector` with some signs turned, plus `offset`.
fn signed(vector: &[i8], signs: u8, offset: i8, codes: &mut [u8]) {
    for (i, (code, v)) in codes.iter_mut().zip(vector).enumerate() {
        let v = if (signs >> i) & 1 == 1 { -v } else { *v };
        *code = (v + offset) as u8;
    }
}

const IQ_OFFSET: i8 = 64;

fn iq2_xxs(b: &[u8], codes: &mut [u8; 256], out: &mut SuperScales) {
    out.scale = half_at(b, 0) * 0.125;
    for (i, part) in codes.chunks_exact_mut(8).enumerate() {
        let group = &b[2 + i / 4 * 8..];
        let word = u32_at(group, 4);
        out.scales[i / 4] = (2 * (word >> 28) + 1) as i32;
        let vector = Grid::Iq2Xxs.vector(usize::from(group[i % 4]));
        signed(vector, even_signs(word >> (7 * (i % 4))), IQ_OFFSET, part);
    }
}

fn nibble_scale(b: &[u8], at: usize, index: usize) -> i32 {
    2 * i32::from((b[at + index / 2] >> (index % 2 * 4)) & 15) + 1
}

fn iq2_xs(b: &[u8], codes: &mut [u8; 256], out: &mut SuperScales) {
    out.scale = half_at(b, 0) * 0.125;
    for (i, part) in codes.chunks_exact_mut(8).enumerate() {
        let word = u16_at(b, 2 + 2 * i);
        out.scales[i / 2] = nibble_scale(b, 66, i / 2);
        let vector = Grid::Iq2Xs.vector(usize::from(word & 511));
        signed(vector, even_signs(u32::from(word >> 9)), IQ_OFFSET, part);
    }
}

fn iq2_s(b: &[u8], codes: &mut [u8; 256], out: &mut SuperScales) {
    out.scale = half_at(b, 0) * 0.125;
    for (i, part) in codes.chunks_exact_mut(8).enumerate() {
        let high = (b[66 + i / 4] >> (2 * (i % 4))) & 3;
        out.scales[i / 2] = nibble_scale(b, 74, i / 2);
        let vector = Grid::Iq2S.vector(usize::from(b[2 + i]) | usize::from(high) << 8);
        signed(vector, b[34 + i], IQ_OFFSET, part);
    }
}

fn iq3_xxs(b: &[u8], codes: &mut [u8; 256], out: &mut SuperScales) {
    out.scale = half_at(b, 0) * 0.25;
    for (i, part) in codes.chunks_exact_mut(4).enumerate() {
        let word = u32_at(b, 66 + i / 8 * 4);
        out.scales[i / 8] = (2 * (word >> 28) + 1) as i32;
        let signs = even_signs(word >> (7 * (i % 8 / 2))) >> (4 * (i % 2));
        signed(Grid::Iq3Xxs.vector(usize::from(b[2 + i])), signs, IQ_OFFSET, part);
    }
}

fn iq3_s(b: &[u8], codes: &mut [u8; 256], out: &mut SuperScales) {
    out.scale = half_at(b, 0);
    for (i, part) in codes.chunks_exact_mut(4).enumerate() {
        let ninth = (b[66 + i / 8] >> (i % 8)) & 1;
        out.scales[i / 8] = nibble_scale(b, 106, i / 8);
        let vector = Grid::Iq3S.vector(usize::from(b[2 + i]) | usize::from(ninth) << 8);
        signed(vector, b[74 + i / 2] >> (4 * (i % 2)), IQ_OFFSET, part);
    }
}

/// Eighths of IQ1's elements: `8 * element ± 1`, plus 16.
fn eighths(vector: &[i8], negative: bool, codes: &mut [u8]) {
    let delta = if negative { -1 } else { 1 };
    codes.iter_mut().zip(vector).for_each(|(code, v)| *code = (8 * v + delta + 16) as u8);
}

fn iq1_s(b: &[u8], codes: &mut [u8; 256], out: &mut SuperScales) {
    out.scale = half_at(b, 0) * 0.125;
    for (i, part) in codes.chunks_exact_mut(8).enumerate() {
        let word = u16_at(b, 34 + i / 4 * 2);
        out.scales[i / 4] = i32::from(2 * ((word >> 12) & 7) + 1);
        let high = usize::from((word >> (3 * (i % 4))) & 7);
        eighths(Grid::Iq1S.vector(usize::from(b[2 + i]) | high << 8), word >> 15 == 1, part);
    }
}

fn iq1_m(b: &[u8], codes: &mut [u8; 256], out: &mut SuperScales) {
    let words: [u16; 4] = std::array::from_fn(|i| u16_at(b, 48 + 2 * i));
    let bits = words.iter().enumerate().fold(0, |bits, (i, word)| bits | (word >> 12) << (4 * i));
    out.scale = half::f16::from_bits(bits).to_f32() * 0.125;
    for (i, part) in codes.chunks_exact_mut(8).enumerate() {
        let high = b[32 + i / 2] >> (4 * (i % 2));
        let group = i / 2;
        out.scales[group] = i32::from(2 * ((words[group / 4] >> (3 * (group % 4))) & 7) + 1);
        let index = usize::from(b[i]) | usize::from(high & 7) << 8;
        eighths(Grid::Iq1S.vector(index), high & 8 != 0, part);
    }
}
