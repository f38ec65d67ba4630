//! Shapes of models: hyper-parameters of well-known ones, what tensors and metadata follow from
//! them, and model files without weights, whose tensors lie in address space that holds nothing:
//! enough to lower, to count and to plan.

mod table;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::Arc;

use crate::metadata::Metadata;
use crate::model_file::{ModelFile, Origin, Tensor};
use crate::{BlockType, ExpertHyper, Storage};

pub use table::{SHAPES, UnknownShape};

/// Name of the tensor that holds the divisors of scaled rope frequencies.
pub const ROPE_DIVISORS: &str = "rope_freqs.weight";

/// Llama 3's scaling of rope frequencies.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct RopeScaling {
    /// By how much long waves are slowed.
    pub factor: f64,
    /// Waves that turn fewer times than this in the original context are slowed in full.
    pub low: f64,
    /// Waves that turn more often than this are kept.
    pub high: f64,
    /// Positions before the scaling.
    pub original_context: f64,
}

/// All sizes of a decoder, and the few numbers beside them that a model file states.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
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
    /// Width of the feed-forward hidden layer; of a mixture, the width that its dense sister has.
    pub ffn: usize,
    /// Rows of the token table.
    pub vocabulary: usize,
    /// Does the token table make the logits too?
    pub tied: bool,
    /// Positions it was trained for.
    pub context: usize,
    /// Mixture of experts, if it is one.
    pub experts: Option<ExpertHyper>,
    /// Base of the rope frequencies.
    pub rope_base: f32,
    /// Scaling of the rope frequencies, if they are scaled.
    pub rope_scaling: Option<RopeScaling>,
    /// What RMS norms add to the mean square.
    pub norm_eps: f32,
}

impl fmt::Display for ModelShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl ModelShape {
    /// Divisors of the `head_dim / 2` rope frequencies ([`ROPE_DIVISORS`]), if they are scaled.
    pub fn rope_divisors(&self) -> Option<Vec<f32>> {
        let scaling = self.rope_scaling?;
        let divisor = |pair: usize| {
            let exponent = 2.0 * pair as f64 / self.head_dim as f64;
            let frequency = f64::from(self.rope_base).powf(-exponent);
            let turns = scaling.original_context * frequency / std::f64::consts::TAU;
            let kept = ((turns - scaling.low) / (scaling.high - scaling.low)).clamp(0.0, 1.0);
            (1.0 / ((1.0 - kept) / scaling.factor + kept)) as f32
        };
        Some((0..self.head_dim / 2).map(divisor).collect())
    }

    /// Numbers that training sets: elements of all tensors but the rope's divisors.
    pub fn parameters(&self) -> u64 {
        let trained = self.tensors().into_iter().filter(|(name, _)| name != ROPE_DIVISORS);
        trained.map(|(_, shape)| shape.iter().product::<u64>()).sum()
    }

    /// Names and shapes (outermost first) of all tensors, in the order of a written file.
    pub fn tensors(&self) -> Vec<(String, Vec<u64>)> {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut all = Vec::new();
        let mut push = |name: String, shape: &[usize]| {
            all.push((name, shape.iter().map(|&size| size as u64).collect()));
        };
        push("token_embd.weight".to_owned(), &[self.vocabulary, self.embedding]);
        if !self.tied {
            push("output.weight".to_owned(), &[self.vocabulary, self.embedding]);
        }
        push("output_norm.weight".to_owned(), &[self.embedding]);
        if self.rope_scaling.is_some() {
            push(ROPE_DIVISORS.to_owned(), &[self.head_dim / 2]);
        }
        for layer in 0..self.layers {
            let mut push = |role: &str, shape: &[usize]| push(format!("blk.{layer}.{role}"), shape);
            push("attn_norm.weight", &[self.embedding]);
            for (role, rows) in [("attn_q", q), ("attn_k", kv), ("attn_v", kv)] {
                push(&format!("{role}.weight"), &[rows, self.embedding]);
                if self.architecture == "qwen2" {
                    push(&format!("{role}.bias"), &[rows]);
                }
            }
            push("attn_output.weight", &[self.embedding, q]);
            if self.architecture.starts_with("qwen3") {
                push("attn_q_norm.weight", &[self.head_dim]);
                push("attn_k_norm.weight", &[self.head_dim]);
            }
            push("ffn_norm.weight", &[self.embedding]);
            match self.experts {
                None => {
                    push("ffn_gate.weight", &[self.ffn, self.embedding]);
                    push("ffn_up.weight", &[self.ffn, self.embedding]);
                    push("ffn_down.weight", &[self.embedding, self.ffn]);
                }
                Some(ExpertHyper { count, ffn, .. }) => {
                    push("ffn_gate_inp.weight", &[count, self.embedding]);
                    push("ffn_gate_exps.weight", &[count, ffn, self.embedding]);
                    push("ffn_up_exps.weight", &[count, ffn, self.embedding]);
                    push("ffn_down_exps.weight", &[count, self.embedding, ffn]);
                }
            }
        }
        all
    }

