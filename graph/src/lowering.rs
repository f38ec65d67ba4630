//! From a model file to a layer graph: what architecture files build with.

use std::sync::Arc;

use crate::hyper::{HyperError, Keys};
use crate::metadata::MetadataError;
use crate::model_file::{ModelFile, Origin};
use crate::ops::{
    Add, Attention, Embed, Gate, KvWrite, Linear, Nonlinearity, Norm, NormKind, Op, Pooling, Rope,
    RopeStyle, RopeTable, SelectRows,
};
use crate::{
    GraphBuilder, Hyper, KvShape, LayerGraph, NodeIndex, ShapeError, UnitKind, Weight,
    architectures,
};

/// A model that cannot be lowered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LowerError {
    /// No architecture file knows it.
    #[error("architecture {got:?} is not known; known are: {known}")]
    UnknownArchitecture {
        /// What the file says.
        got: String,
        /// All that are known.
        known: String,
    },
    /// A tensor that the architecture needs.
    #[error("{file}: tensor {tensor} is missing ({architecture} needs it); is the file complete?")]
    MissingTensor {
        /// The file.
        file: String,
        /// Internal name.
        tensor: String,
        /// The architecture.
        architecture: String,
    },
    /// A tensor of another shape than the hyper-parameters say.
    #[error("{file}: tensor {tensor}: expected {expected}, got {got}")]
    WrongShape {
        /// The file.
        file: String,
        /// Internal name.
        tensor: String,
        /// Rows x columns by the hyper-parameters.
        expected: String,
        /// Rows x columns in the file.
        got: String,
    },
    /// A tensor in a format that holds no weights.
    #[error("{file}: tensor {tensor}: expected weights, got integers of type {block}")]
    NotWeights {
        /// The file.
        file: String,
        /// Internal name.
        tensor: String,
        /// Its format.
        block: crate::BlockType,
    },
    /// A bad hyper-parameter.
    #[error(transparent)]
    Hyper(#[from] HyperError),
    /// Ops that do not fit together.
    #[error(transparent)]
    Shape(#[from] ShapeError),
}

impl From<MetadataError> for LowerError {
    fn from(error: MetadataError) -> Self {
        Self::Hyper(error.into())
    }
}

/// What the user may choose when a model is lowered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LowerOptions {
    /// Encoders: how the output is pooled instead of what the file says.
    pub pooling: PoolingChoice,
}

/// How an encoder's output is pooled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PoolingChoice {
    /// As the file says, else the mean.
    #[default]
    File,
    /// This way, normalised.
    Pool(Pooling),
    /// This way, as it is.
    Raw(Pooling),
    /// Not at all: the hidden state of each row.
    Rows,
}

/// Lowers a model to its layer graph.
pub fn lower(file: &ModelFile, options: LowerOptions) -> Result<(Hyper, LayerGraph), LowerError> {
    let hyper = Hyper::read(&file.metadata)?;
    let Some(architecture) = architectures::find(&hyper.architecture) else {
        return Err(LowerError::UnknownArchitecture {
            got: hyper.architecture,
            known: architectures::names().collect::<Vec<_>>().join(", "),
        });
    };
    let mut lowering =
        Lowering { file, hyper, options, norm_offset: 0.0, graph: GraphBuilder::default() };
    let output = (architecture.lower)(&mut lowering)?;
    Ok((lowering.hyper, lowering.graph.finish(output)))
}

/// A model being lowered.
pub(crate) struct Lowering<'m> {
    pub(crate) file: &'m ModelFile,
    pub(crate) hyper: Hyper,
    pub(crate) options: LowerOptions,
    /// Added to every norm's weight.
    pub(crate) norm_offset: f32,
    pub(crate) graph: GraphBuilder,
}

/// How the attention of a layer differs between architectures.
#[derive(Clone)]
pub(crate) struct AttentionStyle {
    pub(crate) rope: Arc<RopeTable>,
    pub(crate) rope_style: RopeStyle,
    /// Are queries and keys normalised per head (`attn_q_norm`, `attn_k_norm`)?
    pub(crate) qk_norm: bool,
    pub(crate) window: Option<u32>,
    pub(crate) scale: f32,
    pub(crate) softcap: Option<f32>,
}

type Built = Result<NodeIndex, LowerError>;

