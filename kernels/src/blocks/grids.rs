//! Codebooks of the IQ formats.
//!
//! A codebook is a set of vectors of 8 (or 4) elements that take 3 (or 8) values. Numbered in base 3
//! (8), least significant element first, the vectors of every codebook stand in rising order; so a
//! codebook is a bit mask over all 3^8 = 6561 (8^4 = 4096) numbers. `grids.bin` holds the six masks
//! one after the other, bit `n % 8` of byte `n / 8` for number `n`, in the order of [`Grid`].
//!
//! The sets are facts of the file format. The file was made by reading the arrays that the Python
//! package `gguf` 0.19 builds (`gguf.quants.IQ1_S.grid` and so on), replacing each element by its
//! index in `grid_map`, checking that the numbers rise, and packing the mask
//! (`numpy.packbits(mask, bitorder="little")`).

use std::sync::OnceLock;

static MASKS: &[u8; 4 * 821 + 2 * 512] = include_bytes!("grids.bin");

/// Which codebook.
#[derive(Clone, Copy, Debug)]
pub enum Grid {
    /// 2048 vectors of 8 elements -1, 0, 1; also IQ1_M.
    Iq1S,
    /// 256 vectors of 8.
    Iq2Xxs,
    /// 512 vectors of 8.
    Iq2Xs,
    /// 1024 vectors of 8.
    Iq2S,
    /// 256 vectors of 4.
    Iq3Xxs,
    /// 512 vectors of 4.
    Iq3S,
}

const TERNARY: &[i8] = &[-1, 0, 1];
const IQ2: &[i8] = &[8, 25, 43];
const IQ3_XXS: &[i8] = &[4, 12, 20, 28, 36, 44, 52, 62];
const IQ3_S: &[i8] = &[1, 3, 5, 7, 9, 11, 13, 15];

impl Grid {
    /// All vectors, one after the other: eight (IQ3: four) elements each.
    pub fn vectors(self) -> &'static [i8] {
        static TABLES: [OnceLock<Vec<i8>>; 6] = [const { OnceLock::new() }; 6];
        TABLES[self as usize].get_or_init(|| self.unpack())
    }

    /// Vector number `index`.
    ///
    /// # Panics
    /// If there is none; the formats' index fields cannot name one.
    pub(crate) fn vector(self, index: usize) -> &'static [i8] {
        let width = self.width();
        &self.vectors()[index * width..(index + 1) * width]
    }

    fn width(self) -> usize {
        match self {
            Self::Iq3Xxs | Self::Iq3S => 4,
            _ => 8,
        }
    }

    fn unpack(self) -> Vec<i8> {
        let (offset, values, count) = match self {
            Self::Iq1S => (0, TERNARY, 2048),
            Self::Iq2Xxs => (821, IQ2, 256),
            Self::Iq2Xs => (2 * 821, IQ2, 512),
            Self::Iq2S => (3 * 821, IQ2, 1024),
            Self::Iq3Xxs => (4 * 821, IQ3_XXS, 256),
            Self::Iq3S => (4 * 821 + 512, IQ3_S, 512),
        };
        let width = self.width();
        let mut table = Vec::with_capacity(count * width);
        for number in 0..values.len().pow(width as u32) {
            if MASKS[offset + number / 8] >> (number % 8) & 1 == 0 {
                continue;
            }
            let mut rest = number;
            for _ in 0..width {
                table.push(values[rest % values.len()]);
                rest /= values.len();
            }
        }
        assert_eq!(table.len(), count * width, "grids.bin does not hold {self:?}");
        table
    }
}

/// Signs of eight elements from seven bits: bit `i` set means element `i` is negative, the eighth
/// makes the number of negative elements even.
pub(crate) fn even_signs(seven: u32) -> u8 {
    let seven = (seven & 127) as u8;
    seven | ((seven.count_ones() as u8 & 1) << 7)
}
