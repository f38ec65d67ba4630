//! Decoders: logits as an expression become the tensors and keys of a decoder architecture.

use super::OnnxError;
use super::build::Builder;
use super::constants::Constants;
use super::parts::{Finder, Norm, Part};
use super::rope::Positions;
use super::value::{Arena, Dense, Expr, Grouped, Id, Rotary};
use crate::metadata::Metadata;
use crate::ops::NormKind;

/// One block of a decoder.
struct Block {
    attn_norm: Norm,
    query: Part,
    key: Part,
    value: Part,
    /// Norms of each head of queries and keys.
    head_norms: Option<[Norm; 2]>,
    output: Part,
    ffn_norm: Norm,
    gate: Part,
    up: Part,
    down: Part,
    facts: Facts,
}

/// What all blocks have alike.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Facts {
    heads: usize,
    kv_heads: usize,
    head: usize,
    ffn: usize,
    window: Option<u32>,
    rotary: Rotary,
}

/// A decoder found in a graph.
pub(super) struct Decoder {
    blocks: Vec<Block>,
    words: Dense,
    norm: Norm,
    head: Part,
    width: usize,
}

impl Finder<'_> {
    /// The block that ends with `id`, and what it begins with.
    fn decoder_block(&self, id: Id) -> Result<(Block, Id), OnnxError> {
        let (down, gated, middle) = self.residual(id)?;
        let Expr::Gated { gate, up } = *self.arena.expr(gated) else {
            return Err(self.error("a gated activation", gated));
        };
        let (gate, normed) = self.product(gate)?;
        let up = self.product_of(up, normed)?;
        let (ffn_norm, of) = self.norm(normed, NormKind::Rms)?;
        if of != middle {
            return Err(self.error("the sum after attention", of));
        }
        let (output, attended, start) = self.residual(middle)?;
        let Expr::Grouped(grouped) = self.arena.expr(attended) else {
            return Err(self.error("causal attention", attended));
        };
        let head = self.arena.width(attended) / grouped.heads.max(1);
        let usual = (1.0 / (head as f64).sqrt()) as f32;
        if let Some(scale) = grouped.scale.filter(|scale| (scale / usual - 1.0).abs() > 1e-5) {
            return Err(self.mismatch(&format!("products scaled by {usual}"), scale));
        }
        let (parts, head_norms, rotary, normed) = self.projections(grouped, head)?;
        let [query, key, value] = parts;
        let (attn_norm, of) = self.norm(normed, NormKind::Rms)?;
        if of != start {
            return Err(self.error("the block's input", of));
        }
        let facts = Facts {
            heads: grouped.heads,
            kv_heads: grouped.kv_heads,
            head,
            ffn: gate.rows,
            window: grouped.window,
            rotary,
        };
        let block = Block {
            attn_norm,
            query,
            key,
            value,
            head_norms,
            output,
            ffn_norm,
            gate,
            up,
            down,
            facts,
        };
        Ok((block, start))
    }

    /// Query, key and value; norms of their heads; rotary positions; and what they are products of.
    #[allow(clippy::type_complexity)]
    fn projections(
        &self,
        grouped: &Grouped,
        head: usize,
    ) -> Result<([Part; 3], Option<[Norm; 2]>, Rotary, Id), OnnxError> {
        let rotary = |own: Option<Rotary>| {
            let one = match (own, grouped.rotary) {
                (Some(_), Some(_)) => Err(self.mismatch("positions once", "positions twice")),
                (own, within) => Ok(own.or(within)),
            };
            one?.ok_or_else(|| self.mismatch("rotary positions", "none"))
        };
        let Some((key, value)) = grouped.key_value else {
            let (whole, x) = self.product(grouped.query)?;
            let (q, kv) = (grouped.heads * head, grouped.kv_heads * head);
            let part = |first, rows| Part { first, rows, ..whole.clone() };
            let parts = [part(0, q), part(q, kv), part(q + kv, kv)];
            return Ok((parts, None, rotary(None)?, x));
        };
        let (query, query_norm, query_rotary) = self.head_path(grouped.query)?;
        let (key, key_norm, key_rotary) = self.head_path(key)?;
        if query_rotary != key_rotary {
            return Err(self.mismatch("the same positions for queries and keys", "others"));
        }
        let head_norms = match (query_norm, key_norm) {
            (None, None) => None,
            (Some(query), Some(key)) => Some([query, key]),
            _ => return Err(self.mismatch("norms of queries and keys, or neither", "one of them")),
        };
        let (query, x) = self.product(query)?;
        let parts = [query, self.product_of(key, x)?, self.product_of(value, x)?];
        Ok((parts, head_norms, rotary(query_rotary)?, x))
    }

    /// What queries or keys are before positions and norms, and these.
    fn head_path(&self, id: Id) -> Result<(Id, Option<Norm>, Option<Rotary>), OnnxError> {
        let (id, rotary) = match *self.arena.expr(id) {
            Expr::Rotated { x, rotary } => (x, Some(rotary)),
            _ => (id, None),
        };
        match self.arena.expr(id) {
            Expr::Norm { .. } => {
                let (norm, x) = self.norm(id, NormKind::Rms)?;
                Ok((x, Some(norm), rotary))
            }
            _ => Ok((id, None, rotary)),
        }
    }
}

