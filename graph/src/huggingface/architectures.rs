//! What is particular to each architecture of a Hugging Face folder, as data: how its tensors are
//! called, which fields its `config.json` may leave out and which it must not set otherwise.
//!
//! A new architecture is one row of [`TABLE`].

/// Names in a safetensors file and the internal ones, without `.weight` or `.bias`; `{}` stands for
/// a number (layer, expert), in the same order on both sides.
pub(super) type Names = &'static [(&'static str, &'static str)];

/// One architecture.
pub(super) struct Architecture {
    /// `model_type` values of its `config.json`.
    pub(super) model_types: &'static [&'static str],
    /// `general.architecture` of a GGUF file of the same model.
    pub(super) name: &'static str,
    /// Prefixes of tensor names to drop: how the model sits in a larger one.
    pub(super) prefixes: &'static [&'static str],
    /// Tensor names.
    pub(super) names: &'static [Names],
    /// Beginnings or ends of tensor names that are not part of the computation.
    pub(super) ignored: &'static [&'static str],
    /// Values of missing `config.json` fields: those of the model's class in transformers.
    pub(super) defaults: &'static [(&'static str, f64)],
    /// Fields whose value changes the computation in a way that is not carried out: what they may
    /// be, if they are there at all.
    pub(super) fixed: &'static [(&'static str, &'static [&'static str])],
}

pub(super) const TABLE: &[Architecture] = &[
    Architecture {
        model_types: &["llama", "mistral"],
        name: "llama",
        prefixes: &[],
        names: &[ENDS, ATTENTION, GATED, NORMS],
        ignored: ROTARY,
        defaults: &[("rope_theta", 1e4), ("rms_norm_eps", 1e-6)],
        fixed: &[SILU],
    },
    Architecture {
        model_types: &["qwen2"],
        name: "qwen2",
        prefixes: &[],
        names: &[ENDS, ATTENTION, GATED, NORMS],
        ignored: ROTARY,
        defaults: &[("rope_theta", 1e4), ("rms_norm_eps", 1e-6)],
        fixed: &[SILU, NO_WINDOW],
    },
    Architecture {
        model_types: &["qwen3"],
        name: "qwen3",
        prefixes: &[],
        names: &[ENDS, ATTENTION, HEAD_NORMS, GATED, NORMS],
        ignored: ROTARY,
        defaults: &[("rope_theta", 1e4), ("rms_norm_eps", 1e-6), ("head_dim", 128.0)],
        fixed: &[SILU, NO_WINDOW],
    },
    Architecture {
        model_types: &["qwen3_moe"],
        name: "qwen3moe",
        prefixes: &[],
        names: &[ENDS, ATTENTION, HEAD_NORMS, EXPERTS, NORMS],
        ignored: ROTARY,
        defaults: &[("rope_theta", 1e4), ("rms_norm_eps", 1e-6)],
        fixed: &[SILU, NO_WINDOW, ("decoder_sparse_step", &["1"]), ("mlp_only_layers", &["[]"])],
    },
    Architecture {
        model_types: &["gemma3_text", "gemma3"],
        name: "gemma3",
        // The text part of the models that also see.
        prefixes: &["language_model.", "model.language_model."],
        names: &[ENDS, ATTENTION, HEAD_NORMS, GATED, SANDWICH_NORMS],
        ignored: &[
            "vision_tower.",
            "multi_modal_projector.",
            "model.vision_tower.",
            "model.multi_modal_projector.",
        ],
        defaults: &[
            ("vocab_size", 262_208.0),
            ("hidden_size", 2304.0),
            ("intermediate_size", 9216.0),
            ("num_hidden_layers", 26.0),
            ("num_attention_heads", 8.0),
            ("num_key_value_heads", 4.0),
            ("head_dim", 256.0),
            ("max_position_embeddings", 131_072.0),
            ("rms_norm_eps", 1e-6),
            ("rope_theta", 1e6),
            ("rope_local_base_freq", 1e4),
            ("query_pre_attn_scalar", 256.0),
            ("sliding_window", 4096.0),
        ],
        fixed: &[
            ("hidden_activation", &["gelu_pytorch_tanh"]),
            ("use_bidirectional_attention", &["false"]),
        ],
    },
    Architecture {
        model_types: &["phi3"],
        name: "phi3",
        prefixes: &[],
        names: &[ENDS, FUSED, NORMS],
        ignored: ROTARY,
        defaults: &[
            ("rope_theta", 1e4),
            ("rms_norm_eps", 1e-5),
            ("original_max_position_embeddings", 4096.0),
        ],
        fixed: &[SILU],
    },
    Architecture {
        model_types: &["bert"],
        name: "bert",
        prefixes: &["bert."],
        names: &[BERT],
        ignored: &["pooler.", "cls.", "embeddings.position_ids"],
        defaults: &[("layer_norm_eps", 1e-12), ("type_vocab_size", 2.0)],
        fixed: &[
            ("hidden_act", &["gelu"]),
            ("position_embedding_type", &["absolute"]),
            ("is_decoder", &["false"]),
        ],
    },
];

