//! Four-bit floating point weights (E2M1) with eight-bit floating point scales.

/// Twice the values of E2M1 (sign, two exponent bits, one mantissa bit): whole numbers. Code 8 is
/// minus zero.
pub(crate) const E2M1_DOUBLED: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// Half of 2^(e - 127): the scale of MXFP4 (E8M0), halved because [`E2M1_DOUBLED`] is doubled.
/// Exponents 0 and 1 give subnormal numbers.
pub(crate) fn half_e8m0(e: u8) -> f32 {
    f32::from_bits(if e < 2 { 0x20_0000 << e } else { u32::from(e - 1) << 23 })
}

/// Half of an unsigned E4M3 number (bias 7; the top bit is not used): the scale of NVFP4. 0x7f, not
/// a number in E4M3, means zero here.
pub(crate) fn half_ue4m3(x: u8) -> f32 {
    if x == 0x7f {
        return 0.0;
    }
    let (exponent, mantissa) = (i32::from(x >> 3 & 15), f32::from(x & 7));
    if exponent == 0 {
        mantissa * 2f32.powi(-10)
    } else {
        (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 8)
    }
}

/// Scale, 16 bytes of codes: byte `j` holds elements `j` (low half) and `j + 16`.
pub(super) fn mxfp4(block: &[u8], out: &mut [f32]) {
    let d = half_e8m0(block[0]);
    for (j, byte) in block[1..17].iter().enumerate() {
        out[j] = d * f32::from(E2M1_DOUBLED[usize::from(byte & 15)]);
        out[j + 16] = d * f32::from(E2M1_DOUBLED[usize::from(byte >> 4)]);
    }
}

/// Four scales, then for each its eight bytes of codes: byte `j` holds elements `j` and `j + 8` of
/// the sixteen.
pub(super) fn nvfp4(block: &[u8], out: &mut [f32]) {
    for (part, values) in out.chunks_exact_mut(16).enumerate() {
        let d = half_ue4m3(block[part]);
        for (j, byte) in block[4 + part * 8..12 + part * 8].iter().enumerate() {
            values[j] = d * f32::from(E2M1_DOUBLED[usize::from(byte & 15)]);
            values[j + 8] = d * f32::from(E2M1_DOUBLED[usize::from(byte >> 4)]);
        }
    }
}