impl Decoder {
    /// The decoder whose logits are `id`.
    pub(super) fn find(arena: &Arena, id: Id) -> Result<Self, OnnxError> {
        let finder = |place: String| Finder { arena, place };
        let at_end = finder("head".to_owned());
        let (head, mut normed) = at_end.product(id)?;
        // Which rows have logits is said by each step.
        if let Expr::Last(rows) = *arena.expr(normed) {
            normed = rows;
        }
        let (norm, mut at) = at_end.norm(normed, NormKind::Rms)?;
        let width = arena.width(at);
        let mut blocks = Vec::new();
        loop {
            if let Expr::Embedded(words) = *arena.expr(at) {
                blocks.reverse();
                return Ok(Self { blocks, words, norm, head, width });
            }
            let finder = finder(format!("block {} from the end", blocks.len() + 1));
            let (block, start) = finder.decoder_block(at)?;
            blocks.push(block);
            // Operands come before what is made of them, so that this ends.
            at = start;
        }
    }

    /// Adds the tensors and keys. `kind` is the model's type as its configuration calls it.
    pub(super) fn build(
        &self,
        constants: &Constants,
        builder: &mut Builder<'_>,
        metadata: &mut Metadata,
        kind: Option<&str>,
    ) -> Result<(), OnnxError> {
        let (facts, head_norms) = self.check()?;
        let positions = Positions::read(constants, facts.rotary)?;
        let vocabulary = builder.table("token_embd.weight".to_owned(), self.words)?;
        self.head.put(builder, "output")?;
        self.norm.put(builder, "output_norm", self.width)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            block.put(builder, layer, self.width)?;
        }
        let architecture = match kind {
            _ if head_norms => "qwen3",
            Some("qwen2") if facts.window.is_none() => "qwen2",
            _ => "llama",
        };
        metadata.set("general.architecture", architecture);
        let key = |name: &str| format!("{architecture}.{name}");
        for (name, value) in [
            ("block_count", self.blocks.len()),
            ("embedding_length", self.width),
            ("feed_forward_length", facts.ffn),
            ("attention.head_count", facts.heads),
            ("attention.head_count_kv", facts.kv_heads),
            ("attention.key_length", facts.head),
            ("attention.value_length", facts.head),
            ("vocab_size", vocabulary),
            ("context_length", positions.count),
            ("rope.dimension_count", 2 * positions.pairs()),
        ] {
            metadata.set(&key(name), u32::try_from(value).unwrap_or(u32::MAX));
        }
        if let Some(window) = facts.window {
            metadata.set(&key("attention.sliding_window"), window);
        }
        metadata.set(&key("attention.layer_norm_rms_epsilon"), self.norm.eps);
        metadata.set(&key("rope.freq_base"), positions.base);
        if let Some(divisors) = &positions.divisors {
            builder.numbers(crate::shape::ROPE_DIVISORS, divisors)?;
        }
        Ok(())
    }

    /// Checks that blocks are alike; what they are, and if heads have norms.
    fn check(&self) -> Result<(Facts, bool), OnnxError> {
        let different = |expected: String, got: String| OnnxError::Structure {
            place: "decoder".to_owned(),
            expected,
            got,
        };
        let Some(first) = self.blocks.first() else {
            return Err(different("at least one block".to_owned(), "none".to_owned()));
        };
        let (facts, head_norms) = (first.facts, first.head_norms.is_some());
        let eps = self.norm.eps;
        for (layer, block) in self.blocks.iter().enumerate() {
            if block.facts != facts || block.head_norms.is_some() != head_norms {
                let expected = format!("blocks like the first, {facts:?}");
                return Err(different(expected, format!("block {layer}, {:?}", block.facts)));
            }
            let norms = [block.attn_norm, block.ffn_norm];
            let of_heads = block.head_norms.iter().flatten();
            if let Some(norm) = norms.iter().chain(of_heads).find(|norm| norm.eps != eps) {
                return Err(different(format!("norms with {eps}"), norm.eps.to_string()));
            }
        }
        Ok((facts, head_norms))
    }
}

impl Block {
    fn put(&self, builder: &mut Builder<'_>, layer: usize, width: usize) -> Result<(), OnnxError> {
        let role = |name: &str| format!("blk.{layer}.{name}");
        for (name, part) in [
            ("attn_q", &self.query),
            ("attn_k", &self.key),
            ("attn_v", &self.value),
            ("attn_output", &self.output),
            ("ffn_gate", &self.gate),
            ("ffn_up", &self.up),
            ("ffn_down", &self.down),
        ] {
            part.put(builder, &role(name))?;
        }
        if let Some([query, key]) = self.head_norms {
            query.put(builder, &role("attn_q_norm"), self.facts.head)?;
            key.put(builder, &role("attn_k_norm"), self.facts.head)?;
        }
        self.attn_norm.put(builder, &role("attn_norm"), width)?;
        self.ffn_norm.put(builder, &role("ffn_norm"), width)
    }
}
