//! Making blocks from f32 rows: the formats that trefoil writes itself.
//!
//! Every encoder takes any bits: not-a-number becomes 0, infinities the largest finite number, and
//! scales beyond half precision saturate, so that a decoded row is always finite. A row that was
//! decoded from blocks written here encodes to the same values again in F16, BF16, Q8_0 and Q4_0.

use half::{bf16, f16};
use trefoil_graph::BlockType;

use super::encode_k;

/// Can [`encode_row`] write this format?
pub fn can_encode(block: BlockType) -> bool {
    encoder(block).is_some()
}

/// Makes one block.
type Encoder = fn(&[f32], &mut [u8]);

fn encoder(block: BlockType) -> Option<Encoder> {
    Some(match block {
        BlockType::F32 => f32_block,
        BlockType::F16 => f16_block,
        BlockType::BF16 => bf16_block,
        BlockType::Q8_0 => q8_0,
        BlockType::Q4_0 => q4_0,
        BlockType::Q4_K => encode_k::q4_k,
        BlockType::Q6_K => encode_k::q6_k,
        _ => return None,
    })
}

/// Encodes one row (a whole number of blocks) with the least squared error that a search over scales
/// finds.
///
/// # Panics
/// If [`can_encode`] says no, or `out` is not exactly `row.len()` elements of `block`.
pub fn encode_row(block: BlockType, row: &[f32], out: &mut [u8]) {
    let info = block.info();
    assert_eq!(
        block.row_bytes(row.len() as u64),
        Some(out.len() as u64),
        "encode_row: {} bytes for {} elements of {block}",
        out.len(),
        row.len(),
    );
    let Some(encode) = encoder(block) else {
        panic!("encode_row: no encoder for {block}; ask can_encode first");
    };
    for (source, target) in row.chunks_exact(info.elements).zip(out.chunks_exact_mut(info.bytes)) {
        encode(source, target);
    }
}

/// `v` made finite.
pub(super) fn finite(v: f32) -> f32 {
    if v.is_nan() { 0.0 } else { v.clamp(f32::MIN, f32::MAX) }
}

/// The half precision number nearest to `v`, saturating.
pub(super) fn half_scale(v: f64) -> f16 {
    let limit = f64::from(f16::MAX.to_f32());
    f16::from_f64(if v.is_nan() { 0.0 } else { v.clamp(-limit, limit) })
}

fn f32_block(values: &[f32], out: &mut [u8]) {
    out.copy_from_slice(&finite(values[0]).to_le_bytes());
}

fn f16_block(values: &[f32], out: &mut [u8]) {
    let limit = f16::MAX.to_f32();
    out.copy_from_slice(&f16::from_f32(finite(values[0]).clamp(-limit, limit)).to_le_bytes());
}

fn bf16_block(values: &[f32], out: &mut [u8]) {
    let limit = bf16::MAX.to_f32();
    out.copy_from_slice(&bf16::from_f32(finite(values[0]).clamp(-limit, limit)).to_le_bytes());
}

/// Element of largest magnitude, with its sign.
pub(super) fn peak(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |peak: f64, &v| if v.abs() > peak.abs() { v } else { peak })
}

/// Nearest code to `v / scale` in `low..=high`; 0 where the scale is 0.
pub(super) fn code(v: f64, scale: f64, low: i32, high: i32) -> i32 {
    if scale == 0.0 { 0 } else { (v / scale).round().clamp(f64::from(low), f64::from(high)) as i32 }
}

fn widened<const N: usize>(values: &[f32]) -> [f64; N] {
    std::array::from_fn(|i| f64::from(finite(values[i])))
}

fn q8_0(values: &[f32], out: &mut [u8]) {
    let values: [f64; 32] = widened(values);
    let d = half_scale(peak(&values).abs() / 127.0);
    out[..2].copy_from_slice(&d.to_le_bytes());
    for (byte, &v) in out[2..].iter_mut().zip(&values) {
        *byte = code(v, d.to_f64(), -127, 127) as i8 as u8;
    }
}

fn q4_0(values: &[f32], out: &mut [u8]) {
    let values: [f64; 32] = widened(values);
    // A block that is exactly some scale times codes has its peak on one of these levels (smaller
    // levels are found as their multiples), so the search contains the exact answer.
    let levels = [-8.0, 8.0, -7.0, 7.0, -6.0, 6.0, -5.0, 5.0, -4.0, 4.0];
    let d = best_scale(&values, -8, 7, levels.iter().map(|level| peak(&values) / level));
    let d = half_scale(d);
    out[..2].copy_from_slice(&d.to_le_bytes());
    let codes: [u8; 32] = std::array::from_fn(|i| (code(values[i], d.to_f64(), -8, 7) + 8) as u8);
    for j in 0..16 {
        out[2 + j] = codes[j] | codes[j + 16] << 4;
    }
}

/// The scale, half precision, with the least squared error over codes `low..=high`, among the
/// candidates and what two rounds of least squares make of each.
fn best_scale(values: &[f64], low: i32, high: i32, candidates: impl Iterator<Item = f64>) -> f64 {
    let (mut best, mut least) = (0.0, f64::INFINITY);
    for candidate in candidates {
        let mut scale = half_scale(candidate).to_f64();
        for _ in 0..3 {
            let (mut error, mut xq, mut qq) = (0.0, 0.0, 0.0);
            for &v in values {
                let q = f64::from(code(v, scale, low, high));
                error += (v - scale * q).powi(2);
                xq += v * q;
                qq += q * q;
            }
            if error < least {
                (best, least) = (scale, error);
            }
            if qq == 0.0 {
                break;
            }
            scale = half_scale(xq / qq).to_f64();
        }
    }
    best
}
