//! Made-up numbers and weights.

use trefoil_graph::BlockType;
use trefoil_kernels::blocks::{can_encode, encode_row};

/// A generator of bits (xorshift with a multiplication, after Marsaglia and Vigna).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence number `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
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

/// Blocks that decode to about normal numbers of deviation `size`, to be drawn from: encoding a
/// whole model with the search for scales would take minutes.
#[derive(Debug)]
pub struct BlockSource {
    block: BlockType,
    blocks: Vec<u8>,
    random: Random,
}

impl BlockSource {
    /// Blocks of a format that trefoil cannot write hold random bits: enough to measure time.
    pub fn new(block: BlockType, size: f32, seed: u64) -> Self {
        const BLOCKS: usize = 1024;
        let info = block.info();
        let mut random = Random::new(seed);
        let mut blocks = vec![0; BLOCKS * info.bytes];
        if can_encode(block) {
            let values: Vec<f32> =
                (0..BLOCKS * info.elements).map(|_| random.normal() * size).collect();
            encode_row(block, &values, &mut blocks);
        } else {
            blocks.iter_mut().for_each(|byte| *byte = random.bits() as u8);
        }
        Self { block, blocks, random }
    }

    /// Adds blocks of `elements` numbers (a whole number of blocks) to `out`.
    pub fn draw(&mut self, elements: usize, out: &mut Vec<u8>) {
        let info = self.block.info();
        for _ in 0..elements / info.elements {
            let index = self.random.bits() as usize % (self.blocks.len() / info.bytes);
            out.extend_from_slice(&self.blocks[index * info.bytes..(index + 1) * info.bytes]);
        }
    }
}
