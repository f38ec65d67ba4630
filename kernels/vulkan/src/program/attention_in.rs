//! What lies between the projections and attention, in one kernel: norms of heads, rope, KV pages.

use std::sync::Arc;

use trefoil_graph::ops::{Attention, KvWrite, NormKind, Op, Rope, RopeStyle};
use trefoil_graph::{LayerGraph, NodeIndex, Segment};

use super::Emit;
use crate::dispatch::{Dispatch, Place, Spot, StepField};

/// Subgroups of a workgroup where there are many rows; each takes a head.
const SUBGROUPS: u32 = 4;

/// Heads on their way from a tensor to where they are needed: perhaps a norm, perhaps rope.
#[derive(Debug)]
pub(super) struct Heads {
    /// The tensor that is read.
    pub(super) source: NodeIndex,
    /// Root mean square norm of each head.
    pub(super) norm: Option<NodeIndex>,
    /// Rope.
    pub(super) rope: Option<NodeIndex>,
    /// What comes out: the last of the above.
    pub(super) result: NodeIndex,
}

impl Heads {
    /// Follows `result` back; `alone` says whether a tensor of this segment has one reader only.
    fn new(
        graph: &LayerGraph,
        result: NodeIndex,
        reader: NodeIndex,
        head_dim: usize,
        alone: impl Fn(NodeIndex, NodeIndex) -> bool,
    ) -> Self {
        let mut heads = Self { source: result, norm: None, rope: None, result };
        let mut reader = reader;
        if let Op::Rope(op) = &graph.node(heads.source).op
            && op.head_dim == head_dim
            && alone(heads.source, reader)
        {
            heads.rope = Some(heads.source);
            (reader, heads.source) = (heads.source, graph.inputs(heads.source)[0]);
        }
        if let Op::Norm(op) = &graph.node(heads.source).op
            && op.kind == NormKind::Rms
            && op.bias.is_none()
            && op.weight.elements() == head_dim
            && alone(heads.source, reader)
        {
            heads.norm = Some(heads.source);
            heads.source = graph.inputs(heads.source)[0];
        }
        heads
    }

    fn rope_op<'g>(&self, graph: &'g LayerGraph) -> Option<&'g Rope> {
        match &graph.node(self.rope?).op {
            Op::Rope(op) => Some(op),
            _ => None,
        }
    }
}

/// What a KV write's kernel does.
#[derive(Debug)]
pub(super) struct AttentionIn {
    /// The attention that comes next and reads what was written; its own kernel may do all of this.
    pub(super) attention: Option<NodeIndex>,
    /// That attention's queries, where they are normed or turned on the way.
    pub(super) query: Option<Heads>,
    /// Keys; their result is stored.
    pub(super) key: Heads,
    /// Values, stored as they are.
    pub(super) value: NodeIndex,
}

impl AttentionIn {
    /// What the kernel of KV write `node` does; `alone(x, reader)` says whether x is made in this
    /// segment and `reader` alone reads it.
    pub(super) fn new(
        graph: &LayerGraph,
        segment: &Segment,
        node: NodeIndex,
        op: &KvWrite,
        alone: impl Fn(NodeIndex, NodeIndex) -> bool,
    ) -> Self {
        let inputs = graph.inputs(node);
        let key = Heads::new(graph, inputs[0], node, op.head_dim, &alone);
        // The next in the segment's order, so that no other attention uses the counters between.
        let mut later = segment.nodes.iter().skip_while(|&&other| other != node).skip(1);
        let attention = later
            .find(|&&other| matches!(graph.node(other).op, Op::Attention(_) | Op::KvWrite(_)))
            .copied()
            .filter(|&next| {
                matches!(graph.node(next).op, Op::Attention(_)) && graph.inputs(next)[1] == node
            });
        let query = attention.and_then(|attention| {
            let result = graph.inputs(attention)[0];
            let query = Heads::new(graph, result, attention, op.head_dim, &alone);
            // One table and one way of turning for both.
            let same = match (query.rope_op(graph), key.rope_op(graph)) {
                (Some(a), Some(b)) => a.style == b.style && Arc::ptr_eq(&a.table, &b.table),
                (None, None) => query.norm.is_some(),
                _ => false,
            };
            same.then_some(query)
        });
        Self { attention, query, key, value: inputs[1] }
    }

    /// Nodes that need no kernel of their own.
    pub(super) fn absorbed(&self) -> impl Iterator<Item = NodeIndex> {
        let all = self.query.iter().chain([&self.key]);
        all.flat_map(|heads| heads.norm.into_iter().chain(heads.rope))
    }
}

