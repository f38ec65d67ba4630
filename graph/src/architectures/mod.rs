//! One file per model architecture: hyper-parameters and tensors become the layer graph.
//!
//! A new architecture is one file with a `lower` function and one line in [`TABLE`]. The pieces that
//! most decoders share are methods of [`Lowering`].

mod bert;
mod gemma3;
mod llama;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen3moe;

use crate::NodeIndex;
use crate::lowering::{AttentionStyle, LowerError, Lowering};
use crate::ops::Nonlinearity;

/// A known architecture.
pub(crate) struct Architecture {
    /// `general.architecture` of its files.
    pub(crate) name: &'static str,
    /// Builds the graph and returns the node of its result.
    pub(crate) lower: fn(&mut Lowering<'_>) -> Result<NodeIndex, LowerError>,
}

const TABLE: &[Architecture] = &[
    Architecture { name: "bert", lower: bert::lower },
    Architecture { name: "gemma3", lower: gemma3::lower },
    Architecture { name: "llama", lower: llama::lower },
    Architecture { name: "phi3", lower: phi3::lower },
    Architecture { name: "qwen2", lower: qwen2::lower },
    Architecture { name: "qwen3", lower: qwen3::lower },
    Architecture { name: "qwen3moe", lower: qwen3moe::lower },
];

pub(crate) fn find(name: &str) -> Option<&'static Architecture> {
    TABLE.iter().find(|architecture| architecture.name == name)
}

/// Names of all known architectures.
pub fn names() -> impl Iterator<Item = &'static str> {
    TABLE.iter().map(|architecture| architecture.name)
}

/// The usual factor on attention's products, `1 / sqrt(head_dim)`.
fn inverse_root(head_dim: usize) -> f32 {
    (1.0 / (head_dim as f64).sqrt()) as f32
}

/// The common decoder: embedding, blocks of attention and a SiLU-gated network, logits.
fn plain_decoder(
    model: &mut Lowering<'_>,
    style: &AttentionStyle,
) -> Result<NodeIndex, LowerError> {
    let mut x = model.embed(1.0)?;
    for layer in 0..model.hyper.layers {
        x = model.attention_block(layer, x, style, None)?;
        x = model.gated_ffn(layer, x, Nonlinearity::Silu, None)?;
    }
    model.logits_head(x)
}
