//! Formats of 32 weights with one half precision scale, some with a minimum.
//!
//! Four-bit codes are packed so that byte `j` holds element `j` (low half) and `j + 16` (high half);
//! fifth bits are a 32-bit mask, bit `j` for element `j`.

use super::{half_at, u32_at};

fn low_high(codes: &[u8], mut put: impl FnMut(usize, u8)) {
    for (j, &byte) in codes.iter().enumerate() {
        put(j, byte & 15);
        put(j + 16, byte >> 4);
    }
}

/// `d`, 16 bytes of codes: `d * (q - 8)`.
pub(super) fn q4_0(block: &[u8], out: &mut [f32]) {
    let d = half_at(block, 0);
    low_high(&block[2..18], |j, q| out[j] = d * (f32::from(q) - 8.0));
}

/// `d`, `m`, codes: `d * q + m`.
pub(super) fn q4_1(block: &[u8], out: &mut [f32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    low_high(&block[4..20], |j, q| out[j] = d * f32::from(q) + m);
}

/// `d`, fifth bits, codes: `d * (q - 16)`.
pub(super) fn q5_0(block: &[u8], out: &mut [f32]) {
    let (d, fifth) = (half_at(block, 0), u32_at(block, 2));
    low_high(&block[6..22], |j, q| {
        let q = q | (((fifth >> j) & 1) as u8) << 4;
        out[j] = d * (f32::from(q) - 16.0);
    });
}

/// `d`, `m`, fifth bits, codes: `d * q + m`.
pub(super) fn q5_1(block: &[u8], out: &mut [f32]) {
    let (d, m, fifth) = (half_at(block, 0), half_at(block, 2), u32_at(block, 4));
    low_high(&block[8..24], |j, q| {
        let q = q | (((fifth >> j) & 1) as u8) << 4;
        out[j] = d * f32::from(q) + m;
    });
}

/// `d`, 32 signed bytes: `d * q`.
pub(super) fn q8_0(block: &[u8], out: &mut [f32]) {
    let d = half_at(block, 0);
    for (value, &q) in out.iter_mut().zip(&block[2..34]) {
        *value = d * f32::from(q as i8);
    }
}

/// `d`, `d * sum of q` (a help for integer products, no part of the values), 32 signed bytes.
pub(super) fn q8_1(block: &[u8], out: &mut [f32]) {
    let d = half_at(block, 0);
    for (value, &q) in out.iter_mut().zip(&block[4..36]) {
        *value = d * f32::from(q as i8);
    }
}