impl Emit<'_> {
    /// Weight and epsilon of a norm of heads.
    fn head_norm(&self, heads: Option<&Heads>) -> (Option<Spot>, f32) {
        match heads.and_then(|heads| heads.norm) {
            Some(norm) => match &self.graph().node(norm).op {
                Op::Norm(op) => (self.vector(norm, 0), op.eps),
                _ => (None, 0.0),
            },
            None => (None, 0.0),
        }
    }

    /// What attention's kernel does before its own work, where every row is the only one of its
    /// sequence and the KV write comes right before it; else the KV write has a kernel of its own.
    pub(super) fn entry(&self, id: NodeIndex, op: &Attention, written: NodeIndex) -> Option<Entry> {
        let counts = self.counts;
        let write = self.program.fusion.writes.get(&written)?;
        let alone = counts.tokens == counts.sequences && self.attention_tiles(op).is_none();
        let query = write.query.as_ref().filter(|_| write.attention == Some(id))?;
        if !alone || !op.causal {
            return None;
        }
        let (query_weight, query_eps) = self.head_norm(Some(query));
        let (key_weight, key_eps) = self.head_norm(Some(&write.key));
        let same_eps = query_weight.is_none() || key_weight.is_none() || query_eps == key_eps;
        let rope = write.key.rope_op(self.graph());
        let pairs = rope.map_or(0, |rope| rope.table.frequencies.len() as u32);
        let long = rope.is_some_and(|rope| rope.table.long_frequencies.is_some());
        let entry = Entry {
            reads: [query.source, write.key.source, write.value].map(|x| self.tensor(x)),
            weights: [query_weight, key_weight],
            turns: rope.map(|rope| self.turns(&rope.table)),
            halves: rope.is_some_and(|rope| rope.style == RopeStyle::Halves),
            norm_query: query_weight.is_some(),
            norm_key: key_weight.is_some(),
            pairs: pairs | u32::from(long) << 31,
            eps: if query_weight.is_some() { query_eps } else { key_eps },
        };
        same_eps.then_some(entry)
    }

    /// The kernel of a KV write, with all that it absorbed.
    pub(super) fn attention_in(&mut self, id: NodeIndex, op: &KvWrite) {
        let write = &self.program.fusion.writes[&id];
        let graph = self.graph();
        let in_entry = write.attention.is_some_and(|attention| match &graph.node(attention).op {
            Op::Attention(op) => self.entry(attention, op, id).is_some(),
            _ => false,
        });
        if in_entry {
            return;
        }
        let query = write.query.as_ref();
        let (query_weight, query_eps) = self.head_norm(query);
        let (key_weight, key_eps) = self.head_norm(Some(&write.key));
        let rope = write.key.rope_op(graph);
        let heads = query.map_or(0, |query| self.width(query.result) / op.head_dim as u32);
        let norms = [query_weight.is_some(), key_weight.is_some()];
        let halves = rope.is_some_and(|rope| rope.style == RopeStyle::Halves);
        let pairs = rope.map_or(0, |rope| rope.table.frequencies.len() as u32);
        let long = rope.is_some_and(|rope| rope.table.long_frequencies.is_some());
        let kv_heads = op.kv_heads as u32;
        let dispatch = self
            .heads_kernel(heads + 2 * kv_heads, op.head_dim, halves, norms)
            .read_if(query.map(|query| self.tensor(query.source)))
            .read(self.tensor(write.key.source))
            .read(self.tensor(write.value))
            .read_if(query_weight)
            .read_if(key_weight)
            .read_if(rope.map(|rope| self.turns(&rope.table)))
            .read((Place::Step(StepField::Positions), 0))
            .read((Place::Step(StepField::RowSequences), 0))
            .read((Place::Step(StepField::Sequences), 0))
            .read((Place::Step(StepField::Pages), 0))
            .write_if(query.map(|query| self.tensor(query.result)))
            .update((self.program.layout.kv_place(op.layer), 0))
            .words([heads, kv_heads, pairs, u32::from(long)])
            .words([query_eps, key_eps].map(f32::to_bits));
        self.push(dispatch);
    }

    fn heads_kernel(
        &self,
        heads: u32,
        head_dim: usize,
        halves: bool,
        norms: [bool; 2],
    ) -> Dispatch {
        let counts = self.counts;
        let subgroup = self.program.features.subgroup;
        let subgroups = if self.few(counts.tokens) { 1 } else { SUBGROUPS };
        let constants = [
            subgroups * subgroup,
            subgroup,
            head_dim as u32,
            u32::from(counts.half),
            counts.page_tokens,
            u32::from(halves),
            u32::from(norms[0]),
            u32::from(norms[1]),
        ];
        Dispatch::new("attention_in", &constants, [heads.div_ceil(subgroups), counts.tokens, 1])
    }
}

