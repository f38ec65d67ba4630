//! Made-up numbers and weights.

use half::f16;
use trefoil_graph::BlockType;
use trefoil_kernels::blocks::{can_encode, decode_row, encode_row};

/// A generator of bits (xorshift with a multiplication, after Marsaglia and Vigna).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence number `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        ((u128::from(self.bits()) * end as u128) >> 64) as usize
    }

    /// About normal with deviation 1: a sum of twelve even numbers.
    pub fn normal(&mut self) -> f32 {
        let sum: u64 = (0..12).map(|_| self.bits() >> 40).sum();
        sum as f32 / (1u64 << 24) as f32 - 6.0
    }
}

/// `count` numbers of deviation `size`.
pub fn normal(count: usize, size: f32, seed: u64) -> Vec<f32> {
    let mut random = Random::new(seed);
    (0..count).map(|_| random.normal() * size).collect()
}

/// Blocks that decode to numbers of deviation `size` around 0, made once and drawn from: encoding a
/// whole model would take minutes.
///
/// Where trefoil has no encoder, blocks are random bits with scales that give that deviation.
#[derive(Debug)]
pub struct BlockPool {
    block: BlockType,
    bytes: Vec<u8>,
    /// Bytes that are drawn together: whole blocks.
    unit: usize,
}

/// Fewest bytes drawn together, so that formats of small blocks are not drawn one by one.
const UNIT: usize = 128;
/// About the bytes of a piece.
const PIECE: usize = 1 << 20;

impl BlockPool {
    /// A pool of about `elements` numbers.
    pub fn new(block: BlockType, size: f32, elements: usize, seed: u64) -> Self {
        let info = block.info();
        let unit = UNIT.div_ceil(info.bytes);
        let blocks = elements.div_ceil(info.elements).next_multiple_of(unit).max(unit);
        let mut random = Random::new(seed);
        let mut bytes = vec![0; blocks * info.bytes];
        if can_encode(block) {
            let values: Vec<f32> =
                (0..blocks * info.elements).map(|_| random.normal() * size).collect();
            encode_row(block, &values, &mut bytes);
        } else {
            fill(block, size, &mut bytes, &mut random);
        }
        Self { block, bytes, unit: unit * info.bytes }
    }

    /// Calls `sink` with pieces of about a MiB that are together `elements` numbers (whole blocks),
    /// drawn from the pool so that hardly two rows are equal.
    pub fn pieces<E>(
        &self,
        elements: u64,
        random: &mut Random,
        mut sink: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let (info, unit) = (self.block.info(), self.unit);
        let (units, most) = (self.bytes.len() / unit, PIECE / unit * unit);
        let mut left = elements / info.elements as u64 * info.bytes as u64;
        let mut piece = Vec::with_capacity(most);
        while left > 0 {
            piece.clear();
            let len = left.min(most as u64) as usize;
            while piece.len() < len {
                let first = random.below(units) * unit;
                let end = first + unit.min(len - piece.len());
                piece.extend_from_slice(&self.bytes[first..end]);
            }
            sink(&piece)?;
            left -= len as u64;
        }
        Ok(())
    }

    /// `elements` numbers (whole blocks).
    pub fn draw(&self, elements: u64, random: &mut Random) -> Vec<u8> {
        let mut out = Vec::new();
        let never = self.pieces(elements, random, |piece| {
            out.extend_from_slice(piece);
            Ok::<(), std::convert::Infallible>(())
        });
        match never {
            Ok(()) => out,
        }
    }
}

