//! `config.json` turned into GGUF-style metadata.
//!
//! What a GGUF file of the same model carries has the same key and value. Fields that GGUF files
//! leave to the program or put into tensors get these keys (`ARCH` is `general.architecture`):
//!
//! | `config.json` | key | type |
//! |---|---|---|
//! | `query_pre_attn_scalar` | `ARCH.attention.scale`, its inverse square root | f32 |
//! | `sliding_window_pattern`, or what `layer_types` amounts to | `ARCH.attention.sliding_window_pattern`: every so manieth layer is global; an array (true: windowed) if irregular | u32, bools |
//! | `norm_topk_prob` | `ARCH.expert_weights_norm` | bool |
//! | `attn_logit_softcapping`, `final_logit_softcapping` | `ARCH.attn_logit_softcapping`, `ARCH.final_logit_softcapping` | f32 |
//! | `head_dim` or width / heads | `ARCH.attention.key_length`, `.value_length`, and `ARCH.rope.dimension_count` times `partial_rotary_factor` | u32 |
//! | `eos_token_id` as a list (also of `generation_config.json`) | `tokenizer.ggml.eos_token_id` the first, `tokenizer.ggml.eos_token_ids` all | u32, u32s |
//!
//! Rotary scaling: see [`rope`](super::rope).

use serde_json::Value;

use super::architectures::{self, Architecture};
use super::json::Fields;
use super::{HuggingFaceError, rope};
use crate::metadata::Metadata;

/// Type of a key's value.
#[derive(Clone, Copy)]
enum Kind {
    Count,
    Float,
    Flag,
}

/// Fields that carry over as they are: field, key below `ARCH.`, type.
const TABLE: &[(&str, &str, Kind)] = &[
    ("num_hidden_layers", "block_count", Kind::Count),
    ("max_position_embeddings", "context_length", Kind::Count),
    ("hidden_size", "embedding_length", Kind::Count),
    ("intermediate_size", "feed_forward_length", Kind::Count),
    ("num_attention_heads", "attention.head_count", Kind::Count),
    ("num_key_value_heads", "attention.head_count_kv", Kind::Count),
    ("rms_norm_eps", "attention.layer_norm_rms_epsilon", Kind::Float),
    ("layer_norm_eps", "attention.layer_norm_epsilon", Kind::Float),
    ("vocab_size", "vocab_size", Kind::Count),
    ("num_experts", "expert_count", Kind::Count),
    ("num_experts_per_tok", "expert_used_count", Kind::Count),
    ("moe_intermediate_size", "expert_feed_forward_length", Kind::Count),
    ("norm_topk_prob", "expert_weights_norm", Kind::Flag),
    ("attn_logit_softcapping", "attn_logit_softcapping", Kind::Float),
    ("final_logit_softcapping", "final_logit_softcapping", Kind::Float),
];

/// Fields no model can do without.
const REQUIRED: &[&str] =
    &["num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads"];

/// Reads `config.json`: the architecture, and its metadata.
pub(super) fn read(
    root: Fields<'_>,
) -> Result<(&'static Architecture, Metadata), HuggingFaceError> {
    let model_type = root
        .str("model_type")?
        .ok_or_else(|| root.missing("model_type", "the name of an architecture"))?;
    let architecture = architectures::find(model_type).ok_or_else(|| {
        HuggingFaceError::ModelType { got: model_type.to_owned(), known: architectures::known() }
    })?;
    // Models that also see or hear keep the language model's fields in a table of their own.
    let config = root.table("text_config", "text_config.")?.unwrap_or(root);
    let config = config.with_defaults(architecture.defaults);
    for fields in [root, config] {
        if let Some(quantised) = fields.table("quantization_config", "quantization_config.")? {
            let method = quantised.str("quant_method")?.unwrap_or("not named").to_owned();
            return Err(HuggingFaceError::Quantised { method });
        }
    }
    check_fixed(architecture, config)?;

    let mut keys = Keys { metadata: Metadata::new(), architecture: architecture.name };
    keys.metadata.set("general.architecture", architecture.name);
    for &(field, key, kind) in TABLE {
        match kind {
            Kind::Count => keys.set(key, config.u32(field)?),
            Kind::Float => keys.set(key, config.f32(field)?),
            Kind::Flag => keys.set(key, config.bool(field)?),
        }
    }
    for field in REQUIRED {
        if config.u32(field)?.is_none() {
            return Err(config.missing(field, "an integer"));
        }
    }
    if architecture.name == "bert" {
        keys.set("attention.causal", Some(false));
        if let Some(types) = config.u32("type_vocab_size")? {
            keys.metadata.set("tokenizer.ggml.token_type_count", types);
        }
    } else {
        decoder(config, &mut keys)?;
    }
    for fields in [config, root] {
        token_ids(fields, &mut keys.metadata)?;
    }
    Ok((architecture, keys.metadata))
}

/// Metadata under one architecture's name.
pub(super) struct Keys {
    pub(super) metadata: Metadata,
    architecture: &'static str,
}

impl Keys {
    /// Sets `ARCH.key` if there is a value.
    pub(super) fn set(&mut self, key: &str, value: Option<impl Into<crate::metadata::Value>>) {
        if let Some(value) = value {
            self.metadata.set(&format!("{}.{key}", self.architecture), value);
        }
    }
}