const SILU: (&str, &[&str]) = ("hidden_act", &["silu"]);
const NO_WINDOW: (&str, &[&str]) = ("use_sliding_window", &["false"]);
/// Rotary frequencies, which old files carry although they follow from the configuration.
const ROTARY: &[&str] = &["rotary_emb.inv_freq"];

const ENDS: Names =
    &[("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output")];

const ATTENTION: Names = &[
    ("model.layers.{}.self_attn.q_proj", "blk.{}.attn_q"),
    ("model.layers.{}.self_attn.k_proj", "blk.{}.attn_k"),
    ("model.layers.{}.self_attn.v_proj", "blk.{}.attn_v"),
    ("model.layers.{}.self_attn.o_proj", "blk.{}.attn_output"),
];

const HEAD_NORMS: Names = &[
    ("model.layers.{}.self_attn.q_norm", "blk.{}.attn_q_norm"),
    ("model.layers.{}.self_attn.k_norm", "blk.{}.attn_k_norm"),
];

const GATED: Names = &[
    ("model.layers.{}.mlp.gate_proj", "blk.{}.ffn_gate"),
    ("model.layers.{}.mlp.up_proj", "blk.{}.ffn_up"),
    ("model.layers.{}.mlp.down_proj", "blk.{}.ffn_down"),
];

const EXPERTS: Names = &[
    ("model.layers.{}.mlp.gate", "blk.{}.ffn_gate_inp"),
    ("model.layers.{}.mlp.experts.{}.gate_proj", "blk.{}.ffn_gate_exps.{}"),
    ("model.layers.{}.mlp.experts.{}.up_proj", "blk.{}.ffn_up_exps.{}"),
    ("model.layers.{}.mlp.experts.{}.down_proj", "blk.{}.ffn_down_exps.{}"),
];

/// Query, key and value in one matrix; gate and up in one.
const FUSED: Names = &[
    ("model.layers.{}.self_attn.qkv_proj", "blk.{}.attn_qkv"),
    ("model.layers.{}.self_attn.o_proj", "blk.{}.attn_output"),
    ("model.layers.{}.mlp.gate_up_proj", "blk.{}.ffn_up"),
    ("model.layers.{}.mlp.down_proj", "blk.{}.ffn_down"),
];

const NORMS: Names = &[
    ("model.layers.{}.input_layernorm", "blk.{}.attn_norm"),
    ("model.layers.{}.post_attention_layernorm", "blk.{}.ffn_norm"),
];

/// Norms before and after both halves of a block.
const SANDWICH_NORMS: Names = &[
    ("model.layers.{}.input_layernorm", "blk.{}.attn_norm"),
    ("model.layers.{}.post_attention_layernorm", "blk.{}.post_attention_norm"),
    ("model.layers.{}.pre_feedforward_layernorm", "blk.{}.ffn_norm"),
    ("model.layers.{}.post_feedforward_layernorm", "blk.{}.post_ffw_norm"),
];

const BERT: Names = &[
    ("embeddings.word_embeddings", "token_embd"),
    ("embeddings.position_embeddings", "position_embd"),
    ("embeddings.token_type_embeddings", "token_types"),
    ("embeddings.LayerNorm", "token_embd_norm"),
    ("encoder.layer.{}.attention.self.query", "blk.{}.attn_q"),
    ("encoder.layer.{}.attention.self.key", "blk.{}.attn_k"),
    ("encoder.layer.{}.attention.self.value", "blk.{}.attn_v"),
    ("encoder.layer.{}.attention.output.dense", "blk.{}.attn_output"),
    ("encoder.layer.{}.attention.output.LayerNorm", "blk.{}.attn_output_norm"),
    ("encoder.layer.{}.intermediate.dense", "blk.{}.ffn_up"),
    ("encoder.layer.{}.output.dense", "blk.{}.ffn_down"),
    ("encoder.layer.{}.output.LayerNorm", "blk.{}.layer_output_norm"),
];

/// The architecture of a `model_type`.
pub(super) fn find(model_type: &str) -> Option<&'static Architecture> {
    TABLE.iter().find(|row| row.model_types.contains(&model_type))
}

/// All known `model_type` values, for messages.
pub(super) fn known() -> String {
    let types: Vec<_> = TABLE.iter().flat_map(|row| row.model_types).copied().collect();
    types.join(", ")
}