impl<'m> Lowering<'m> {
    /// The model's own keys.
    pub(crate) fn keys(&self) -> Result<Keys<'m>, LowerError> {
        let file: &'m ModelFile = self.file;
        Ok(Keys::new(&file.metadata)?)
    }

    fn wrong_shape(&self, tensor: &str, expected: String, got: String) -> LowerError {
        let file = self.file.label.clone();
        LowerError::WrongShape { file, tensor: tensor.to_owned(), expected, got }
    }

    /// A tensor that may be missing, of any shape.
    pub(crate) fn find(&self, name: &str) -> Result<Option<Weight>, LowerError> {
        let Some(tensor) = self.file.tensors.get(name) else { return Ok(None) };
        if tensor.block.is_integer() {
            return Err(LowerError::NotWeights {
                file: self.file.label.clone(),
                tensor: name.to_owned(),
                block: tensor.block,
            });
        }
        Ok(Some(tensor.weight()))
    }

    /// A tensor that must be there, of any shape.
    pub(crate) fn tensor(&self, name: &str) -> Result<Weight, LowerError> {
        self.find(name)?.ok_or_else(|| LowerError::MissingTensor {
            file: self.file.label.clone(),
            tensor: name.to_owned(),
            architecture: self.hyper.architecture.clone(),
        })
    }

    /// A matrix of `rows` x `cols`.
    pub(crate) fn matrix(
        &self,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<Weight, LowerError> {
        let weight = self.tensor(name)?;
        if (weight.rows, weight.cols) != (rows, cols) {
            let got = format!("{} x {}", weight.rows, weight.cols);
            return Err(self.wrong_shape(name, format!("{rows} x {cols}"), got));
        }
        Ok(weight)
    }

    /// A vector of `len` elements.
    pub(crate) fn vector(&self, name: &str, len: usize) -> Result<Weight, LowerError> {
        let weight = self.tensor(name)?;
        if weight.elements() != len {
            return Err(self.wrong_shape(name, len.to_string(), weight.elements().to_string()));
        }
        Ok(weight)
    }

    fn optional_vector(&self, name: &str, len: usize) -> Result<Option<Weight>, LowerError> {
        if self.file.tensors.contains_key(name) {
            self.vector(name, len).map(Some)
        } else {
            Ok(None)
        }
    }

    /// `role = x W^T (+ b)` with the tensors `role.weight` and, if there is one, `role.bias`.
    pub(crate) fn linear(&mut self, role: &str, x: NodeIndex, out: usize) -> Built {
        let width = self.graph.width(x);
        let weight = self.matrix(&format!("{role}.weight"), out, width)?;
        let bias = self.optional_vector(&format!("{role}.bias"), out)?;
        Ok(self.graph.push(role, Linear { weight, bias }, &[x])?)
    }

    /// Norm of each group of `width` elements with the tensors `role.weight` and `role.bias`.
    pub(crate) fn norm(&mut self, role: &str, kind: NormKind, x: NodeIndex, width: usize) -> Built {
        let weight = self.vector(&format!("{role}.weight"), width)?;
        let bias = self.optional_vector(&format!("{role}.bias"), width)?;
        let (eps, weight_offset) = (self.hyper.norm_eps, self.norm_offset);
        Ok(self.graph.push(role, Norm { kind, weight, bias, eps, weight_offset }, &[x])?)
    }

    /// The usual norm of a decoder: root mean square over the whole row.
    pub(crate) fn rms_norm(&mut self, role: &str, x: NodeIndex) -> Built {
        let width = self.graph.width(x);
        self.norm(role, NormKind::Rms, x, width)
    }

    /// Sum of two tensors.
    pub(crate) fn add(&mut self, role: String, a: NodeIndex, b: NodeIndex) -> Built {
        Ok(self.graph.push(role, Add, &[a, b])?)
    }

    /// The token table and its unit.
    pub(crate) fn embed(&mut self, scale: f32) -> Built {
        self.graph.begin_unit(UnitKind::Embed, None);
        let table = self.tensor("token_embd.weight")?;
        if table.cols != self.hyper.embedding {
            let expected = format!("rows of {}", self.hyper.embedding);
            let got = format!("{} x {}", table.rows, table.cols);
            return Err(self.wrong_shape("token_embd.weight", expected, got));
        }
        let op = Embed { table, scale, positions: None, types: None };
        Ok(self.graph.push("token_embd", op, &[])?)
    }

    /// Unit `attn_in`: norm, projections, rope. Returns query, key, value.
    pub(crate) fn attn_in(
        &mut self,
        layer: usize,
        x: NodeIndex,
        style: &AttentionStyle,
    ) -> Result<[NodeIndex; 3], LowerError> {
        self.graph.begin_unit(UnitKind::AttnIn, Some(layer));
        let role = |name: &str| format!("blk.{layer}.{name}");
        let Hyper { heads, kv_heads, head_dim, .. } = self.hyper;
        let x = self.rms_norm(&role("attn_norm"), x)?;
        let [mut query, mut key, value] = self.project_qkv(layer, x)?;
        if style.qk_norm {
            query = self.norm(&role("attn_q_norm"), NormKind::Rms, query, head_dim)?;
            key = self.norm(&role("attn_k_norm"), NormKind::Rms, key, head_dim)?;
        }
        debug_assert_eq!(self.graph.width(query), heads * head_dim);
        debug_assert_eq!(self.graph.width(key), kv_heads * head_dim);
        let rope = Rope { head_dim, style: style.rope_style, table: style.rope.clone() };
        let query = self.graph.push(role("rope_q"), rope.clone(), &[query])?;
        let key = self.graph.push(role("rope_k"), rope, &[key])?;
        Ok([query, key, value])
    }

    /// Checks that block 0 projects to as many heads of the size that the hyper-parameters say.
    pub(crate) fn check_heads(&self) -> Result<(), LowerError> {
        let Hyper { heads, kv_heads, head_dim, embedding, .. } = self.hyper;
        let fused = "blk.0.attn_qkv.weight";
        if self.file.tensors.contains_key(fused) {
            self.matrix(fused, (heads + 2 * kv_heads) * head_dim, embedding)?;
        } else {
            self.matrix("blk.0.attn_q.weight", heads * head_dim, embedding)?;
        }
        Ok(())
    }

    /// Projections to query, key and value, from three tensors or one fused one (`attn_qkv`).
    pub(crate) fn project_qkv(
        &mut self,
        layer: usize,
        x: NodeIndex,
    ) -> Result<[NodeIndex; 3], LowerError> {
        let role = |name: &str| format!("blk.{layer}.{name}");
        let Hyper { heads, kv_heads, head_dim, .. } = self.hyper;
        let (q, kv) = (heads * head_dim, kv_heads * head_dim);
        let fused = role("attn_qkv");
        if !self.file.tensors.contains_key(format!("{fused}.weight").as_str()) {
            return Ok([
                self.linear(&role("attn_q"), x, q)?,
                self.linear(&role("attn_k"), x, kv)?,
                self.linear(&role("attn_v"), x, kv)?,
            ]);
        }
        let parts = [("attn_q", q), ("attn_k", kv), ("attn_v", kv)];
        self.split_linear(&fused, layer, x, &parts).map(|nodes| [nodes[0], nodes[1], nodes[2]])
    }

    /// One tensor whose rows are those of several linears, one after another.
    fn split_linear(
        &mut self,
        fused: &str,
        layer: usize,
        x: NodeIndex,
        parts: &[(&str, usize)],
    ) -> Result<Vec<NodeIndex>, LowerError> {
        let total = parts.iter().map(|(_, rows)| rows).sum();
        let whole = self.matrix(&format!("{fused}.weight"), total, self.graph.width(x))?;
        let mut first = 0;
        let mut nodes = Vec::with_capacity(parts.len());
        for (name, rows) in parts {
            let role = format!("blk.{layer}.{name}");
            let weight = whole.slice_rows(format!("{role}.weight"), first, *rows);
            nodes.push(self.graph.push(role, Linear { weight, bias: None }, &[x])?);
            first += rows;
        }
        Ok(nodes)
    }

    /// Unit `attn`: KV write and attention.
    pub(crate) fn attn(
        &mut self,
        layer: usize,
        [query, key, value]: [NodeIndex; 3],
        window: Option<u32>,
        scale: f32,
        softcap: Option<f32>,
    ) -> Built {
        self.graph.begin_unit(UnitKind::Attn, Some(layer));
        let Hyper { heads, kv_heads, head_dim, causal, .. } = self.hyper;
        let kv = self.graph.kv_layer(KvShape { kv_heads, head_dim, window });
        let write = KvWrite { layer: kv, kv_heads, head_dim };
        let written = self.graph.push(format!("blk.{layer}.kv"), write, &[key, value])?;
        let op = Attention { layer: kv, heads, kv_heads, head_dim, scale, window, causal, softcap };
        Ok(self.graph.push(format!("blk.{layer}.attn"), op, &[query, written])?)
    }

    /// Unit `attn_out`: output projection, an optional norm after it, residual.
    pub(crate) fn attn_out(
        &mut self,
        layer: usize,
        attended: NodeIndex,
        residual: NodeIndex,
        post_norm: Option<&str>,
    ) -> Built {
        self.graph.begin_unit(UnitKind::AttnOut, Some(layer));
        let embedding = self.hyper.embedding;
        let mut y = self.linear(&format!("blk.{layer}.attn_output"), attended, embedding)?;
        if let Some(name) = post_norm {
            y = self.rms_norm(&format!("blk.{layer}.{name}"), y)?;
        }
        self.add(format!("blk.{layer}.attn_residual"), y, residual)
    }

    /// Units `attn_in`, `attn` and `attn_out` of one block.
    pub(crate) fn attention_block(
        &mut self,
        layer: usize,
        x: NodeIndex,
        style: &AttentionStyle,
        post_norm: Option<&str>,
    ) -> Built {
        let qkv = self.attn_in(layer, x, style)?;
        let attended = self.attn(layer, qkv, style.window, style.scale, style.softcap)?;
        self.attn_out(layer, attended, x, post_norm)
    }

    /// Unit `ffn`: norm, gated linears (two tensors, or one fused `ffn_up`), an optional norm after
    /// them, residual.
    pub(crate) fn gated_ffn(
        &mut self,
        layer: usize,
        x: NodeIndex,
        function: Nonlinearity,
        post_norm: Option<&str>,
    ) -> Built {
        self.graph.begin_unit(UnitKind::Ffn, Some(layer));
        let role = |name: &str| format!("blk.{layer}.{name}");
        let Hyper { ffn, embedding, .. } = self.hyper;
        let normed = self.rms_norm(&role("ffn_norm"), x)?;
        let gate_name = format!("{}.weight", role("ffn_gate"));
        let (gate, up) = if self.file.tensors.contains_key(gate_name.as_str()) {
            let gate = self.linear(&role("ffn_gate"), normed, ffn)?;
            (gate, self.linear(&role("ffn_up"), normed, ffn)?)
        } else {
            let parts = [("ffn_gate", ffn), ("ffn_up", ffn)];
            let nodes = self.split_linear(&role("ffn_up"), layer, normed, &parts)?;
            (nodes[0], nodes[1])
        };
        let gated = self.graph.push(role("ffn_act"), Gate { function }, &[gate, up])?;
        let mut y = self.linear(&role("ffn_down"), gated, embedding)?;
        if let Some(name) = post_norm {
            y = self.rms_norm(&role(name), y)?;
        }
        self.add(role("ffn_residual"), y, x)
    }

    /// Unit `head`: the wanted rows, final norm, logits (by the token table if there is no own one).
    pub(crate) fn logits_head(&mut self, x: NodeIndex) -> Built {
        self.graph.begin_unit(UnitKind::Head, None);
        let x = self.graph.push("output_rows", SelectRows, &[x])?;
        let x = self.rms_norm("output_norm", x)?;
        let weight = match self.find("output.weight")? {
            Some(weight) => weight,
            None => self.tensor("token_embd.weight")?,
        };
        let bias = self.optional_vector("output.bias", weight.rows)?;
        Ok(self.graph.push("output", Linear { weight, bias }, &[x])?)
    }

    /// Pushes an op into the current unit.
    pub(crate) fn push(
        &mut self,
        role: impl Into<String>,
        op: impl Into<Op>,
        inputs: &[NodeIndex],
    ) -> Built {
        Ok(self.graph.push(role, op, inputs)?)
    }

    /// Rope pairing of a model whose Hugging Face and GGUF files differ in the order of rows.
    pub(crate) fn permuted_rope_style(&self) -> RopeStyle {
        match self.file.origin {
            Origin::Gguf => RopeStyle::Interleaved,
            Origin::HuggingFace | Origin::Onnx => RopeStyle::Halves,
        }
    }
}
