//! The tensors that a model has by its `config.json` alone: names and shapes, for planning.

use super::json::Fields;
use super::{HuggingFaceError, config};
use crate::metadata::Metadata;

/// Name in the graph's way, and shape, outermost first.
pub(crate) type Shaped = (String, Vec<u64>);

/// Most blocks, and most experts of a block: beyond what any model has.
const MOST: u64 = 4096;

/// The sizes that shapes are made of.
struct Sizes {
    vocabulary: u64,
    embedding: u64,
    layers: u64,
    ffn: u64,
    query: u64,
    key: u64,
    head_dim: u64,
    context: u64,
    types: u64,
    experts: u64,
    expert_ffn: u64,
}

impl Sizes {
    fn read(root: Fields<'_>, metadata: &Metadata, name: &str) -> Result<Self, HuggingFaceError> {
        let number = |key: &str| metadata.u64(key).ok().flatten();
        let own = |key: &str| number(&format!("{name}.{key}"));
        let needed =
            |key: &str, field: &str| own(key).ok_or_else(|| root.missing(field, "an integer"));
        let embedding = needed("embedding_length", "hidden_size")?;
        let heads = needed("attention.head_count", "num_attention_heads")?.max(1);
        let head_dim = own("attention.key_length").unwrap_or(embedding / heads);
        let kv_heads = own("attention.head_count_kv").unwrap_or(heads);
        let sizes = Self {
            vocabulary: needed("vocab_size", "vocab_size")?,
            embedding,
            layers: needed("block_count", "num_hidden_layers")?,
            ffn: needed("feed_forward_length", "intermediate_size")?,
            query: heads * head_dim,
            key: kv_heads * head_dim,
            head_dim,
            context: own("context_length").unwrap_or(0),
            types: number("tokenizer.ggml.token_type_count").unwrap_or(0),
            experts: own("expert_count").unwrap_or(0),
            expert_ffn: own("expert_feed_forward_length").unwrap_or(0),
        };
        let within = |field: &str, got: u64| match got {
            0..=MOST => Ok(()),
            _ => Err(root.error(field, format!("at most {MOST}"))),
        };
        within("num_hidden_layers", sizes.layers)?;
        within("num_experts", sizes.experts)?;
        Ok(sizes)
    }

    /// Shape of the tensor of a role; `None` for one that the model has not.
    fn shape(&self, role: &str, fused: bool) -> Option<Vec<u64>> {
        let Self { embedding, ffn, query, key, head_dim, expert_ffn, .. } = *self;
        let shape: &[u64] = match role {
            "token_embd" | "output" => &[self.vocabulary, embedding],
            "position_embd" => &[self.context, embedding],
            "token_types" if self.types > 0 => &[self.types, embedding],
            "attn_q" => &[query, embedding],
            "attn_k" | "attn_v" => &[key, embedding],
            "attn_qkv" => &[query + 2 * key, embedding],
            "attn_output" => &[embedding, query],
            "attn_q_norm" | "attn_k_norm" => &[head_dim],
            "ffn_up" if fused => &[2 * ffn, embedding],
            "ffn_gate" | "ffn_up" => &[ffn, embedding],
            "ffn_down" => &[embedding, ffn],
            "ffn_gate_inp" => &[self.experts, embedding],
            "ffn_gate_exps" | "ffn_up_exps" => &[expert_ffn, embedding],
            "ffn_down_exps" => &[embedding, expert_ffn],
            norm if norm.ends_with("_norm") => &[embedding],
            _ => return None,
        };
        Some(shape.to_vec())
    }
}

/// Reads `config.json`: metadata, and the tensors that follow from it.
pub(super) fn read(root: Fields<'_>) -> Result<(Metadata, Vec<Shaped>), HuggingFaceError> {
    let (architecture, metadata) = config::read(root)?;
    let sizes = Sizes::read(root, &metadata, architecture.name)?;
    let inner = root.table("text_config", "text_config.")?.unwrap_or(root);
    let flag = |field: &str| match inner.bool(field)? {
        Some(value) => Ok(Some(value)),
        None => root.bool(field),
    };
    // What the architectures' classes in transformers take where nothing is said.
    let tied = flag("tie_word_embeddings")?.unwrap_or(architecture.name == "gemma3");
    let attention_bias = architecture.name == "qwen2" || flag("attention_bias")?.unwrap_or(false);
    let all_biased = architecture.name == "bert";
    let mut tensors = Vec::new();
    for (theirs, name) in architecture.names.iter().copied().flatten() {
        let role = name.trim_start_matches("blk.{}.").trim_end_matches(".{}");
        let fused = theirs.contains("gate_up_proj");
        let Some(shape) = sizes.shape(role, fused).filter(|_| !(role == "output" && tied)) else {
            continue;
        };
        let biased = all_biased && !role.ends_with("_embd") && role != "token_types"
            || attention_bias && matches!(role, "attn_q" | "attn_k" | "attn_v");
        for name in numbered(name, &sizes) {
            if biased {
                tensors.push((format!("{name}.bias"), shape[..1].to_vec()));
            }
            tensors.push((format!("{name}.weight"), shape.clone()));
        }
    }
    Ok((metadata, tensors))
}

/// A name with every number that its places can have: blocks, then experts.
fn numbered(name: &str, sizes: &Sizes) -> Vec<String> {
    let mut names = vec![name.to_owned()];
    for count in [sizes.layers, sizes.experts] {
        if !names[0].contains("{}") {
            break;
        }
        let fill = |name: &String| -> Vec<String> {
            (0..count).map(|number| name.replacen("{}", &number.to_string(), 1)).collect()
        };
        names = names.iter().flat_map(fill).collect();
        if names.is_empty() {
            break;
        }
    }
    names
}
