//! Encoders: hidden states as expressions become the tensors and keys of the `bert` architecture.

use super::OnnxError;
use super::build::Builder;
use super::parts::{Finder, Norm, Part};
use super::value::{Arena, Dense, Expr, Id};
use crate::metadata::Metadata;
use crate::ops::{Nonlinearity, NormKind};

/// One block of an encoder.
struct Block {
    query: Part,
    key: Part,
    value: Part,
    output: Part,
    output_norm: Norm,
    up: Part,
    down: Part,
    layer_norm: Norm,
    heads: usize,
    function: Nonlinearity,
}

/// An encoder found in a graph.
pub(super) struct Encoder {
    blocks: Vec<Block>,
    words: Dense,
    positions: Dense,
    types: Option<Dense>,
    norm: Norm,
    width: usize,
}

impl Finder<'_> {
    /// The block that ends with `id`, and what it begins with.
    fn block(&self, id: Id) -> Result<(Block, Id), OnnxError> {
        let (layer_norm, sum) = self.norm(id, NormKind::Layer)?;
        let (down, activated, middle) = self.residual(sum)?;
        let Expr::Activation(upper, function) = *self.arena.expr(activated) else {
            return Err(self.error("an activation", activated));
        };
        let (up, from) = self.product(upper)?;
        if from != middle {
            return Err(self.error("the norm after attention", from));
        }
        let (output_norm, sum) = self.norm(middle, NormKind::Layer)?;
        let (output, attended, start) = self.residual(sum)?;
        let ([query, key, value], heads) = self.attention(attended, start)?;
        let block =
            Block { query, key, value, output, output_norm, up, down, layer_norm, heads, function };
        Ok((block, start))
    }

    /// Query, key and value of attention over `start`, and the number of heads.
    fn attention(&self, id: Id, start: Id) -> Result<([Part; 3], usize), OnnxError> {
        let width = self.arena.width(id);
        let (parts, heads, scale) = match *self.arena.expr(id) {
            Expr::Attention { query, key, value, heads, scale } => {
                let part = |id| self.product_of(id, start);
                ([part(query)?, part(key)?, part(value)?], heads, scale)
            }
            Expr::PackedAttention { qkv, heads, scale } => {
                let whole = self.product_of(qkv, start)?;
                let part = |n: usize| Part { first: n * width, rows: width, ..whole.clone() };
                ([part(0), part(1), part(2)], heads, scale)
            }
            _ => return Err(self.error("attention", id)),
        };
        let usual = 1.0 / ((width / heads.max(1)) as f64).sqrt();
        if let Some(scale) = scale.filter(|scale| (scale / usual - 1.0).abs() > 1e-5) {
            return Err(self.mismatch(&format!("products scaled by {usual}"), scale));
        }
        Ok((parts, heads))
    }

    /// The sum of embeddings below the first norm.
    fn embeddings(&self, id: Id) -> Result<(Dense, Dense, Option<Dense>), OnnxError> {
        let (mut words, mut positions, mut types) = (None, None, None);
        let mut left = vec![id];
        while let Some(id) = left.pop() {
            let place = match *self.arena.expr(id) {
                Expr::Sum(a, b) if left.len() < 3 => {
                    left.extend([a, b]);
                    continue;
                }
                Expr::Embedded(table) => words.replace(table),
                Expr::Positional(table) => positions.replace(table),
                Expr::Typed(table) => types.replace(table),
                _ => return Err(self.error("the embeddings of tokens", id)),
            };
            if place.is_some() {
                return Err(self.error("one embedding of each sort", id));
            }
        }
        match (words, positions) {
            (Some(words), Some(positions)) => Ok((words, positions, types)),
            _ => Err(self.error("embeddings of tokens and of positions", id)),
        }
    }
}

impl Encoder {
    /// The encoder whose hidden states are `id`.
    pub(super) fn find(arena: &Arena, id: Id) -> Result<Self, OnnxError> {
        let mut blocks = Vec::new();
        let mut at = id;
        loop {
            let from_the_end = blocks.len() + 1;
            let place = format!("block {from_the_end} from the end");
            let finder = Finder { arena, place };
            let (norm, x) = finder.norm(at, NormKind::Layer)?;
            if let Ok((words, positions, types)) = finder.embeddings(x) {
                blocks.reverse();
                let width = arena.width(at);
                return Ok(Self { blocks, words, positions, types, norm, width });
            }
            let (block, start) = finder.block(at)?;
            blocks.push(block);
            // Operands come before what is made of them, so that this ends.
            at = start;
        }
    }

    /// Number of blocks.
    pub(super) fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Adds the tensors and keys.
    pub(super) fn build(
        &self,
        builder: &mut Builder<'_>,
        metadata: &mut Metadata,
    ) -> Result<(), OnnxError> {
        let different = |expected: &str, got: String| OnnxError::Structure {
            place: "encoder".to_owned(),
            expected: expected.to_owned(),
            got,
        };
        let Some(first) = self.blocks.first() else {
            return Err(different("at least one block", "none".to_owned()));
        };
        let (heads, function, eps) = (first.heads, first.function, self.norm.eps);
        for block in &self.blocks {
            if block.heads != heads || block.function != function || block.up.rows != first.up.rows
            {
                return Err(different("blocks that are alike", "others".to_owned()));
            }
            for norm in [block.output_norm, block.layer_norm] {
                if norm.eps != eps {
                    return Err(different(&format!("norms with {eps}"), norm.eps.to_string()));
                }
            }
        }
        let vocabulary = builder.table("token_embd.weight".to_owned(), self.words)?;
        let context = builder.table("position_embd.weight".to_owned(), self.positions)?;
        if let Some(types) = self.types {
            builder.table("token_types.weight".to_owned(), types)?;
        }
        self.norm.put(builder, "token_embd_norm", self.width)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            let role = |name: &str| format!("blk.{layer}.{name}");
            for (name, part) in [
                ("attn_q", &block.query),
                ("attn_k", &block.key),
                ("attn_v", &block.value),
                ("attn_output", &block.output),
                ("ffn_up", &block.up),
                ("ffn_down", &block.down),
            ] {
                part.put(builder, &role(name))?;
            }
            block.output_norm.put(builder, &role("attn_output_norm"), self.width)?;
            block.layer_norm.put(builder, &role("layer_output_norm"), self.width)?;
        }
        metadata.set("general.architecture", "bert");
        for (key, value) in [
            ("bert.block_count", self.blocks.len()),
            ("bert.context_length", context),
            ("bert.embedding_length", self.width),
            ("bert.feed_forward_length", first.up.rows),
            ("bert.attention.head_count", heads),
            ("bert.vocab_size", vocabulary),
        ] {
            metadata.set(key, u32::try_from(value).unwrap_or(u32::MAX));
        }
        metadata.set("bert.attention.layer_norm_epsilon", eps);
        metadata.set("bert.attention.causal", false);
        match function {
            Nonlinearity::GeluErf => {}
            Nonlinearity::GeluTanh => drop(metadata.set("bert.activation", "gelu_tanh")),
            Nonlinearity::Silu => {
                return Err(different("a GELU between the products", "a SiLU".to_owned()));
            }
        }
        Ok(())
    }
}
