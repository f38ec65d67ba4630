//! Tensor names of a Hugging Face model turned into internal (GGUF style) ones.

use super::architectures::Architecture;

/// What a tensor's name says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Named {
    /// Part of the model under this internal name.
    Internal(String),
    /// Nothing the computation needs.
    Ignored,
    /// Not in the architecture's table.
    Unknown,
}

/// Looks a tensor up: `model.layers.3.mlp.up_proj.weight` is `blk.3.ffn_up.weight`.
pub(super) fn internal(architecture: &Architecture, name: &str) -> Named {
    let mut candidates = vec![name.to_owned()];
    let inner = architecture.prefixes.iter().find_map(|prefix| name.strip_prefix(prefix));
    // A model inside a larger one has kept its own `model.` or lost it.
    candidates.extend(inner.into_iter().flat_map(|n| [n.to_owned(), format!("model.{n}")]));
    let ignored = |name: &String| {
        architecture.ignored.iter().any(|rule| name.starts_with(rule) || name.ends_with(rule))
    };
    if candidates.iter().any(ignored) {
        return Named::Ignored;
    }
    match candidates.iter().find_map(|name| look_up(architecture, name)) {
        Some(found) => Named::Internal(found),
        None => Named::Unknown,
    }
}

fn look_up(architecture: &Architecture, name: &str) -> Option<String> {
    let (stem, kind) = name.rsplit_once('.')?;
    if !matches!(kind, "weight" | "bias") {
        return None;
    }
    let mut numbers = Vec::new();
    let parts: Vec<_> = stem
        .split('.')
        .map(|part| {
            if is_number(part) {
                numbers.push(part);
                "{}"
            } else {
                part
            }
        })
        .collect();
    let pattern = parts.join(".");
    let rows = architecture.names.iter().copied().flatten();
    let (_, internal) = rows.into_iter().find(|(theirs, _)| *theirs == pattern)?;
    let mut pieces = internal.split("{}");
    let mut out = pieces.next()?.to_owned();
    for (piece, number) in pieces.zip(numbers) {
        out.push_str(number);
        out.push_str(piece);
    }
    Some(format!("{out}.{kind}"))
}

/// A number as it is normally written, so that no two spellings name one layer.
fn is_number(part: &str) -> bool {
    part.parse::<u32>().is_ok_and(|number| number.to_string() == part)
}

#[cfg(test)]
mod tests {
    use super::super::architectures::{TABLE, find};
    use super::*;

    fn name(model_type: &str, name: &str) -> Named {
        internal(find(model_type).unwrap(), name)
    }

    fn is(text: &str) -> Named {
        Named::Internal(text.to_owned())
    }

    #[test]
    fn names_with_layers_and_experts_are_found() {
        assert_eq!(
            name("llama", "model.layers.31.self_attn.q_proj.weight"),
            is("blk.31.attn_q.weight")
        );
        assert_eq!(
            name("qwen3_moe", "model.layers.4.mlp.experts.127.down_proj.weight"),
            is("blk.4.ffn_down_exps.127.weight")
        );
        assert_eq!(
            name("gemma3", "language_model.model.layers.0.input_layernorm.weight"),
            is("blk.0.attn_norm.weight")
        );
        assert_eq!(
            name("gemma3", "model.language_model.embed_tokens.weight"),
            is("token_embd.weight")
        );
        assert_eq!(name("bert", "bert.embeddings.LayerNorm.bias"), is("token_embd_norm.bias"));
    }

    #[test]
    fn extras_are_ignored_and_others_unknown() {
        assert_eq!(name("bert", "bert.pooler.dense.weight"), Named::Ignored);
        assert_eq!(name("llama", "model.layers.0.self_attn.rotary_emb.inv_freq"), Named::Ignored);
        assert_eq!(name("gemma3", "vision_tower.vision_model.x.weight"), Named::Ignored);
        for unknown in [
            "model.layers.00.self_attn.q_proj.weight",
            "model.layers.0.self_attn.q_proj.scale",
            "model.layers.0.self_attn.q_norm.weight",
            "weight",
            "",
            ".",
        ] {
            assert_eq!(name("llama", unknown), Named::Unknown, "{unknown}");
        }
    }

    #[test]
    fn both_sides_of_the_tables_have_the_same_numbers() {
        for (theirs, ours) in TABLE.iter().flat_map(|row| row.names.iter().copied().flatten()) {
            assert_eq!(theirs.matches("{}").count(), ours.matches("{}").count(), "{theirs}");
        }
    }
}
