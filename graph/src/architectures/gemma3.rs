//! Gemma 3: local and global layers with a rope base each, norms before and after, scaled embedding.

use crate::NodeIndex;
use crate::lowering::{AttentionStyle, LowerError, Lowering};
use crate::model_file::Origin;
use crate::ops::{Nonlinearity, RopeStyle, SoftCap};

/// Every sixth layer is global unless the file says otherwise (Gemma 3 technical report, 2025).
const PATTERN: usize = 6;
/// Rope base of the local layers unless the file says otherwise.
const LOCAL_BASE: f32 = 10_000.0;

pub(super) fn lower(model: &mut Lowering<'_>) -> Result<NodeIndex, LowerError> {
    // Hugging Face files store `weight - 1`, GGUF files the weight.
    model.norm_offset = match model.file.origin {
        Origin::HuggingFace => 1.0,
        Origin::Gguf => 0.0,
    };
    let keys = model.keys()?;
    let local_base = keys.number("rope.freq_base_swa")?.unwrap_or(LOCAL_BASE);
    let pattern = keys.size_or("attention.sliding_window_pattern", PATTERN)?;
    let logit_cap = keys.number("final_logit_softcapping")?.filter(|cap| *cap > 0.0);
    let scale = match keys.number("attention.scale")? {
        Some(scale) => scale,
        // The 27B model divides by its embedding width per head instead of the head's width.
        None if model.hyper.layers == 62 => {
            super::inverse_root(model.hyper.embedding / model.hyper.heads)
        }
        None => super::inverse_root(model.hyper.head_dim),
    };
    let global = AttentionStyle {
        rope: model.rope_table()?,
        rope_style: RopeStyle::Halves,
        qk_norm: true,
        window: None,
        scale,
        softcap: keys.number("attn_logit_softcapping")?.filter(|cap| *cap > 0.0),
    };
    let local = AttentionStyle {
        rope: model.rope_table_for(f64::from(local_base), false)?,
        window: model.hyper.window,
        ..global.clone()
    };
    let mut x = model.embed((model.hyper.embedding as f64).sqrt() as f32)?;
    for layer in 0..model.hyper.layers {
        let style = if (layer + 1) % pattern == 0 { &global } else { &local };
        x = model.attention_block(layer, x, style, Some("post_attention_norm"))?;
        x = model.gated_ffn(layer, x, Nonlinearity::GeluTanh, Some("post_ffw_norm"))?;
    }
    let logits = model.logits_head(x)?;
    match logit_cap {
        Some(cap) => model.push("output_softcap", SoftCap { cap }, &[logits]),
        None => Ok(logits),
    }
}
