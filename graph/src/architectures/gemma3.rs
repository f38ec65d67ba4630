//! Gemma 3: local and global layers with a rope base each, norms before and after, scaled embedding.

use crate::NodeIndex;
use crate::hyper::{HyperError, Keys};
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
        Origin::HuggingFace | Origin::Onnx => 1.0,
        Origin::Gguf => 0.0,
    };
    let keys = model.keys()?;
    let local_base = keys.number("rope.freq_base_swa")?.unwrap_or(LOCAL_BASE);
    let pattern = Pattern::read(&keys, model.hyper.layers)?;
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
        let style = if pattern.is_local(layer) { &local } else { &global };
        x = model.attention_block(layer, x, style, Some("post_attention_norm"))?;
        x = model.gated_ffn(layer, x, Nonlinearity::GeluTanh, Some("post_ffw_norm"))?;
    }
    let logits = model.logits_head(x)?;
    match logit_cap {
        Some(cap) => model.push("output_softcap", SoftCap { cap }, &[logits]),
        None => Ok(logits),
    }
}

/// Which layers are local.
enum Pattern<'m> {
    /// All but every so manieth.
    Distance(usize),
    /// Those that the file lists as such.
    List(&'m [bool]),
}

impl<'m> Pattern<'m> {
    fn read(keys: &Keys<'m>, layers: usize) -> Result<Self, HyperError> {
        const KEY: &str = "attention.sliding_window_pattern";
        match keys.truths(KEY)? {
            None => Ok(Self::Distance(keys.size_or(KEY, PATTERN)?)),
            Some(list) if list.len() == layers => Ok(Self::List(list)),
            Some(list) => Err(HyperError::Range {
                key: keys.key(KEY),
                expected: format!("a truth value for each of {layers} layers, or one number"),
                got: format!("{} truth values", list.len()),
            }),
        }
    }

    fn is_local(&self, layer: usize) -> bool {
        match self {
            Self::Distance(distance) => !(layer + 1).is_multiple_of(*distance),
            Self::List(list) => list[layer],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::Value;
    use crate::{LowerOptions, ModelFile, lower};

    fn windows(pattern: Option<Value>) -> Result<Vec<bool>, LowerError> {
        let path = crate::test_data::carried("models/gemma3/model-f32.gguf");
        let mut file = ModelFile::open(&path).expect("opens");
        if let Some(pattern) = pattern {
            file.metadata.set("gemma3.attention.sliding_window_pattern", pattern);
        }
        let (_, graph) = lower(&file, LowerOptions::default())?;
        Ok(graph.kv().iter().map(|kv| kv.window.is_some()).collect())
    }

    #[test]
    fn pattern_is_a_distance_or_a_list() {
        let distance = windows(None).expect("lowers");
        assert_eq!(distance, [true, true, true, true, true, false]);
        assert_eq!(windows(Some(Value::U32(2))).expect("lowers"), [true, false].repeat(3));
        let list = vec![false, true, true, false, false, true];
        assert_eq!(windows(Some(Value::from(list.clone()))).expect("lowers"), list);
    }

    #[test]
    fn pattern_of_another_length_or_type_is_refused() {
        for (pattern, named) in [
            (Value::from(vec![true, false]), "2 truth values"),
            (Value::from(vec![1u32, 0, 1, 0, 1, 0]), "array of 6 u32"),
            (Value::from("every sixth"), "every sixth"),
            (Value::U32(0), "got 0"),
        ] {
            let message = windows(Some(pattern)).expect_err("not a pattern").to_string();
            assert!(message.contains("gemma3.attention.sliding_window_pattern"), "{message}");
            assert!(message.contains(named), "{message}");
        }
    }
}
