//! Formats of one or two bits per weight with a half precision scale in front.

use super::half_at;

/// 128 weights, bit `j % 8` of byte `j / 8`: set means `d`, clear means `-d`.
pub(super) fn q1_0(block: &[u8], out: &mut [f32]) {
    let d = half_at(block, 0);
    for (j, value) in out.iter_mut().enumerate() {
        *value = if (block[2 + j / 8] >> (j % 8)) & 1 == 1 { d } else { -d };
    }
}

/// 64 weights, bits `2 * (j % 4)` on of byte `j / 4`: `d * (q - 1)`.
pub(super) fn q2_0(block: &[u8], out: &mut [f32]) {
    let d = half_at(block, 0);
    for (j, value) in out.iter_mut().enumerate() {
        *value = d * (f32::from((block[2 + j / 4] >> (2 * (j % 4))) & 3) - 1.0);
    }
}
