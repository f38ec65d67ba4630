//! Rope, KV pages, attention.

use trefoil_graph::NodeIndex;
use trefoil_graph::ops::{Attention, KvWrite, Rope, RopeStyle};

use super::Emit;
use crate::dispatch::{Counts, Dispatch, Place, StepField};

/// Positions that a workgroup of attention takes: the fixed boundaries of its sums, as
/// `attention_vec.comp` has them.
pub const SPLIT: u32 = 256;

/// Threads of an attention workgroup, where the subgroup is not larger.
const THREADS: u32 = 128;

/// Largest scratch that attention takes for many rows at once.
const PARTIALS: u64 = 64 << 20;

/// Bytes of shared memory that a workgroup takes: queries, scores, mixed values, page numbers.
pub(super) fn shared_bytes(op: &Attention) -> u32 {
    let group = (op.heads / op.kv_heads) as u32;
    group * (op.head_dim as u32 + SPLIT) * 4 + THREADS * 16 + SPLIT * 4
}

/// Bytes that one row's parts take.
fn row_bytes(op: &Attention, counts: &Counts) -> u64 {
    op.heads as u64 * u64::from(counts.splits) * (op.head_dim as u64 + 4) * 4
}

/// Rows that one launch takes.
fn rows_at_once(op: &Attention, counts: &Counts) -> u32 {
    (PARTIALS / row_bytes(op, counts)).clamp(1, u64::from(counts.tokens)) as u32
}

pub(super) fn partial_bytes(op: &Attention, counts: &Counts) -> u64 {
    row_bytes(op, counts) * u64::from(rows_at_once(op, counts))
}

impl Emit<'_> {
    pub(super) fn rope(&mut self, id: NodeIndex, op: &Rope, x: NodeIndex) {
        let heads = self.width(id) / op.head_dim as u32;
        let threads = heads * (op.head_dim as u32).div_ceil(2);
        let halves = u32::from(op.style == RopeStyle::Halves);
        let groups = [threads.div_ceil(64), self.rows_of(id), 1];
        let dispatch = Dispatch::new("rope", &[halves], groups)
            .read(self.tensor(x))
            .read(self.turns(&op.table))
            .read((Place::Step(StepField::Positions), 0))
            .read((Place::Step(StepField::RowSequences), 0))
            .read((Place::Step(StepField::Sequences), 0))
            .write(self.tensor(id))
            .words([heads, op.head_dim as u32, op.table.frequencies.len() as u32])
            .words([u32::from(op.table.long_frequencies.is_some())]);
        self.push(dispatch);
    }

    pub(super) fn kv_write(&mut self, op: &KvWrite, key: NodeIndex, value: NodeIndex) {
        let pairs = (op.kv_heads * op.head_dim) as u32;
        let constants = [u32::from(self.counts.half), self.counts.page_tokens];
        let groups = [pairs.div_ceil(64), self.counts.tokens, 1];
        let dispatch = Dispatch::new("kv_write", &constants, groups)
            .read(self.tensor(key))
            .read(self.tensor(value))
            .read((Place::Step(StepField::Positions), 0))
            .read((Place::Step(StepField::RowSequences), 0))
            .read((Place::Step(StepField::Sequences), 0))
            .read((Place::Step(StepField::Pages), 0))
            .update((self.program.layout.kv_place(op.layer), 0))
            .words([op.kv_heads as u32, op.head_dim as u32]);
        self.push(dispatch);
    }

    pub(super) fn attention(&mut self, id: NodeIndex, op: &Attention, query: NodeIndex) {
        let counts = self.counts;
        if let Some((edge, subgroups)) = self.attention_tiles(op) {
            self.attention_of_many(id, op, query, edge, subgroups);
            return;
        }
        let at_once = rows_at_once(op, counts);
        let threads = THREADS.max(self.program.features.subgroup);
        let fours = op.head_dim as u32 / 4;
        let group = (op.heads / op.kv_heads) as u32;
        let constants = [
            threads,
            op.head_dim as u32,
            group,
            u32::from(counts.half),
            counts.page_tokens,
            u32::from(op.causal),
            fours.next_power_of_two().min(threads),
        ];
        for first in (0..counts.tokens).step_by(at_once as usize) {
            let rows = at_once.min(counts.tokens - first);
            let row_bytes = row_bytes(op, counts);
            // Parts are counted from the step's first row.
            let partials = (Place::Partials, (u64::from(first) * row_bytes).wrapping_neg());
            let vec = Dispatch::new(
                "attention_vec",
                &constants,
                [op.kv_heads as u32, counts.splits, rows],
            )
            .read(self.tensor(query))
            .read((Place::Step(StepField::Positions), 0))
            .read((Place::Step(StepField::RowSequences), 0))
            .read((Place::Step(StepField::Sequences), 0))
            .read((Place::Step(StepField::Pages), 0))
            .read((self.program.layout.kv_place(op.layer), 0))
            .write(partials)
            .words([op.kv_heads as u32, counts.splits, first])
            .words([op.scale, op.softcap.unwrap_or(0.0)].map(f32::to_bits))
            .words([op.window.unwrap_or(0)]);
            self.push(vec);
            let join = Dispatch::new("attention_join", &[], [op.heads as u32, rows, 1])
                .read(partials)
                .write(self.tensor(id))
                .words([op.head_dim as u32, op.heads as u32, counts.splits, first]);
            self.push(join);
        }
    }

    /// Edge of the cooperative matrices and number of subgroups for many rows at once; `None` where
    /// rows are few, or the shapes or formats do not fit.
    fn attention_tiles(&self, op: &Attention) -> Option<(u32, u32)> {
        let edge = self.coop_edge()?;
        let counts = self.counts;
        let fits = counts.half
            && !self.few(counts.tokens)
            && counts.page_tokens.is_multiple_of(edge)
            && (op.head_dim as u32).is_multiple_of(edge);
        // Shared memory of each subgroup, as `attention_coop.comp` has it.
        let bytes = edge * (72 * 6 + (op.head_dim as u32 + 8) * 2 + 12);
        let subgroups = (self.program.features.shared_bytes / bytes).min(4);
        (fits && subgroups > 0).then_some((edge, subgroups))
    }

    fn attention_of_many(
        &mut self,
        id: NodeIndex,
        op: &Attention,
        query: NodeIndex,
        edge: u32,
        subgroups: u32,
    ) {
        let counts = self.counts;
        let constants = [
            subgroups * self.program.features.subgroup,
            op.head_dim as u32,
            (op.heads / op.kv_heads) as u32,
            u32::from(op.causal),
            edge,
            subgroups,
            counts.page_tokens,
        ];
        // Every sequence may begin a tile of its own.
        let tiles = counts.tokens / (edge * subgroups) + counts.sequences;
        let dispatch = Dispatch::new("attention_coop", &constants, [op.heads as u32, tiles, 1])
            .read(self.tensor(query))
            .read((Place::Step(StepField::Sequences), 0))
            .read((Place::Step(StepField::Pages), 0))
            .read((self.program.layout.kv_place(op.layer), 0))
            .write(self.tensor(id))
            .words([op.kv_heads as u32, counts.sequences])
            .words([op.scale, op.softcap.unwrap_or(0.0)].map(f32::to_bits))
            .words([op.window.unwrap_or(0)]);
        self.push(dispatch);
    }
}