/// What attention's kernel does with queries, keys and values before its own work.
pub(super) struct Entry {
    /// Queries, keys, values.
    reads: [Spot; 3],
    /// Weights of the norms of queries and keys.
    weights: [Option<Spot>; 2],
    turns: Option<Spot>,
    /// Does the second element of a turned pair lie half of them behind the first?
    pub(super) halves: bool,
    pub(super) norm_query: bool,
    pub(super) norm_key: bool,
    /// Turned pairs; the highest bit: long sequences have other angles.
    pub(super) pairs: u32,
    pub(super) eps: f32,
}

impl Entry {
    /// Adds what is read to a launch.
    pub(super) fn reads(&self, dispatch: Dispatch) -> Dispatch {
        let dispatch = self.reads.iter().fold(dispatch, |dispatch, &spot| dispatch.read(spot));
        let optional = self.weights.into_iter().chain([self.turns]);
        optional.fold(dispatch, Dispatch::read_if)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use trefoil_graph::{LowerOptions, ModelFile, UnitId, UnitKind, lower};

    use super::*;
    use crate::program::fusion::Fusion;
    use crate::program::layout::Layout;

    fn model(name: &str) -> LayerGraph {
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/models");
        let file = ModelFile::open(&models.join(name).join("model-f32.gguf")).expect("opens");
        lower(&file, LowerOptions::default()).expect("lowers").1
    }

    fn units(graph: &LayerGraph, wanted: impl Fn(UnitKind) -> bool) -> Vec<UnitId> {
        let ids = (0..graph.units().len()).map(UnitId);
        ids.filter(|&id| wanted(graph.unit(id).kind)).collect()
    }

    /// Names of block 1's ops that a segment's KV writes absorb, without the block's prefix.
    fn absorbed(graph: &LayerGraph, segment: &Segment) -> BTreeSet<String> {
        let fusion = Fusion::new(graph, segment);
        fusion
            .absorbed
            .keys()
            .filter(|&&node| graph.unit(graph.node(node).unit).layer == Some(1))
            .map(|&node| {
                let name = &graph.node(node).name;
                name.strip_prefix("blk.1.").unwrap_or(name).to_owned()
            })
            .collect()
    }

    #[test]
    fn norms_and_ropes_of_heads_run_in_the_kv_write() {
        let ropes = ["rope_q", "rope_k"];
        let all = ["attn_q_norm", "attn_k_norm", "rope_q", "rope_k"];
        for (name, want) in [
            ("llama", &ropes[..]),
            ("phi3-longrope", &ropes),
            ("gemma3", &all),
            ("qwen3moe", &all),
            ("bert", &[]),
        ] {
            let graph = model(name);
            let segment = graph.segment(&units(&graph, |_| true));
            let want: BTreeSet<String> = want.iter().map(|&name| name.to_owned()).collect();
            assert_eq!(absorbed(&graph, &segment), want, "{name}");
        }
    }

    #[test]
    fn what_another_segment_reads_or_makes_is_not_absorbed() {
        let graph = model("gemma3");
        for kinds in [&[UnitKind::AttnIn][..], &[UnitKind::Attn, UnitKind::AttnOut]] {
            let segment = graph.segment(&units(&graph, |kind| kinds.contains(&kind)));
            assert_eq!(absorbed(&graph, &segment), BTreeSet::new(), "{kinds:?}");
        }
    }

    #[test]
    fn the_kernel_writes_nothing_that_it_reads() {
        for name in ["llama", "gemma3", "qwen3moe", "phi3-longrope"] {
            let graph = model(name);
            let segment = graph.segment(&units(&graph, |_| true));
            let fusion = Fusion::new(&graph, &segment);
            let layout = Layout::new(&graph, &segment, &fusion, |_| 4, usize::MAX);
            assert!(!fusion.writes.is_empty(), "{name}");
            for write in fusion.writes.values() {
                let query = write.query.as_ref().expect("queries are turned");
                let read = [query.source, write.key.source, write.value].map(|x| layout.place(x));
                assert!(!read.contains(&layout.place(query.result)), "{name}");
                assert!(write.attention.is_some(), "{name}");
                // All of them live at once.
                let places: BTreeSet<_> = read.into_iter().collect();
                assert_eq!(places.len(), 3, "{name}");
            }
        }
    }
}
