//! The table of number formats: how many weights a block holds and in how many bytes.
//!
//! Identifiers and sizes are those of the GGUF tensor type field (`general.file_type` is another
//! numbering and is not used to decode anything).

use std::fmt;

/// Layout of a stored tensor's elements. Quantised formats store blocks of weights with their scales.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[allow(missing_docs, non_camel_case_types)] // names are the format's own
pub enum BlockType {
    F32,
    F16,
    BF16,
    F64,
    I8,
    I16,
    I32,
    I64,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q8_1,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    Q8_K,
    IQ1_S,
    IQ1_M,
    IQ2_XXS,
    IQ2_XS,
    IQ2_S,
    IQ3_XXS,
    IQ3_S,
    IQ4_NL,
    IQ4_XS,
    TQ1_0,
    TQ2_0,
    MXFP4,
    NVFP4,
    Q1_0,
    Q2_0,
}

/// One row of the format table.
#[derive(Clone, Copy, Debug)]
pub struct BlockInfo {
    /// The format itself.
    pub block: BlockType,
    /// Identifier in a GGUF tensor record.
    pub gguf_id: u32,
    /// Name as users write it (`Q4_K`).
    pub name: &'static str,
    /// Elements per block.
    pub elements: usize,
    /// Bytes per block.
    pub bytes: usize,
}

macro_rules! table {
    ($($block:ident $id:literal $elements:literal $bytes:literal;)*) => {
        /// Every known format, in the order of the GGUF identifiers.
        pub const TABLE: &[BlockInfo] = &[
            $(BlockInfo {
                block: BlockType::$block,
                gguf_id: $id,
                name: stringify!($block),
                elements: $elements,
                bytes: $bytes,
            },)*
        ];
        impl BlockType {
            /// The format's row in [`TABLE`].
            pub const fn info(self) -> BlockInfo {
                match self {
                    $(Self::$block => BlockInfo {
                        block: self,
                        gguf_id: $id,
                        name: stringify!($block),
                        elements: $elements,
                        bytes: $bytes,
                    },)*
                }
            }
        }
    };
}

table! {
    F32 0 1 4;
    F16 1 1 2;
    Q4_0 2 32 18;
    Q4_1 3 32 20;
    Q5_0 6 32 22;
    Q5_1 7 32 24;
    Q8_0 8 32 34;
    Q8_1 9 32 36;
    Q2_K 10 256 84;
    Q3_K 11 256 110;
    Q4_K 12 256 144;
    Q5_K 13 256 176;
    Q6_K 14 256 210;
    Q8_K 15 256 292;
    IQ2_XXS 16 256 66;
    IQ2_XS 17 256 74;
    IQ3_XXS 18 256 98;
    IQ1_S 19 256 50;
    IQ4_NL 20 32 18;
    IQ3_S 21 256 110;
    IQ2_S 22 256 82;
    IQ4_XS 23 256 136;
    I8 24 1 1;
    I16 25 1 2;
    I32 26 1 4;
    I64 27 1 8;
    F64 28 1 8;
    IQ1_M 29 256 56;
    BF16 30 1 2;
    TQ1_0 34 256 54;
    TQ2_0 35 256 66;
    MXFP4 39 32 17;
    NVFP4 40 64 36;
    Q1_0 41 128 18;
    Q2_0 42 64 18;
}

impl BlockType {
    /// The format with this GGUF identifier, if known.
    pub fn from_gguf(id: u32) -> Option<Self> {
        TABLE.iter().find(|row| row.gguf_id == id).map(|row| row.block)
    }

    /// The format with this name, whatever the case.
    pub fn from_name(name: &str) -> Option<Self> {
        TABLE.iter().find(|row| row.name.eq_ignore_ascii_case(name)).map(|row| row.block)
    }

    /// Name as users write it.
    pub fn name(self) -> &'static str {
        self.info().name
    }

    /// Bytes of a row of `columns` elements; `None` if the row is not a whole number of blocks or
    /// the size overflows.
    pub fn row_bytes(self, columns: u64) -> Option<u64> {
        let info = self.info();
        let per_block = info.elements as u64;
        if !columns.is_multiple_of(per_block) {
            return None;
        }
        (columns / per_block).checked_mul(info.bytes as u64)
    }

    /// Mean bits per weight.
    pub fn bits_per_weight(self) -> f64 {
        let info = self.info();
        info.bytes as f64 * 8.0 / info.elements as f64
    }

    /// Does the format hold plain floating point numbers?
    pub fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::BF16 | Self::F64)
    }

    /// Does the format hold plain integers (no weights of a linear)?
    pub fn is_integer(self) -> bool {
        matches!(self, Self::I8 | Self::I16 | Self::I32 | Self::I64)
    }
}

impl fmt::Display for BlockType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_and_info_agree_and_identifiers_are_unique() {
        for row in TABLE {
            assert_eq!(row.block.info().gguf_id, row.gguf_id);
            assert_eq!(BlockType::from_gguf(row.gguf_id), Some(row.block));
            assert_eq!(BlockType::from_name(&row.name.to_lowercase()), Some(row.block));
        }
    }

    #[test]
    fn row_bytes_refuses_part_blocks_and_overflow() {
        assert_eq!(BlockType::Q4_K.row_bytes(512), Some(288));
        assert_eq!(BlockType::Q4_K.row_bytes(100), None);
        assert_eq!(BlockType::F64.row_bytes(u64::MAX), None);
    }
}