/// Refuses values that would silently change the computation.
fn check_fixed(architecture: &Architecture, config: Fields<'_>) -> Result<(), HuggingFaceError> {
    for &(field, allowed) in architecture.fixed {
        let Some(value) = config.get(field) else { continue };
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        if !allowed.contains(&text.as_str()) {
            let expected = format!("{} for a {} model", allowed.join(" or "), architecture.name);
            return Err(config.error(field, expected));
        }
    }
    Ok(())
}

/// What decoders have and encoders with learned positions have not.
fn decoder(config: Fields<'_>, keys: &mut Keys) -> Result<(), HuggingFaceError> {
    let head_dim = head_dim(config)?;
    keys.set("attention.key_length", Some(head_dim));
    keys.set("attention.value_length", Some(head_dim));
    if config.u32("num_key_value_heads")?.is_none() {
        keys.set("attention.head_count_kv", config.u32("num_attention_heads")?);
    }
    if let Some(scalar) = config.f32("query_pre_attn_scalar")? {
        if scalar <= 0.0 {
            return Err(config.error("query_pre_attn_scalar", "a number above 0"));
        }
        keys.set("attention.scale", Some((1.0 / f64::from(scalar).sqrt()) as f32));
    }
    if config.bool("use_sliding_window")? != Some(false) && !architecture_without_window(keys) {
        keys.set("attention.sliding_window", config.u32("sliding_window")?);
        window_pattern(config, keys)?;
    }
    rope::read(config, head_dim, keys)
}

/// Qwen models have a window in their configuration that is off unless a flag (refused above) says
/// otherwise.
fn architecture_without_window(keys: &Keys) -> bool {
    keys.architecture.starts_with("qwen")
}

fn head_dim(config: Fields<'_>) -> Result<u32, HuggingFaceError> {
    if let Some(head_dim) = config.u32("head_dim")? {
        return Ok(head_dim);
    }
    match (config.u32("hidden_size")?, config.u32("num_attention_heads")?) {
        (Some(hidden), Some(heads)) if heads > 0 && hidden.is_multiple_of(heads) => {
            Ok(hidden / heads)
        }
        (_, heads) => Err(config.error(
            "hidden_size",
            format!("a multiple of the {} attention heads", heads.unwrap_or(0)),
        )),
    }
}

/// Which layers have the window.
fn window_pattern(config: Fields<'_>, keys: &mut Keys) -> Result<(), HuggingFaceError> {
    const KEY: &str = "attention.sliding_window_pattern";
    for field in ["sliding_window_pattern", "_sliding_window_pattern"] {
        keys.set(KEY, config.u32(field)?);
    }
    let Some(types) = config.get("layer_types") else { return Ok(()) };
    let fail = || config.error("layer_types", "a list of sliding_attention and full_attention");
    let windowed = types
        .as_array()
        .ok_or_else(fail)?
        .iter()
        .map(|layer| match layer.as_str() {
            Some("sliding_attention") => Ok(true),
            Some("full_attention") => Ok(false),
            _ => Err(fail()),
        })
        .collect::<Result<Vec<bool>, _>>()?;
    let first_full = windowed.iter().position(|&windowed| !windowed).map(|first| first + 1);
    match first_full {
        Some(period) if windowed.iter().zip(1..).all(|(&w, n)| w == (n % period != 0)) => {
            keys.set(KEY, Some(period as u32));
        }
        _ => keys.set(KEY, Some(windowed)),
    }
    Ok(())
}

/// Special tokens; what is set already stays.
fn token_ids(fields: Fields<'_>, metadata: &mut Metadata) -> Result<(), HuggingFaceError> {
    let rows = [
        ("bos_token_id", "tokenizer.ggml.bos_token_id"),
        ("eos_token_id", "tokenizer.ggml.eos_token_id"),
        ("pad_token_id", "tokenizer.ggml.padding_token_id"),
    ];
    for (field, key) in rows {
        // Some models write -1 for "none".
        if fields.get(field).and_then(Value::as_i64) == Some(-1) || metadata.contains(key) {
            continue;
        }
        let ids = fields.ids(field)?;
        if let Some(&first) = ids.first() {
            metadata.set(key, first);
        }
        if ids.len() > 1 {
            metadata.set(&format!("{key}s"), ids);
        }
    }
    Ok(())
}

/// Special tokens of `generation_config.json`, which win over those of `config.json`.
pub(super) fn generation(
    fields: Fields<'_>,
    metadata: &mut Metadata,
) -> Result<(), HuggingFaceError> {
    let mut own = Metadata::new();
    token_ids(fields, &mut own)?;
    for (key, value) in own.iter() {
        metadata.set(key, value.clone());
    }
    Ok(())
}

/// Pooling of a sentence encoder (`1_Pooling/config.json`): 1 mean, 2 first token, 3 last token,
/// as in GGUF files.
pub(super) fn pooling(fields: Fields<'_>, metadata: &mut Metadata) -> Result<(), HuggingFaceError> {
    const MODES: &[(&str, u32)] = &[
        ("pooling_mode_mean_tokens", 1),
        ("pooling_mode_cls_token", 2),
        ("pooling_mode_lasttoken", 3),
    ];
    for &(field, number) in MODES {
        if fields.bool(field)? == Some(true) {
            let architecture = metadata.str("general.architecture").ok().flatten().unwrap_or("");
            metadata.set(&format!("{architecture}.pooling_type"), number);
            return Ok(());
        }
    }
    Err(fields.missing("pooling_mode_*", "mean_tokens, cls_token or lasttoken set to true"))
}
