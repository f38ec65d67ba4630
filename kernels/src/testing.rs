//! Made-up numbers and weights for tests.

use trefoil_graph::BlockType;

/// A multiplicative generator; the high bits are good enough for tests.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(2).wrapping_add(1))
    }

    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^ (mixed >> 32)
    }

    /// Between 0 and 1, neither of them.
    pub(crate) fn unit(&mut self) -> f64 {
        ((self.bits() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    /// Below `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.unit() * end as f64) as usize
    }
}

/// Standard normal numbers (Box and Muller).
pub(crate) fn normal(n: usize, seed: u64) -> Vec<f32> {
    let mut random = Random::new(seed);
    (0..n)
        .map(|_| {
            let radius = (-2.0 * random.unit().ln()).sqrt();
            (radius * (std::f64::consts::TAU * random.unit()).cos()) as f32
        })
        .collect()
}

/// sum((want - got)²) / sum(want²).
pub(crate) fn nmse(want: &[f32], got: &[f32]) -> f64 {
    let wide: Vec<f64> = want.iter().map(|v| f64::from(*v)).collect();
    nmse_wide(&wide, got)
}

/// The same against exact numbers.
pub(crate) fn nmse_wide(want: &[f64], got: &[f32]) -> f64 {
    assert_eq!(want.len(), got.len());
    let error: f64 = want.iter().zip(got).map(|(a, b)| (a - f64::from(*b)).powi(2)).sum();
    error / want.iter().map(|a| a.powi(2)).sum::<f64>()
}

/// Random rows of a format: random bits, with scales of about 1/64 so that all is finite.
pub(crate) fn random_rows(block: BlockType, elements: usize, seed: u64) -> Vec<u8> {
    use BlockType::*;
    let mut random = Random::new(seed);
    let info = block.info();
    let mut bytes: Vec<u8> =
        (0..elements / info.elements * info.bytes).map(|_| random.bits() as u8).collect();
    let halves: &[usize] = match block {
        F16 | Q4_0 | Q5_0 | Q8_0 | IQ1_S | IQ2_XXS | IQ2_XS | IQ2_S | IQ3_XXS | IQ3_S | IQ4_NL
        | IQ4_XS | Q1_0 | Q2_0 => &[0],
        Q4_1 | Q5_1 | Q8_1 | Q4_K | Q5_K => &[0, 2],
        Q2_K => &[80, 82],
        Q3_K => &[108],
        Q6_K => &[208],
        TQ1_0 => &[52],
        TQ2_0 => &[64],
        _ => &[],
    };
    for b in bytes.chunks_exact_mut(info.bytes) {
        let mut scale = || ((random.unit() + 0.5) / 64.0) as f32;
        for &at in halves {
            b[at..at + 2].copy_from_slice(&half::f16::from_f32(scale()).to_le_bytes());
        }
        match block {
            F32 => b.copy_from_slice(&(scale() - 1.0 / 64.0).to_le_bytes()),
            BF16 => b.copy_from_slice(&half::bf16::from_f32(scale() - 1.0 / 64.0).to_le_bytes()),
            F64 => b.copy_from_slice(&f64::from(scale() - 1.0 / 64.0).to_le_bytes()),
            Q8_K => b[..4].copy_from_slice(&scale().to_le_bytes()),
            MXFP4 => b[0] = 118 + b[0] % 8,
            NVFP4 => b[..4].iter_mut().for_each(|e| *e = 8 + *e % 32),
            IQ1_M => {
                let bits = half::f16::from_f32(scale()).to_bits();
                for n in 0..4 {
                    let high = &mut b[49 + 2 * n];
                    *high = (*high & 15) | (((bits >> (4 * n)) & 15) as u8) << 4;
                }
            }
            _ => {}
        }
    }
    bytes
}