    /// Metadata of a file of this shape, without a tokenizer. That rope frequencies are scaled is
    /// said by the tensor [`ROPE_DIVISORS`] alone, as in published files.
    pub fn metadata(&self) -> Metadata {
        let mut metadata = Metadata::new();
        metadata.set("general.architecture", self.architecture);
        metadata.set("general.name", self.name);
        let key = |name: &str| format!("{}.{name}", self.architecture);
        for (name, size) in [
            ("block_count", self.layers),
            ("context_length", self.context),
            ("embedding_length", self.embedding),
            ("feed_forward_length", self.ffn),
            ("attention.head_count", self.heads),
            ("attention.head_count_kv", self.kv_heads),
            ("attention.key_length", self.head_dim),
            ("attention.value_length", self.head_dim),
            ("rope.dimension_count", self.head_dim),
            ("vocab_size", self.vocabulary),
        ] {
            metadata.set(&key(name), size as u32);
        }
        metadata.set(&key("rope.freq_base"), self.rope_base);
        metadata.set(&key("attention.layer_norm_rms_epsilon"), self.norm_eps);
        if let Some(experts) = self.experts {
            metadata.set(&key("expert_count"), experts.count as u32);
            metadata.set(&key("expert_used_count"), experts.used as u32);
            metadata.set(&key("expert_feed_forward_length"), experts.ffn as u32);
        }
        metadata
    }

    /// A model file of this shape whose tensors have the formats that `format` says and hold
    /// nothing: they read as zeroes, and memory that is never touched is never taken. Only the
    /// rope's divisors are there, in F32, because a model is not lowered without them. A format
    /// whose blocks do not fill a row is an error.
    pub fn without_weights(
        &self,
        format: impl Fn(&str, &[u64]) -> BlockType,
    ) -> io::Result<ModelFile> {
        let divisors = self.rope_divisors().unwrap_or_default();
        let divisors = divisors.iter().flat_map(|divisor| divisor.to_le_bytes()).collect();
        let storage = Arc::new(Storage::Owned(divisors));
        let (given, empty): (Vec<_>, Vec<_>) =
            self.tensors().into_iter().partition(|(name, _)| name == ROPE_DIVISORS);
        let mut tensors = reserve(self.name, empty, format)?;
        for (name, shape) in given {
            let (name, block) = (Arc::<str>::from(name), BlockType::F32);
            let tensor =
                Tensor { name: name.clone(), block, shape, storage: storage.clone(), offset: 0 };
            tensors.insert(name, tensor);
        }
        Ok(ModelFile {
            origin: Origin::Gguf,
            label: format!("shape {}", self.name),
            metadata: self.metadata(),
            tensors,
            folder: None,
        })
    }
}

