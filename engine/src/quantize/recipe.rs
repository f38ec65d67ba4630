//! Which tensor gets which type.
//!
//! Matrices get the target's type. These stay F32, being small and touching every value that passes:
//! vectors (norms, biases), tensors of under [`SMALL`] elements, routers of experts, tables of
//! positions and segments, short convolutions, rotary factors. Integers stay as they are. Rows that
//! are no whole number of the target's blocks get Q8_0 if they are whole blocks of 32, else F16.
//!
//! The mix `Q4_K_M` ([`Mixture`]) spends more bits (Q6_K) where an error spreads furthest:
//! - on the table that makes the logits: `output`, or `token_embd` if that serves for both;
//! - on `attn_v` and `ffn_down` in half of the layers. Nothing after these two matrices smooths
//!   their error: values are summed as they are, and what `ffn_down` makes is added to the residual
//!   stream. The first and the last eighth of the layers are in that half, for what they make is
//!   used by all layers, or goes almost straight to the logits, and every third layer between, so
//!   that no long run of layers adds up the coarser error.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;
use trefoil_graph::{BlockType, ModelFile, Tensor};

use super::mixture::{Mixture, MixtureFacts};

/// Tensors of fewer elements stay F32.
pub const SMALL: u64 = 4096;

/// What a model is quantised to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[allow(missing_docs, non_camel_case_types)] // names are the formats' own
pub enum Target {
    F16,
    BF16,
    Q8_0,
    Q4_0,
    Q4_K,
    Q6_K,
    /// Q4_K, with Q6_K where it matters most.
    Q4_K_M,
}

impl Target {
    /// All targets, by falling size.
    pub const ALL: [Self; 7] =
        [Self::F16, Self::BF16, Self::Q8_0, Self::Q6_K, Self::Q4_K_M, Self::Q4_K, Self::Q4_0];

    /// Name as users write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q4_K_M => "Q4_K_M",
            _ => self.block().name(),
        }
    }

    /// Type of most matrices.
    pub fn block(self) -> BlockType {
        match self {
            Self::F16 => BlockType::F16,
            Self::BF16 => BlockType::BF16,
            Self::Q8_0 => BlockType::Q8_0,
            Self::Q4_0 => BlockType::Q4_0,
            Self::Q4_K | Self::Q4_K_M => BlockType::Q4_K,
            Self::Q6_K => BlockType::Q6_K,
        }
    }

    /// Number in `general.file_type` (GGUF specification). It has none for Q4_K alone: that of the
    /// nearest mix, Q4_K_S, is used.
    pub(super) fn file_type(self) -> u32 {
        match self {
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q8_0 => 7,
            Self::Q4_K => 14,
            Self::Q4_K_M => 15,
            Self::Q6_K => 18,
            Self::BF16 => 32,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Not the name of a [`Target`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("type {got:?} cannot be written; expected one of {}", Target::ALL.map(Target::name).join(", "))]
pub struct UnknownTarget {
    /// What was given.
    pub got: String,
}

impl FromStr for Target {
    type Err = UnknownTarget;

    /// The target of this name, whatever the case.
    fn from_str(name: &str) -> Result<Self, UnknownTarget> {
        let found = Self::ALL.into_iter().find(|target| target.name().eq_ignore_ascii_case(name));
        found.ok_or_else(|| UnknownTarget { got: name.to_owned() })
    }
}

/// A tensor that could not get the type wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fallback {
    /// The tensor.
    pub tensor: String,
    /// Elements of a row.
    pub columns: u64,
    /// Type wanted, whose blocks do not fill a row.
    pub wanted: BlockType,
    /// Type given.
    pub got: BlockType,
}

/// The types of one model's tensors.
pub(super) struct Recipe {
    to: Target,
    facts: MixtureFacts,
}

/// The type of one tensor, and the type wanted if that is another.
pub(crate) struct Choice {
    pub(crate) block: BlockType,
    pub(crate) wanted: Option<BlockType>,
}

impl Choice {
    /// The type of the tensor `name` of `shape` (outermost first) where matrices want `wanted`.
    pub(crate) fn new(name: &str, shape: &[u64], wanted: impl FnOnce() -> BlockType) -> Self {
        if stays_f32(name, shape) {
            return Self { block: BlockType::F32, wanted: None };
        }
        let (wanted, columns) = (wanted(), shape.last().copied().unwrap_or(1));
        let fallbacks = [wanted, BlockType::Q8_0, BlockType::F16];
        let block = fallbacks
            .into_iter()
            .find(|block| block.row_bytes(columns).is_some())
            .unwrap_or(BlockType::F16);
        Self { block, wanted: (block != wanted).then_some(wanted) }
    }
}

impl Recipe {
    pub(super) fn new(file: &ModelFile, to: Target) -> Self {
        let numbers = file.tensors.keys().filter_map(|name| layer_and_role(name).0);
        let facts = MixtureFacts {
            layers: numbers.max().map_or(0, |last| last.saturating_add(1)),
            // No target's mixture depends on it.
            heads_per_kv: 1,
            tied: !file.tensors.contains_key("output.weight"),
        };
        Self { to, facts }
    }

    pub(super) fn choose(&self, tensor: &Tensor) -> Choice {
        if tensor.block.is_integer() {
            return Choice { block: tensor.block, wanted: None };
        }
        Choice::new(&tensor.name, &tensor.shape, || match self.to {
            Target::Q4_K_M => Mixture::Q4_K_M.wanted(&tensor.name, self.facts),
            to => to.block(),
        })
    }
}

/// `7` and `ffn_down` of `blk.7.ffn_down.weight`; `output` of `output.weight`.
pub(super) fn layer_and_role(name: &str) -> (Option<u64>, &str) {
    let role = name.strip_suffix(".weight").unwrap_or(name);
    let block = role.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
    match block.and_then(|(layer, role)| Some((layer.parse().ok()?, role))) {
        Some((layer, role)) => (Some(layer), role),
        None => (None, role),
    }
}

fn stays_f32(name: &str, shape: &[u64]) -> bool {
    let elements = shape.iter().fold(1u64, |product, &size| product.saturating_mul(size));
    let (_, role) = layer_and_role(name);
    shape.len() < 2
        || elements < SMALL
        || !name.ends_with(".weight")
        || role.ends_with("_norm")
        || role.starts_with("rope_")
        || role.contains("conv")
        || matches!(role, "position_embd" | "token_types" | "ffn_gate_inp")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart() {
        assert_eq!(layer_and_role("blk.12.ffn_down.weight"), (Some(12), "ffn_down"));
        assert_eq!(layer_and_role("blk.x.ffn_down.weight"), (None, "blk.x.ffn_down"));
        assert_eq!(layer_and_role("output.weight"), (None, "output"));
    }

    #[test]
    fn targets_are_known_by_name() {
        for target in Target::ALL {
            assert_eq!(target.name().to_lowercase().parse(), Ok(target));
            assert!(trefoil_kernels::blocks::can_encode(target.block()));
        }
        let message = "Q5_K".parse::<Target>().unwrap_err().to_string();
        assert!(message.contains("Q5_K") && message.contains("Q4_K_M"), "{message}");
    }
}
