//! Codes of block formats as `MatMulNBits` reads them: of four bits or eight, a scale per block, and
//! where the values of a block have a minimum a zero point, which is a number like the scales.

use trefoil_graph::BlockType;
use trefoil_kernels::blocks::{decode_row, scales_and_mins};

/// How codes of a format are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Bits of a code: 4 or 8.
    pub(crate) bits: usize,
    /// Elements that share a scale.
    pub(crate) block: usize,
    /// Has each block a zero point of its own? Else it is the middle of the codes.
    pub(crate) zeros: bool,
}

/// The layout of a format of evenly spaced values; `None` for others, and for those with minimums whose
/// codes have five bits: no provider is known to take zero points that are no whole numbers with codes of
/// eight.
pub(crate) fn layout(block: BlockType) -> Option<Layout> {
    let (bits, block, zeros) = match block {
        BlockType::Q4_0 => (4, 32, false),
        BlockType::Q4_1 | BlockType::Q4_K => (4, 32, true),
        BlockType::Q5_0 | BlockType::Q8_0 => (8, 32, false),
        BlockType::Q6_K => (8, 16, false),
        _ => return None,
    };
    Some(Layout { bits, block, zeros })
}

/// Scale and minimum of each block of [`Layout::block`] elements in one block of the format.
fn scales(block: BlockType, bytes: &[u8]) -> Vec<(f32, f32)> {
    let half = |at: usize| half::f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32();
    match block {
        BlockType::Q4_1 => vec![(half(0), half(2))],
        BlockType::Q4_K => {
            let (scales, mins) = scales_and_mins(&bytes[4..16]);
            let (d, least) = (half(0), half(2));
            let each = scales.iter().zip(mins);
            each.map(|(&scale, min)| (d * f32::from(scale), -(least * f32::from(min)))).collect()
        }
        BlockType::Q6_K => {
            let d = half(208);
            bytes[192..208].iter().map(|&scale| (d * f32::from(scale as i8), 0.0)).collect()
        }
        _ => vec![(half(0), 0.0)],
    }
}

/// Writes one row: codes (two to a byte where they have four bits, the first in the low half), a scale
/// for each block, and a zero point for each where the layout has them.
pub(crate) fn encode(
    format: BlockType,
    layout: Layout,
    row: &[u8],
    values: &mut [f32],
    codes: &mut [u8],
    [each_scale, each_zero]: [&mut dyn FnMut(f32); 2],
) {
    decode_row(format, row, values);
    let info = format.info();
    let stored = row.chunks_exact(info.bytes).flat_map(|bytes| scales(format, bytes));
    let code_bytes = layout.block * layout.bits / 8;
    let blocks = values.chunks_exact(layout.block).zip(codes.chunks_exact_mut(code_bytes));
    let middle = (1 << (layout.bits - 1)) as f32;
    for ((values, codes), (mut scale, min)) in blocks.zip(stored) {
        let mut zero = if layout.zeros { -min / scale } else { middle };
        let code =
            |value: f32| ((value - min) / scale).round() + if layout.zeros { 0.0 } else { middle };
        let mut all = [0u8; 32];
        if scale != 0.0 {
            // Exact: values are whole multiples of the scale, up to rounding.
            all.iter_mut().zip(values).for_each(|(to, &value)| *to = code(value) as u8);
        } else if layout.zeros {
            // All values are the minimum: code 0 stands for one scale above a zero point of -1.
            (scale, zero) = (min, -1.0);
        } else {
            all.fill(middle as u8);
        }
        each_scale(scale);
        if layout.zeros {
            each_zero(zero);
        }
        if layout.bits == 8 {
            codes.copy_from_slice(&all[..layout.block]);
        } else {
            for (byte, pair) in codes.iter_mut().zip(all.chunks_exact(2)) {
                *byte = pair[0] | pair[1] << 4;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use trefoil_kernels::cases::{Random, weight};

    use super::*;

    #[test]
    fn codes_scales_and_zero_points_give_the_values_of_the_file() {
        for format in [
            BlockType::Q4_0,
            BlockType::Q4_1,
            BlockType::Q5_0,
            BlockType::Q8_0,
            BlockType::Q4_K,
            BlockType::Q6_K,
        ] {
            let layout = layout(format).expect("evenly spaced");
            let mut random = Random::new(3);
            let weight = weight(&mut random, "w", format, 8, 512);
            let (mut want, mut scratch) = (vec![0.0; 512], vec![0.0; 512]);
            for row in 0..weight.rows {
                decode_row(format, weight.row(row), &mut want);
                let mut codes = vec![0; 512 * layout.bits / 8];
                let (mut scales, mut zeros) = (Vec::new(), Vec::new());
                let sinks: [&mut dyn FnMut(f32); 2] =
                    [&mut |scale| scales.push(scale), &mut |zero| zeros.push(zero)];
                encode(format, layout, weight.row(row), &mut scratch, &mut codes, sinks);
                for (i, &want) in want.iter().enumerate() {
                    let code = match layout.bits {
                        8 => codes[i],
                        _ => codes[i / 2] >> (i % 2 * 4) & 15,
                    };
                    let middle = (1 << (layout.bits - 1)) as f32;
                    let zero = zeros.get(i / layout.block).copied().unwrap_or(middle);
                    let got = (f32::from(code) - zero) * scales[i / layout.block];
                    assert!((got - want).abs() <= 4e-6, "{format} {i}: {got} for {want}");
                }
            }
        }
    }

    #[test]
    fn a_block_without_scale_keeps_its_minimum() {
        let mut block = vec![0; 20];
        block[2..4].copy_from_slice(&half::f16::from_f32(-0.5).to_le_bytes());
        let layout = layout(BlockType::Q4_1).expect("evenly spaced");
        let (mut values, mut codes) = (vec![0.0; 32], vec![9; 16]);
        let (mut scale, mut zero) = (0.0, 0.0);
        let sinks: [&mut dyn FnMut(f32); 2] = [&mut |s| scale = s, &mut |z| zero = z];
        encode(BlockType::Q4_1, layout, &block, &mut values, &mut codes, sinks);
        assert_eq!((codes, (0.0 - zero) * scale), (vec![0; 16], -0.5));
    }
}
