//! Models without weights: hyper-parameters of well-known models, made into a model file whose
//! tensors lie in address space that holds nothing. Enough to lower, to count and to plan.

use std::io;
use std::sync::Arc;

use crate::metadata::{Metadata, Value};
use crate::model_file::{ModelFile, Origin, Tensor};
use crate::{BlockType, ExpertHyper, Storage};

/// Sizes of a decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ModelShape {
    /// Name as users write it: `qwen3-8b`.
    pub name: &'static str,
    /// `general.architecture`: llama, qwen2, qwen3 or qwen3moe.
    pub architecture: &'static str,
    /// Blocks.
    pub layers: usize,
    /// Width of the residual stream.
    pub embedding: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// Width of the feed-forward hidden layer.
    pub ffn: usize,
    /// Rows of the token table.
    pub vocabulary: usize,
    /// Does the token table make the logits too?
    pub tied: bool,
    /// Positions it was trained for.
    pub context: usize,
    /// Mixture of experts, if it is one.
    pub experts: Option<ExpertHyper>,
}

macro_rules! shapes {
    ($($name:literal $arch:literal $layers:literal $embedding:literal $heads:literal $kv:literal
       $dim:literal $ffn:literal $vocabulary:literal $tied:literal $context:literal $experts:expr;)*) => {
        /// Shapes that are known by name.
        pub const SHAPES: &[ModelShape] = &[$(ModelShape {
            name: $name, architecture: $arch, layers: $layers, embedding: $embedding,
            heads: $heads, kv_heads: $kv, head_dim: $dim, ffn: $ffn, vocabulary: $vocabulary,
            tied: $tied, context: $context, experts: $experts,
        },)*];
    };
}

const A3B: Option<ExpertHyper> = Some(ExpertHyper { count: 128, used: 8, ffn: 768 });

shapes! {
    // name          architecture layers width heads kv dim  ffn  vocabulary tied  context experts
    "llama-2-7b"     "llama"       32  4096  32   32  128  11008   32000  false    4096  None;
    "llama-3.1-8b"   "llama"       32  4096  32    8  128  14336  128256  false  131072  None;
    "llama-3.2-1b"   "llama"       16  2048  32    8   64   8192  128256  true   131072  None;
    "llama-3.2-3b"   "llama"       28  3072  24    8  128   8192  128256  true   131072  None;
    "qwen2-1.5b"     "qwen2"       28  1536  12    2  128   8960  151936  true    32768  None;
    "qwen2-7b"       "qwen2"       28  3584  28    4  128  18944  152064  false   32768  None;
    "qwen2.5-14b"    "qwen2"       48  5120  40    8  128  13824  152064  false   32768  None;
    "qwen2.5-32b"    "qwen2"       64  5120  40    8  128  27648  152064  false   32768  None;
    "qwen3-0.6b"     "qwen3"       28  1024  16    8  128   3072  151936  true    40960  None;
    "qwen3-1.7b"     "qwen3"       28  2048  16    8  128   6144  151936  true    40960  None;
    "qwen3-4b"       "qwen3"       36  2560  32    8  128   9728  151936  true    40960  None;
    "qwen3-8b"       "qwen3"       36  4096  32    8  128  12288  151936  false   40960  None;
    "qwen3-14b"      "qwen3"       40  5120  40    8  128  17408  151936  false   40960  None;
    "qwen3-30b-a3b"  "qwen3moe"    48  2048  32    4  128   6144  151936  false   40960  A3B;
}

