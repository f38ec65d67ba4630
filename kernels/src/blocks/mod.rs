//! The number formats of weights: what every block type means, as plain portable code.
//!
//! [`decode_row`] is the definition that the judge and every faster kernel are held against. A row
//! is a whole number of blocks next to each other; all numbers are little endian.
//!
//! Where a product `scale * value` appears, it is exact in f32 unless the scale is subnormal: a
//! half precision scale has 11 significant bits, the integer factors of every format have at most
//! 13 together. So the order of the factors does not matter, and a fused multiply-add gives the
//! same value as the two roundings of `scale * value - minimum` here.

mod bits;
mod encode;
mod encode_k;
mod float;
mod fp4;
mod grids;
mod iq;
mod k_quants;
mod legacy;
mod ternary;
#[cfg(test)]
mod tests;

pub use encode::{can_encode, encode_row};
pub(crate) use fp4::{E2M1_DOUBLED, half_e8m0, half_ue4m3};
pub use grids::Grid;
pub(crate) use grids::even_signs;
pub use iq::IQ4_VALUES;
pub use k_quants::scales_and_mins;
pub(crate) use k_quants::signed_scales;

use trefoil_graph::BlockType;

/// Decodes one row (any whole number of blocks) to f32.
///
/// # Panics
/// If `bytes` is not exactly `out.len()` elements of `block`. Shapes are checked when a model is
/// lowered ([`trefoil_graph::Weight::new`]); bytes themselves may be anything, every bit pattern
/// decodes to something (possibly not finite).
pub fn decode_row(block: BlockType, bytes: &[u8], out: &mut [f32]) {
    let info = block.info();
    assert_eq!(
        block.row_bytes(out.len() as u64),
        Some(bytes.len() as u64),
        "decode_row: {} bytes for {} elements of {block}",
        bytes.len(),
        out.len(),
    );
    let decode: fn(&[u8], &mut [f32]) = match block {
        BlockType::F32 => float::f32,
        BlockType::F16 => float::f16,
        BlockType::BF16 => float::bf16,
        BlockType::F64 => float::f64,
        BlockType::I8 => float::i8,
        BlockType::I16 => float::i16,
        BlockType::I32 => float::i32,
        BlockType::I64 => float::i64,
        BlockType::Q4_0 => legacy::q4_0,
        BlockType::Q4_1 => legacy::q4_1,
        BlockType::Q5_0 => legacy::q5_0,
        BlockType::Q5_1 => legacy::q5_1,
        BlockType::Q8_0 => legacy::q8_0,
        BlockType::Q8_1 => legacy::q8_1,
        BlockType::Q2_K => k_quants::q2_k,
        BlockType::Q3_K => k_quants::q3_k,
        BlockType::Q4_K => k_quants::q4_k,
        BlockType::Q5_K => k_quants::q5_k,
        BlockType::Q6_K => k_quants::q6_k,
        BlockType::Q8_K => k_quants::q8_k,
        BlockType::IQ1_S => iq::iq1_s,
        BlockType::IQ1_M => iq::iq1_m,
        BlockType::IQ2_XXS => iq::iq2_xxs,
        BlockType::IQ2_XS => iq::iq2_xs,
        BlockType::IQ2_S => iq::iq2_s,
        BlockType::IQ3_XXS => iq::iq3_xxs,
        BlockType::IQ3_S => iq::iq3_s,
        BlockType::IQ4_NL => iq::iq4_nl,
        BlockType::IQ4_XS => iq::iq4_xs,
        BlockType::TQ1_0 => ternary::tq1_0,
        BlockType::TQ2_0 => ternary::tq2_0,
        BlockType::MXFP4 => fp4::mxfp4,
        BlockType::NVFP4 => fp4::nvfp4,
        BlockType::Q1_0 => bits::q1_0,
        BlockType::Q2_0 => bits::q2_0,
    };
    for (source, target) in bytes.chunks_exact(info.bytes).zip(out.chunks_exact_mut(info.elements))
    {
        decode(source, target);
    }
}

/// The half precision number at `at`, widened.
pub(crate) fn half_at(bytes: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// The 16-bit number at `at`.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// The 32-bit number at `at`.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
