//! Rope and attention.

use trefoil_graph::NodeIndex;
use trefoil_graph::ops::{Attention, Rope, RopeStyle};

use super::Emit;
use crate::dispatch::{Counts, Dispatch, Features, Place, StepField};

/// Positions that a workgroup of attention takes: the fixed boundaries of its sums, as
/// `attention_vec.comp` has them.
pub const SPLIT: u32 = 256;

/// Threads of an attention workgroup at most, and subgroups.
const THREADS: u32 = 256;
const SUBGROUPS: u32 = 8;

/// Query heads whose values a workgroup puts together at once, at most, and bytes for that.
const HEADS_AT_ONCE: u32 = 8;
const MIXED_BYTES: u32 = 32 << 10;

/// Largest scratch that attention takes for many rows at once.
const PARTIALS: u64 = 64 << 20;

/// Workgroup of attention of single rows.
struct Workgroup {
    threads: u32,
    subgroups: u32,
    heads_at_once: u32,
    shared_bytes: u32,
}

impl Workgroup {
    fn new(op: &Attention, features: &Features) -> Self {
        let subgroup = features.subgroup;
        let threads = (SUBGROUPS * subgroup).min(THREADS).max(subgroup);
        let subgroups = threads / subgroup;
        let (group, head_dim) = ((op.heads / op.kv_heads) as u32, op.head_dim as u32);
        // Queries, scores, weights; page numbers and what rounding takes.
        let always = group * (head_dim + SPLIT + 2) * 4 + SPLIT * 4 + 64;
        let each = subgroups * head_dim * 4;
        let room = features.shared_bytes.saturating_sub(always).min(MIXED_BYTES);
        let heads_at_once = (room / each.max(1)).clamp(1, group.min(HEADS_AT_ONCE));
        let shared_bytes = always + each * heads_at_once;
        Self { threads, subgroups, heads_at_once, shared_bytes }
    }
}

/// Bytes of shared memory that a workgroup takes.
pub(super) fn shared_bytes(op: &Attention, features: &Features) -> u32 {
    Workgroup::new(op, features).shared_bytes
}

/// Bytes that one row's parts take: none where each row sees one split.
fn row_bytes(op: &Attention, counts: &Counts) -> u64 {
    match counts.splits {
        1 => 0,
        splits => op.heads as u64 * u64::from(splits) * (op.head_dim as u64 + 4) * 4,
    }
}

/// Rows that one launch takes.
fn rows_at_once(op: &Attention, counts: &Counts) -> u32 {
    (PARTIALS / row_bytes(op, counts).max(1)).clamp(1, u64::from(counts.tokens.max(1))) as u32
}

/// Bytes of the counters: none where each row sees one split.
pub(super) fn counter_bytes(op: &Attention, counts: &Counts) -> u64 {
    match counts.splits {
        1 => 0,
        _ => u64::from(counts.tokens) * op.kv_heads as u64 * 4,
    }
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

    pub(super) fn attention(
        &mut self,
        id: NodeIndex,
        op: &Attention,
        query: NodeIndex,
        written: NodeIndex,
    ) {
        if let Some((edge, subgroups)) = self.attention_tiles(op) {
            self.attention_of_many(id, op, query, edge, subgroups);
            return;
        }
        let counts = self.counts;
        let entry = self.entry(id, op, written);
        let workgroup = Workgroup::new(op, &self.program.features);
        let head_dim = op.head_dim as u32;
        // One load brings 16 bytes, or four halves.
        let fours = if counts.half && head_dim.is_multiple_of(8) { 2 } else { 1 };
        let pieces = head_dim / 4 / fours;
        let subgroup = self.program.features.subgroup;
        let mut constants = vec![
            workgroup.threads,
            head_dim,
            (op.heads / op.kv_heads) as u32,
            u32::from(counts.half),
            counts.page_tokens,
            u32::from(op.causal),
            (1 << pieces.trailing_zeros().min(2)).min(subgroup),
            pieces.next_power_of_two().min(subgroup),
            workgroup.subgroups,
            workgroup.heads_at_once,
            fours,
        ];
        let shader = match &entry {
            Some(entry) => {
                constants.push(subgroup);
                constants.extend([entry.halves, entry.norm_query, entry.norm_key].map(u32::from));
                "attention_entry"
            }
            None => "attention_vec",
        };
        let counted = |place| (counts.splits > 1).then_some((place, 0));
        let at_once = rows_at_once(op, counts);
        for first in (0..counts.tokens).step_by(at_once as usize) {
            let rows = at_once.min(counts.tokens - first);
            let groups = [op.kv_heads as u32, counts.splits, rows];
            let mut dispatch = Dispatch::new(shader, &constants, groups);
            dispatch = match &entry {
                Some(entry) => entry.reads(dispatch),
                None => dispatch
                    .read(self.tensor(query))
                    .read((Place::Step(StepField::Positions), 0))
                    .read((Place::Step(StepField::RowSequences), 0)),
            };
            dispatch = dispatch
                .read((Place::Step(StepField::Sequences), 0))
                .read((Place::Step(StepField::Pages), 0))
                .update((self.program.layout.kv_place(op.layer), 0))
                .write(self.tensor(id))
                .update_if(counted(Place::Partials))
                .update_if(counted(Place::Counters))
                .words([op.kv_heads as u32, counts.splits, first])
                .words([op.scale, op.softcap.unwrap_or(0.0)].map(f32::to_bits))
                .words([op.window.unwrap_or(0)]);
            if let Some(entry) = &entry {
                dispatch = dispatch.words([entry.pairs, entry.eps.to_bits()]);
            }
            self.push(dispatch);
        }
    }

    /// Edge of the cooperative matrices and number of subgroups for many rows at once; `None` where
    /// rows are few, or the shapes or formats do not fit.
    pub(super) fn attention_tiles(&self, op: &Attention) -> Option<(u32, u32)> {
        let edge = self.coop_edge()?;
        let counts = self.counts;
        let fits = counts.half
            && !self.few(counts.tokens)
            && counts.page_tokens.is_multiple_of(edge)
            && (op.head_dim as u32).is_multiple_of(edge);
        // Shared memory, as `attention_coop.comp` has it: a block of keys or values, and for each
        // subgroup its scores and weights.
        let block = 64 * (op.head_dim as u32 / 8 + 1) * 16;
        let each = edge * (72 * 6 + 12);
        let subgroups = (self.program.features.shared_bytes.saturating_sub(block) / each).min(4);
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