/// Tensors of these names and shapes, in the formats that `format` says, in address space that holds
/// nothing. `what` names the model in errors: a format whose blocks do not fill a row, and sizes that no
/// address space has.
pub(crate) fn reserve(
    what: &str,
    shapes: Vec<(String, Vec<u64>)>,
    format: impl Fn(&str, &[u64]) -> BlockType,
) -> io::Result<BTreeMap<Arc<str>, Tensor>> {
    let wrong = |text: String| io::Error::new(io::ErrorKind::InvalidInput, text);
    let mut places = Vec::with_capacity(shapes.len());
    let mut end = 0u64;
    for (name, shape) in shapes {
        let block = format(&name, &shape);
        let columns = shape.last().copied().unwrap_or(1);
        let rows = shape.iter().rev().skip(1).try_fold(1u64, |all, &size| all.checked_mul(size));
        let row = block
            .row_bytes(columns)
            .ok_or_else(|| wrong(format!("{what}: {name}: rows are no whole blocks of {block}")))?;
        let start = end;
        let bytes = rows.and_then(|rows| rows.checked_mul(row));
        let most = |end: &u64| *end < 1 << 46;
        end = bytes
            .and_then(|bytes| start.checked_add(bytes)?.checked_next_multiple_of(64))
            .filter(most)
            .ok_or_else(|| wrong(format!("{what}: {name}: sizes beyond any model, {shape:?}")))?;
        places.push((Arc::<str>::from(name), shape, block, start));
    }
    let reserved = Storage::reserve(end as usize)?;
    let tensors = places.into_iter().map(|(name, shape, block, offset)| {
        let storage = reserved.clone();
        (name.clone(), Tensor { name, block, shape, storage, offset })
    });
    Ok(tensors.collect())
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
            6.74, 8.03, 1.236, 3.21, 1.54, 7.62, 14.77, 32.76, 0.596, 1.72, 4.02, 8.19, 14.77,
            30.53,
        ];
        assert_eq!(SHAPES.len(), billions.len());
        for (shape, billions) in SHAPES.iter().zip(billions) {
            let parameters = shape.parameters() as f64;
            let share = parameters / 1e9 / billions;
            assert!((share - 1.0).abs() < 0.005, "{shape}: {parameters}");
            let file = shape.without_weights(uniform(BlockType::Q8_0)).expect(shape.name);
            let (hyper, graph) = lower(&file, LowerOptions::default()).expect(shape.name);
            assert_eq!((hyper.layers, hyper.norm_eps), (shape.layers, shape.norm_eps));
            assert_eq!(graph.kv().len(), shape.layers);
            assert!(graph.cost(&StepShape::decode(0)).weight_bytes < parameters * 1.1);
        }
    }

    #[test]
    fn names_are_read_whatever_the_case() {
        for shape in SHAPES {
            assert_eq!(shape.to_string().to_uppercase().parse(), Ok(*shape));
        }
        let message = "gpt-5".parse::<ModelShape>().unwrap_err().to_string();
        assert!(message.contains("gpt-5"), "{message}");
        assert!(ModelShape::names().all(|name| message.contains(name)), "{message}");
    }

    #[test]
    fn rope_divisors_go_from_one_to_the_factor() {
        let shape = ModelShape::find("llama-3.2-1b").expect("known");
        let divisors = shape.rope_divisors().expect("scaled");
        assert_eq!((divisors.len(), divisors[0], divisors[31]), (32, 1.0, 32.0));
        assert!(divisors.is_sorted());
        assert!(divisors.iter().any(|&d| d > 1.0 && d < 32.0), "some lie between: {divisors:?}");
        // They can be read from a file that holds no other weights, in F32 whatever was asked.
        let file = shape.without_weights(|_, _| BlockType::F16).expect("fits");
        let tensor = &file.tensors[ROPE_DIVISORS];
        let bytes: Vec<u8> = divisors.iter().flat_map(|d| d.to_le_bytes()).collect();
        assert_eq!((tensor.block, tensor.storage.bytes()), (BlockType::F32, &bytes[..]));
        let plain = ModelShape::find("qwen3-8b").expect("known");
        assert_eq!(plain.rope_divisors(), None);
        let file = plain.without_weights(|_, _| BlockType::F16).expect("fits");
        assert!(!file.tensors.contains_key(ROPE_DIVISORS));
    }

    #[test]
    fn formats_that_do_not_fit_are_refused() {
        let shape = ModelShape { ffn: 100, ..SHAPES[0] };
        let error = shape.without_weights(uniform(BlockType::Q4_K)).expect_err("100 columns");
        assert!(error.to_string().contains("ffn_down"), "{error}");
    }
}
