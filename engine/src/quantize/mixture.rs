//! The usual file types of GGUF models: which tensor of a model gets which number format.
//!
//! A type such as `Q4_K_M` is a mixture: most matrices get its base format, those whose error
//! spreads furthest get more bits. The rules are those by which most published files were made
//! (without an importance matrix).

use std::fmt;
use std::str::FromStr;

use serde::Serialize;
use trefoil_graph::BlockType;

use super::recipe::layer_and_role;

/// A file type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[allow(missing_docs, non_camel_case_types)] // names are the file types' own
pub enum Mixture {
    F32,
    F16,
    BF16,
    Q8_0,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q2_K,
    Q3_K_S,
    Q3_K_M,
    Q3_K_L,
    Q4_K_S,
    Q4_K_M,
    Q5_K_S,
    Q5_K_M,
    Q6_K,
    IQ4_NL,
    IQ4_XS,
}

/// What the choice for a tensor depends on besides its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MixtureFacts {
    /// Layers of the model.
    pub layers: u64,
    /// Query heads for each head of keys and values.
    pub heads_per_kv: u64,
    /// Does the token table also make the logits?
    pub tied: bool,
}

impl Mixture {
    /// All of them, with their names, base formats and numbers in `general.file_type`.
    const TABLE: [(Self, &'static str, BlockType, u32); 19] = [
        (Self::F32, "F32", BlockType::F32, 0),
        (Self::F16, "F16", BlockType::F16, 1),
        (Self::BF16, "BF16", BlockType::BF16, 32),
        (Self::Q8_0, "Q8_0", BlockType::Q8_0, 7),
        (Self::Q4_0, "Q4_0", BlockType::Q4_0, 2),
        (Self::Q4_1, "Q4_1", BlockType::Q4_1, 3),
        (Self::Q5_0, "Q5_0", BlockType::Q5_0, 8),
        (Self::Q5_1, "Q5_1", BlockType::Q5_1, 9),
        (Self::Q2_K, "Q2_K", BlockType::Q2_K, 10),
        (Self::Q3_K_S, "Q3_K_S", BlockType::Q3_K, 11),
        (Self::Q3_K_M, "Q3_K_M", BlockType::Q3_K, 12),
        (Self::Q3_K_L, "Q3_K_L", BlockType::Q3_K, 13),
        (Self::Q4_K_S, "Q4_K_S", BlockType::Q4_K, 14),
        (Self::Q4_K_M, "Q4_K_M", BlockType::Q4_K, 15),
        (Self::Q5_K_S, "Q5_K_S", BlockType::Q5_K, 16),
        (Self::Q5_K_M, "Q5_K_M", BlockType::Q5_K, 17),
        (Self::Q6_K, "Q6_K", BlockType::Q6_K, 18),
        (Self::IQ4_NL, "IQ4_NL", BlockType::IQ4_NL, 25),
        (Self::IQ4_XS, "IQ4_XS", BlockType::IQ4_XS, 30),
    ];

    /// Every file type.
    pub fn all() -> impl Iterator<Item = Self> {
        Self::TABLE.iter().map(|row| row.0)
    }

    fn row(self) -> &'static (Self, &'static str, BlockType, u32) {
        let row = Self::TABLE.iter().find(|row| row.0 == self);
        row.expect("the table has every file type")
    }

    /// Name as users write it.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// Format of most matrices.
    pub fn block(self) -> BlockType {
        self.row().2
    }

    /// Number in `general.file_type` (GGUF specification).
    pub fn file_type(self) -> u32 {
        self.row().3
    }

    /// Format wanted for the matrix `name`.
    pub fn wanted(self, name: &str, facts: MixtureFacts) -> BlockType {
        let base = self.block();
        if base.is_float() {
            return base;
        }
        match layer_and_role(name) {
            (None, "output") => self.of_logits(),
            (None, "token_embd") if facts.tied => self.of_logits(),
            (Some(layer), role) => {
                let role = role.split('.').next().unwrap_or(role);
                self.in_layer(role, layer, facts).unwrap_or(base)
            }
            _ => base,
        }
    }

    /// Format of the table that makes the logits.
    fn of_logits(self) -> BlockType {
        if self == Self::Q8_0 { BlockType::Q8_0 } else { BlockType::Q6_K }
    }