/// Where a block's half precision scales stand, and what part of the first one each is: a minimum
/// is as far below zero as half of the codes reach above it.
fn scales(block: BlockType) -> &'static [(usize, f32)] {
    match block {
        BlockType::Q4_1 => &[(0, 1.0), (2, -7.5)],
        BlockType::Q5_1 => &[(0, 1.0), (2, -15.5)],
        BlockType::Q2_K => &[(80, 1.0), (82, 1.5)],
        BlockType::Q3_K => &[(108, 1.0)],
        BlockType::Q5_K => &[(0, 1.0), (2, 15.5)],
        BlockType::Q5_0
        | BlockType::IQ4_NL
        | BlockType::IQ4_XS
        | BlockType::IQ3_XXS
        | BlockType::IQ3_S
        | BlockType::IQ2_XXS
        | BlockType::IQ2_XS
        | BlockType::IQ2_S
        | BlockType::IQ1_S => &[(0, 1.0)],
        _ => &[],
    }
}

/// Random bits in blocks of `bytes`, with scales for a deviation of `size` where the format has
/// half precision ones; else bits as they come, which is enough to measure time.
fn fill(block: BlockType, size: f32, bytes: &mut [u8], random: &mut Random) {
    for chunk in bytes.chunks_mut(8) {
        chunk.copy_from_slice(&random.bits().to_le_bytes()[..chunk.len()]);
    }
    let (info, scales) = (block.info(), scales(block));
    let mut values = vec![0.0; info.elements];
    for bytes in bytes.chunks_exact_mut(info.bytes) {
        if block == BlockType::Q2_K {
            // Scales and minimums alike, so that every group of 16 lies around 0.
            bytes[..16].iter_mut().for_each(|both| *both = (*both & 15) * 17);
        }
        if block == BlockType::Q5_K {
            bytes[4..12].iter_mut().for_each(|pair| *pair = 63);
            bytes[12..16].iter_mut().for_each(|pair| *pair = (*pair & 15) * 17);
        }
        let write = |bytes: &mut [u8], unit: f32| {
            for &(at, part) in scales {
                bytes[at..at + 2].copy_from_slice(&f16::from_f32(unit * part).to_le_bytes());
            }
        };
        write(bytes, 1.0);
        decode_row(block, bytes, &mut values);
        let square: f32 = values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32;
        write(bytes, size / square.sqrt().max(1e-3));
    }
}

#[cfg(test)]
mod tests {
    use trefoil_graph::BLOCK_TABLE;

    use super::*;

    #[test]
    fn every_mixtures_blocks_have_the_deviation_wanted() {
        let mut checked = 0;
        for block in BLOCK_TABLE.iter().map(|row| row.block) {
            let scaled = !scales(block).is_empty();
            if !scaled && !can_encode(block) {
                continue;
            }
            let pool = BlockPool::new(block, 0.02, 1 << 15, 3);
            let bytes = pool.draw(1 << 15, &mut Random::new(1));
            let mut values = vec![0.0; 1 << 15];
            decode_row(block, &bytes, &mut values);
            let mean = values.iter().sum::<f32>() / values.len() as f32;
            let square = values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32;
            assert!((square.sqrt() / 0.02 - 1.0).abs() < 0.1, "{block}: {}", square.sqrt());
            assert!(mean.abs() < 0.004, "{block}: {mean}");
            checked += 1;
        }
        assert!(checked >= 18, "{checked}");
    }

    #[test]
    fn pieces_are_as_long_as_asked_and_rows_differ() {
        let pool = BlockPool::new(BlockType::Q8_0, 1.0, 1 << 14, 7);
        let (mut lens, mut all) = (Vec::new(), Vec::new());
        let result = pool.pieces(1 << 20, &mut Random::new(2), |piece| {
            lens.push(piece.len());
            all.extend_from_slice(piece);
            Ok::<_, ()>(())
        });
        assert_eq!(result, Ok(()));
        assert_eq!((lens.len(), all.len()), (2, (1 << 15) * 34));
        let mut rows: Vec<&[u8]> = all.chunks(16 * 34).collect();
        rows.sort_unstable();
        assert!(rows.windows(2).all(|pair| pair[0] != pair[1]), "rows of 512 numbers");
        // Less than what is drawn together.
        assert_eq!(pool.draw(32, &mut Random::new(2)), all[..34]);
    }
}