impl ModelShape {
    /// The shape of this name.
    pub fn find(name: &str) -> Option<&'static Self> {
        SHAPES.iter().find(|shape| shape.name == name)
    }

    /// Names, rows and columns of all tensors, in file order.
    pub fn tensors(&self) -> Vec<(String, Vec<u64>)> {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut all = Vec::new();
        let mut push = |name: String, shape: &[usize]| {
            all.push((name, shape.iter().map(|&size| size as u64).collect()));
        };
        push("token_embd.weight".to_owned(), &[self.vocabulary, self.embedding]);
        for layer in 0..self.layers {
            let name = |role: &str| format!("blk.{layer}.{role}");
            push(name("attn_norm.weight"), &[self.embedding]);
            for (role, rows) in [("attn_q", q), ("attn_k", kv), ("attn_v", kv)] {
                push(name(&format!("{role}.weight")), &[rows, self.embedding]);
                if self.architecture == "qwen2" {
                    push(name(&format!("{role}.bias")), &[rows]);
                }
            }
            if self.architecture.starts_with("qwen3") {
                push(name("attn_q_norm.weight"), &[self.head_dim]);
                push(name("attn_k_norm.weight"), &[self.head_dim]);
            }
            push(name("attn_output.weight"), &[self.embedding, q]);
            push(name("ffn_norm.weight"), &[self.embedding]);
            let (stack, ffn) = match self.experts {
                Some(experts) => {
                    push(name("ffn_gate_inp.weight"), &[experts.count, self.embedding]);
                    (Some(experts.count), experts.ffn)
                }
                None => (None, self.ffn),
            };
            for (role, rows, columns) in [
                ("ffn_gate", ffn, self.embedding),
                ("ffn_up", ffn, self.embedding),
                ("ffn_down", self.embedding, ffn),
            ] {
                match stack {
                    Some(count) => {
                        push(name(&format!("{role}_exps.weight")), &[count, rows, columns]);
                    }
                    None => push(name(&format!("{role}.weight")), &[rows, columns]),
                }
            }
        }
        push("output_norm.weight".to_owned(), &[self.embedding]);
        if !self.tied {
            push("output.weight".to_owned(), &[self.vocabulary, self.embedding]);
        }
        all
    }

    fn metadata(&self) -> Metadata {
        let mut metadata = Metadata::new();
        let arch = self.architecture;
        metadata.set("general.architecture", Value::String(arch.to_owned()));
        metadata.set("general.name", Value::String(self.name.to_owned()));
        let mut size = |key: &str, value: usize| {
            metadata.set(&format!("{arch}.{key}"), Value::U32(value as u32));
        };
        size("block_count", self.layers);
        size("context_length", self.context);
        size("embedding_length", self.embedding);
        size("feed_forward_length", self.ffn);
        size("attention.head_count", self.heads);
        size("attention.head_count_kv", self.kv_heads);
        size("attention.key_length", self.head_dim);
        size("attention.value_length", self.head_dim);
        size("vocab_size", self.vocabulary);
        if let Some(experts) = self.experts {
            size("expert_count", experts.count);
            size("expert_used_count", experts.used);
            size("expert_feed_forward_length", experts.ffn);
        }
        metadata
    }

    /// A model file of this shape whose tensors have the formats that `format` says and hold
    /// nothing: they read as zeroes, and memory that is never touched is never taken. A format
    /// whose blocks do not fill a row is an error.
    pub fn without_weights(
        &self,
        format: impl Fn(&str, &[u64]) -> BlockType,
    ) -> io::Result<ModelFile> {
        let wrong = |name: &str, block: BlockType| {
            let text = format!("{}: {name}: rows are no whole blocks of {block}", self.name);
            io::Error::new(io::ErrorKind::InvalidInput, text)
        };
        let mut places = Vec::new();
        let mut end = 0u64;
        for (name, shape) in self.tensors() {
            let block = format(&name, &shape);
            let columns = shape.last().copied().unwrap_or(1);
            let rows: u64 = shape.iter().rev().skip(1).product();
            let row = block.row_bytes(columns).ok_or_else(|| wrong(&name, block))?;
            places.push((Arc::<str>::from(name), shape, block, end));
            end += (rows * row).next_multiple_of(64);
        }
        let storage = Storage::reserve(end as usize)?;
        let tensors = places.into_iter().map(|(name, shape, block, offset)| {
            let tensor =
                Tensor { name: name.clone(), block, shape, storage: storage.clone(), offset };
            (name, tensor)
        });
        Ok(ModelFile {
            origin: Origin::Gguf,
            label: format!("shape {}", self.name),
            metadata: self.metadata(),
            tensors: tensors.collect(),
            folder: None,
        })
    }
}

/// One format for matrices, F32 for vectors and routers.
pub fn uniform(block: BlockType) -> impl Fn(&str, &[u64]) -> BlockType {
    move |name, shape| {
        let small = shape.len() < 2 || name.contains("_gate_inp");
        if small { BlockType::F32 } else { block }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LowerOptions, StepShape, lower};

    #[test]
    fn every_shape_is_lowered_and_has_the_size_its_name_says() {
        let billions = [
            6.74, 8.03, 1.24, 3.21, 1.54, 7.62, 14.77, 32.76, 0.60, 1.72, 4.02, 8.19, 14.77, 30.53,
        ];
        for (shape, billions) in SHAPES.iter().zip(billions) {
            let file = shape.without_weights(uniform(BlockType::Q8_0)).expect(shape.name);
            let tensors = file.tensors.values();
            let elements: u64 = tensors.map(|t| t.shape.iter().product::<u64>()).sum();
            let got = elements as f64 / 1e9;
            assert!((got / billions - 1.0).abs() < 0.01, "{}: {got}", shape.name);
            let (hyper, graph) = lower(&file, LowerOptions::default()).expect(shape.name);
            assert_eq!(hyper.layers, shape.layers);
            assert_eq!(graph.kv().len(), shape.layers);
            assert!(graph.cost(&StepShape::decode(0)).weight_bytes < elements as f64 * 1.1);
        }
    }

    #[test]
    fn formats_that_do_not_fit_are_refused() {
        let shape = ModelShape { ffn: 100, ..SHAPES[0] };
        let error = shape.without_weights(uniform(BlockType::Q4_K)).expect_err("100 columns");
        assert!(error.to_string().contains("ffn_down"), "{error}");
    }
}
