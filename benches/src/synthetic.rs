//! Models of made-up weights in the shapes of published ones.

use std::io;
use std::path::Path;

use trefoil_graph::BlockType;
use trefoil_graph::gguf::{FileWriter, TensorSpec};
use trefoil_graph::metadata::Metadata;

use crate::weights::BlockSource;

/// Sizes of a Qwen3 model (all of them tie the output to the token table).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // names say it
pub struct Shape {
    pub layers: usize,
    pub hidden: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub ffn: usize,
    pub vocabulary: usize,
}

impl Shape {
    /// Qwen3-0.6B.
    pub const QWEN3_0_6B: Self = Self {
        layers: 28,
        hidden: 1024,
        heads: 16,
        kv_heads: 8,
        head_dim: 128,
        ffn: 3072,
        vocabulary: 151_936,
    };

    /// Qwen3-1.7B.
    pub const QWEN3_1_7B: Self = Self { hidden: 2048, ffn: 6144, ..Self::QWEN3_0_6B };

    /// A shape by its name.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "qwen3-0.6b" => Some(Self::QWEN3_0_6B),
            "qwen3-1.7b" => Some(Self::QWEN3_1_7B),
            _ => None,
        }
    }
}

/// Number formats of a whole file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // names are the formats' own
pub enum Quant {
    Q4_0,
    Q8_0,
    Q4KM,
    F16,
}

impl Quant {
    /// A format by its name.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "Q4_0" => Some(Self::Q4_0),
            "Q8_0" => Some(Self::Q8_0),
            "Q4_K_M" => Some(Self::Q4KM),
            "F16" => Some(Self::F16),
            _ => None,
        }
    }

    /// The layout that the usual converters give a tensor.
    fn block(self, tensor: &str, layer: usize, layers: usize) -> BlockType {
        // Q4_K_M keeps two tensors of about half the layers in six bits.
        let more = layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2;
        match self {
            Self::Q8_0 => BlockType::Q8_0,
            Self::F16 => BlockType::F16,
            _ if tensor == "token_embd" => BlockType::Q6_K,
            Self::Q4_0 => BlockType::Q4_0,
            Self::Q4KM if more && matches!(tensor, "attn_v" | "ffn_down") => BlockType::Q6_K,
            Self::Q4KM => BlockType::Q4_K,
        }
    }
}

/// Writes a model; `tokenizer` may give the metadata of its tokenizer.
pub fn write(
    path: &Path,
    shape: Shape,
    quant: Quant,
    tokenizer: Option<&Metadata>,
) -> io::Result<()> {
    let Shape { layers, hidden, heads, kv_heads, head_dim, ffn, vocabulary } = shape;
    let mut metadata = Metadata::new();
    metadata.set("general.architecture", "qwen3".to_owned());
    metadata.set("general.name", "made-up weights".to_owned());
    for (key, value) in [
        ("block_count", layers),
        ("context_length", 40_960),
        ("embedding_length", hidden),
        ("feed_forward_length", ffn),
        ("attention.head_count", heads),
        ("attention.head_count_kv", kv_heads),
        ("attention.key_length", head_dim),
        ("attention.value_length", head_dim),
    ] {
        metadata.set(&format!("qwen3.{key}"), value as u32);
    }
    metadata.set("qwen3.rope.freq_base", 1e6f32);
    metadata.set("qwen3.attention.layer_norm_rms_epsilon", 1e-6f32);
    for (key, value) in tokenizer.iter().flat_map(|metadata| metadata.iter()) {
        if key.starts_with("tokenizer.") {
            metadata.set(key, value.clone());
        }
    }

    let mut specs =
        vec![matrix("token_embd", quant.block("token_embd", 0, layers), vocabulary, hidden)];
    for layer in 0..layers {
        let (q, kv) = (heads * head_dim, kv_heads * head_dim);
        for (name, rows, columns) in [
            ("attn_q", q, hidden),
            ("attn_k", kv, hidden),
            ("attn_v", kv, hidden),
            ("attn_output", hidden, q),
            ("ffn_gate", ffn, hidden),
            ("ffn_up", ffn, hidden),
            ("ffn_down", hidden, ffn),
        ] {
            let block = quant.block(name, layer, layers);
            specs.push(matrix(&format!("blk.{layer}.{name}"), block, rows, columns));
        }
        for (name, width) in [
            ("attn_norm", hidden),
            ("ffn_norm", hidden),
            ("attn_q_norm", head_dim),
            ("attn_k_norm", head_dim),
        ] {
            specs.push(vector(&format!("blk.{layer}.{name}"), width));
        }
    }
    specs.push(vector("output_norm", hidden));

    let mut file = FileWriter::create(path, &metadata, &specs)?;
    let mut piece = Vec::new();
    for (seed, spec) in specs.iter().enumerate() {
        if spec.block == BlockType::F32 {
            let ones = vec![1.0f32; spec.shape[0] as usize];
            let bytes: Vec<u8> = ones.iter().flat_map(|one| one.to_le_bytes()).collect();
            file.write(&spec.name, &bytes)?;
            continue;
        }
        let mut source = BlockSource::new(spec.block, 0.03, seed as u64);
        for _ in 0..spec.shape[0] {
            piece.clear();
            source.draw(spec.shape[1] as usize, &mut piece);
            file.write(&spec.name, &piece)?;
        }
    }
    file.finish()
}

fn matrix(name: &str, block: BlockType, rows: usize, columns: usize) -> TensorSpec {
    TensorSpec::new(format!("{name}.weight"), block, [rows as u64, columns as u64])
}

fn vector(name: &str, width: usize) -> TensorSpec {
    TensorSpec::new(format!("{name}.weight"), BlockType::F32, [width as u64])
}
