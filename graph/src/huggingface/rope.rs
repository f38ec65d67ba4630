//! Rotary positions of `config.json`: the older fields (`rope_theta`, `rope_scaling`) and the newer
//! table (`rope_parameters`), as metadata keys below `ARCH.rope.`:
//!
//! | field | key | type |
//! |---|---|---|
//! | `rope_theta` | `freq_base` | f32 |
//! | `rope_local_base_freq`, or `rope_theta` of `rope_parameters.sliding_attention` | `freq_base_swa` | f32 |
//! | head size times `partial_rotary_factor` | `dimension_count` | u32 |
//! | `rope_type` or `type` | `scaling.type`: `linear`, `llama3`, `longrope`, `yarn`, or another as written | string |
//! | `factor` | `scaling.factor` | f32 |
//! | `original_max_position_embeddings` (there, or of the model) | `scaling.original_context_length` | u32 |
//! | `low_freq_factor`, `high_freq_factor` (llama3) | `scaling.low_freq_factor`, `scaling.high_freq_factor` | f32 |
//! | `short_factor`, `long_factor` (longrope) | `scaling.short_factor`, `scaling.long_factor` | f32s |
//! | `attention_factor` | `scaling.attn_factor` | f32 |
//! | `beta_fast`, `beta_slow` (yarn) | `scaling.yarn_beta_fast`, `scaling.yarn_beta_slow` | f32 |
//!
//! A GGUF file has llama3's and longrope's numbers in tensors (`rope_freqs.weight`,
//! `rope_factors_*.weight`) instead.

use super::HuggingFaceError;
use super::config::Keys;
use super::json::Fields;

pub(super) fn read(
    config: Fields<'_>,
    head_dim: u32,
    keys: &mut Keys,
) -> Result<(), HuggingFaceError> {
    let older = config.table("rope_scaling", "rope_scaling.")?;
    let newer = config.table("rope_parameters", "rope_parameters.")?;
    let (main, local) = match newer {
        // One table for each kind of layer, or one for all.
        Some(table) => {
            let local = table.table("sliding_attention", "rope_parameters.sliding_attention.")?;
            let full = table.table("full_attention", "rope_parameters.full_attention.")?;
            (full.or(Some(table)), local)
        }
        None => (older, None),
    };

    let own = |field| main.as_ref().map_or(Ok(None), |main| main.f32(field));
    let base = own("rope_theta")?.map_or_else(|| config.f32("rope_theta"), |base| Ok(Some(base)));
    keys.set("rope.freq_base", base?);
    let local_base = match local {
        Some(local) => local.f32("rope_theta")?,
        None => config.f32("rope_local_base_freq")?,
    };
    keys.set("rope.freq_base_swa", local_base);

    let part = match own("partial_rotary_factor")? {
        Some(part) => part,
        None => config.f32("partial_rotary_factor")?.unwrap_or(1.0),
    };
    if !(part > 0.0 && part <= 1.0) {
        return Err(config.error("partial_rotary_factor", "a number above 0, at most 1"));
    }
    keys.set("rope.dimension_count", Some((f64::from(head_dim) * f64::from(part)) as u32));

    let original = match main.map_or(Ok(None), |m| m.u32("original_max_position_embeddings"))? {
        Some(original) => Some(original),
        None => config.u32("original_max_position_embeddings")?,
    };
    keys.set("rope.scaling.original_context_length", original);
    match main {
        Some(main) => scaling(main, keys),
        None => Ok(()),
    }
}

fn scaling(fields: Fields<'_>, keys: &mut Keys) -> Result<(), HuggingFaceError> {
    let kind = match fields.str("rope_type")? {
        Some(kind) => Some(kind),
        None => fields.str("type")?,
    };
    let kind = match kind {
        // An older name of the same.
        Some("su") => Some("longrope"),
        Some("default") => None,
        kind => kind,
    };
    keys.set("rope.scaling.type", kind);
    for (field, key) in [
        ("factor", "rope.scaling.factor"),
        ("low_freq_factor", "rope.scaling.low_freq_factor"),
        ("high_freq_factor", "rope.scaling.high_freq_factor"),
        ("attention_factor", "rope.scaling.attn_factor"),
        ("beta_fast", "rope.scaling.yarn_beta_fast"),
        ("beta_slow", "rope.scaling.yarn_beta_slow"),
    ] {
        keys.set(key, fields.f32(field)?);
    }
    keys.set("rope.scaling.short_factor", fields.f32s("short_factor")?);
    keys.set("rope.scaling.long_factor", fields.f32s("long_factor")?);
    Ok(())
}