    /// Format of a layer's matrix where it is not the base one.
    fn in_layer(self, role: &str, layer: u64, facts: MixtureFacts) -> Option<BlockType> {
        use BlockType::{Q3_K, Q4_K, Q5_K, Q6_K};
        let MixtureFacts { layers, heads_per_kv, .. } = facts;
        let finer = in_finer_half(layer, layers);
        let shared = heads_per_kv >= 4;
        Some(match (role, self) {
            ("attn_v", Self::Q2_K) if shared => Q4_K,
            ("attn_v", Self::Q2_K) => Q3_K,
            ("attn_v", Self::Q3_K_M) if layer < 2 => Q5_K,
            ("attn_v", Self::Q3_K_M) => Q4_K,
            ("attn_v", Self::Q3_K_L) => Q5_K,
            ("attn_v", Self::IQ4_NL | Self::IQ4_XS) if shared => Q5_K,
            ("attn_v", Self::Q4_K_S) if layer < 4 => Q5_K,
            ("attn_v" | "ffn_down" | "ffn_down_exps", Self::Q4_K_M | Self::Q5_K_M) if finer => Q6_K,
            ("ffn_down" | "ffn_down_exps", Self::Q2_K) => Q3_K,
            ("ffn_down" | "ffn_down_exps", Self::Q3_K_M) if layer < layers / 16 => Q5_K,
            ("ffn_down" | "ffn_down_exps", Self::Q3_K_M) => Q4_K,
            ("ffn_down" | "ffn_down_exps", Self::Q3_K_L) => Q5_K,
            ("ffn_down" | "ffn_down_exps", Self::Q4_K_S | Self::IQ4_NL | Self::IQ4_XS)
                if layer < layers / 8 =>
            {
                Q5_K
            }
            ("attn_output", Self::Q2_K) => Q3_K,
            ("attn_output", Self::Q3_K_M) => Q4_K,
            ("attn_output", Self::Q3_K_L) => Q5_K,
            _ => return None,
        })
    }
}

impl fmt::Display for Mixture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Not the name of a [`Mixture`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "file type {got:?} is not known; expected one of {}",
    Mixture::all().map(Mixture::name).collect::<Vec<_>>().join(", ")
)]
pub struct UnknownMixture {
    /// What was given.
    pub got: String,
}

impl FromStr for Mixture {
    type Err = UnknownMixture;

    /// The file type of this name, whatever the case.
    fn from_str(name: &str) -> Result<Self, UnknownMixture> {
        let found = Self::all().find(|mixture| mixture.name().eq_ignore_ascii_case(name));
        found.ok_or_else(|| UnknownMixture { got: name.to_owned() })
    }
}

/// The first eighth of the layers, the last (at least one layer), and every third between.
fn in_finer_half(layer: u64, layers: u64) -> bool {
    let eighth = layers / 8;
    let last_eighth = u128::from(layer) >= u128::from(layers) * 7 / 8;
    layer < eighth || last_eighth || (layer - eighth) % 3 == 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finer_half_is_the_ends_and_every_third() {
        let finer = |layers| (0..layers).filter(|&n| in_finer_half(n, layers)).collect::<Vec<_>>();
        assert_eq!(finer(8), [0, 3, 6, 7]);
        assert_eq!(finer(1), [0]);
        assert_eq!(finer(4), [2, 3]);
        assert_eq!(finer(16), [0, 1, 4, 7, 10, 13, 14, 15]);
        assert_eq!(finer(32), [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]);
        assert!(in_finer_half(u64::MAX, u64::MAX), "no overflow");
    }

    #[test]
    fn mixtures_are_known_by_name_and_number() {
        let mut numbers = Vec::new();
        for mixture in Mixture::all() {
            assert_eq!(mixture.name().to_lowercase().parse(), Ok(mixture));
            numbers.push(mixture.file_type());
        }
        numbers.sort_unstable();
        assert!(numbers.windows(2).all(|pair| pair[0] != pair[1]), "{numbers:?}");
        let message = "Q9_K".parse::<Mixture>().unwrap_err().to_string();
        assert!(message.contains("Q9_K") && message.contains("IQ4_XS"), "{message}");
    }

    #[test]
    fn mixtures_spend_bits_where_they_matter() {
        let facts = MixtureFacts { layers: 32, heads_per_kv: 4, tied: false };
        let check = |mixture: Mixture, name: &str, want: BlockType| {
            assert_eq!(mixture.wanted(name, facts), want, "{mixture} {name}");
        };
        check(Mixture::Q4_0, "output.weight", BlockType::Q6_K);
        check(Mixture::Q8_0, "output.weight", BlockType::Q8_0);
        check(Mixture::F16, "output.weight", BlockType::F16);
        check(Mixture::Q4_0, "token_embd.weight", BlockType::Q4_0);
        check(Mixture::Q4_K_M, "blk.0.ffn_down.weight", BlockType::Q6_K);
        check(Mixture::Q4_K_M, "blk.4.ffn_down_exps.weight", BlockType::Q4_K);
        check(Mixture::Q5_K_M, "blk.6.ffn_down_exps.3.weight", BlockType::Q6_K);
        check(Mixture::Q3_K_M, "blk.1.attn_v.weight", BlockType::Q5_K);
        check(Mixture::Q3_K_M, "blk.2.ffn_down.weight", BlockType::Q4_K);
        check(Mixture::Q2_K, "blk.9.attn_v.weight", BlockType::Q4_K);
        check(Mixture::Q2_K, "blk.9.attn_output.weight", BlockType::Q3_K);
        check(Mixture::IQ4_XS, "blk.9.attn_v.weight", BlockType::Q5_K);
        check(Mixture::IQ4_NL, "blk.9.ffn_up.weight", BlockType::IQ4_NL);
        let tied = MixtureFacts { tied: true, ..facts };
        assert_eq!(Mixture::Q4_0.wanted("token_embd.weight", tied), BlockType::Q6_K);
    }
}
