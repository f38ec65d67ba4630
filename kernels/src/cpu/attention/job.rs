//! The part of an attention that reads one KV head for the rows of one tile.

use std::ops::Range;

use super::super::kv::KvLayout;
use super::super::lanes::LANES;
use super::super::level::{Level, at_level};
use super::super::norm::{exp_minus, row_max};
use super::super::pool::SharedSlice;
use super::super::scratch::grown;
use super::super::{math, simd};
use super::{Attention, CUT};

/// Buffers of one worker. A *state* is `head_dim` weighted values, their maximum score, the sum of
/// their weights.
#[derive(Debug, Default)]
pub(crate) struct JobBuffers {
    /// Sixteen keys, transposed: `[head_dim][16]`.
    turned: Vec<f32>,
    /// Sixteen keys or values: `[16][head_dim]`.
    plain: Vec<f32>,
    /// `[queries][CUT]`: scores, then weights.
    scores: Vec<f32>,
    /// A state a query: the cut at hand.
    computed: Vec<f32>,
    /// A state a query: all cuts so far.
    merged: Vec<f32>,
}

pub(super) struct Job<'a> {
    args: &'a Attention<'a>,
    q: &'a [f32],
    rows: Range<usize>,
    kv_head: usize,
    group: usize,
    /// Positions that any of the rows sees.
    seen: Range<usize>,
}

impl<'a> Job<'a> {
    pub(super) fn new(
        args: &'a Attention<'a>,
        q: &'a [f32],
        rows: Range<usize>,
        kv_head: usize,
    ) -> Self {
        let seen = args.rows[rows.clone()]
            .iter()
            .filter(|row| row.first < row.end)
            .map(|row| row.first as usize..row.end as usize)
            .reduce(|a, b| a.start.min(b.start)..a.end.max(b.end))
            .unwrap_or(0..0);
        Self { args, q, rows, kv_head, group: args.heads / args.layout.kv_heads, seen }
    }

    pub(super) fn queries(&self) -> usize {
        self.rows.len() * self.group
    }

    pub(super) fn row_and_head(&self, query: usize) -> (usize, usize) {
        (self.rows.start + query / self.group, self.kv_head * self.group + query % self.group)
    }

    /// The cuts that any of the rows sees something of.
    pub(super) fn cuts(&self) -> Range<usize> {
        self.seen.start / CUT..self.seen.end.div_ceil(CUT)
    }

    fn dim(&self) -> usize {
        self.args.layout.head_dim
    }

    fn query(&self, query: usize) -> &'a [f32] {
        let (row, head) = self.row_and_head(query);
        let at = (row * self.args.heads + head) * self.dim();
        &self.q[at..at + self.dim()]
    }

    /// What a query sees of a cut, as positions within the cut.
    fn visible(&self, query: usize, cut: usize) -> Range<usize> {
        let row = &self.args.rows[self.row_and_head(query).0];
        let within = |position: u32| (position as usize).saturating_sub(cut * CUT).min(CUT);
        let (first, end) = (within(row.first), within(row.end));
        first..end.max(first)
    }

    /// Sets every query's merged state to nothing seen.
    pub(super) fn begin(&self, buffers: &mut JobBuffers) {
        let size = self.dim() + 2;
        for state in grown(&mut buffers.merged, self.queries() * size).chunks_exact_mut(size) {
            clear(state);
        }
    }

    /// The state that [`compute`](Self::compute) made for a query.
    pub(super) fn computed<'b>(&self, buffers: &'b JobBuffers, query: usize) -> &'b [f32] {
        let size = self.dim() + 2;
        &buffers.computed[query * size..(query + 1) * size]
    }

    /// Computes one cut for all queries.
    pub(super) fn compute(&self, level: Level, cut: usize, buffers: &mut JobBuffers) {
        let (dim, queries) = (self.dim(), self.queries());
        let JobBuffers { turned, plain, scores, computed, .. } = buffers;
        let turned = grown(turned, dim * LANES);
        let plain = grown(plain, dim * LANES);
        let scores = grown(scores, queries * CUT);
        let states = grown(computed, queries * (dim + 2));
        let (base, start) = (cut * CUT, self.seen.start.max(cut * CUT));
        let end = self.seen.end.min(base + CUT);
        let sixteens = (start - base) / LANES * LANES..end - base;

        for at in sixteens.clone().step_by(LANES) {
            self.load(level, KvLayout::key_at, base + at, start..end, plain);
            simd::transpose(level, plain, dim, turned);
            for query in 0..queries {
                let visible = self.visible(query, cut);
                if visible.start < at + LANES && visible.end > at {
                    let scores = &mut scores[query * CUT + at..query * CUT + at + LANES];
                    scores_at(level, turned, self.query(query), scores);
                }
            }
        }
        for (query, state) in states.chunks_exact_mut(dim + 2).enumerate() {
            clear(state);
            let visible = self.visible(query, cut);
            if !visible.is_empty() {
                let scores = &mut scores[query * CUT..][visible];
                let (top, sum) = weights_at(level, scores, self.args.scale, self.args.softcap);
                (state[dim], state[dim + 1]) = (top, sum);
            }
        }
        for at in sixteens.step_by(LANES) {
            self.load(level, KvLayout::value_at, base + at, start..end, plain);
            for (query, state) in states.chunks_exact_mut(dim + 2).enumerate() {
                let visible = self.visible(query, cut);
                let (first, end) = (visible.start.max(at), visible.end.min(at + LANES));
                if first < end {
                    let weights = &scores[query * CUT..][first..end];
                    let values = &plain[(first - at) * dim..(end - at) * dim];
                    accumulate_at(level, weights, values, &mut state[..dim]);
                }
            }
        }
    }

    /// Decodes keys or values of sixteen positions from `at` on. Those outside `known` are not read
    /// from pages that may not exist; what stands in their place is never used.
    fn load(
        &self,
        level: Level,
        offset: fn(&KvLayout, u32, usize, usize) -> usize,
        at: usize,
        known: Range<usize>,
        out: &mut [f32],
    ) {
        let layout = &self.args.layout;
        let (dim, bytes, tokens) = (layout.head_dim, layout.row_bytes(), layout.page_tokens);
        let table = self.args.rows[self.rows.start].table as usize;
        let place = |position: usize| {
            let page = self.args.page_ids[table + position / tokens];
            offset(layout, page, self.kv_head, position % tokens)
        };
        if tokens >= LANES {
            // The sixteen are in one page, which exists because one of them is known.
            let first = place(at);
            let source = &self.args.pages[first..first + LANES * bytes];
            simd::widen(level, layout.format, source, out);
            return;
        }
        for (i, out) in out.chunks_exact_mut(dim).enumerate() {
            let first = place((at + i).clamp(known.start, known.end - 1));
            simd::widen(level, layout.format, &self.args.pages[first..first + bytes], out);
        }
    }

    /// Adds a later cut's state to what the query has seen so far.
    pub(super) fn merge(&self, level: Level, buffers: &mut JobBuffers, query: usize, add: &[f32]) {
        let size = self.dim() + 2;
        merge_at(level, &mut buffers.merged[query * size..(query + 1) * size], add);
    }

    /// [`merge`](Self::merge) of the cut just computed, for all queries.
    pub(super) fn merge_own(&self, level: Level, buffers: &mut JobBuffers) {
        let size = self.dim() + 2;
        let states = buffers.merged.chunks_exact_mut(size).zip(buffers.computed.chunks_exact(size));
        for (merged, computed) in states.take(self.queries()) {
            merge_at(level, merged, computed);
        }
    }

    /// Writes the queries' results.
    pub(super) fn finish(&self, buffers: &mut JobBuffers, out: &SharedSlice<'_, f32>) {
        let dim = self.dim();
        for (query, state) in buffers.merged.chunks_exact_mut(dim + 2).enumerate() {
            if query == self.queries() {
                break;
            }
            let (row, head) = self.row_and_head(query);
            let at = (row * self.args.heads + head) * dim;
            // SAFETY: no other job has this row and head.
            let out = unsafe { out.part(at..at + dim) };
            let (top, mut sum) = (state[dim], state[dim + 1]);
            let mut factor = 1.0;
            if let Some(sinks) = self.args.sinks {
                let highest = top.max(sinks[head]);
                factor = math::exp(top - highest);
                sum = sum * factor + math::exp(sinks[head] - highest);
            }
            let factor = if sum == 0.0 { 0.0 } else { factor / sum };
            out.iter_mut().zip(&state[..dim]).for_each(|(out, v)| *out = v * factor);
        }
    }
}

fn clear(state: &mut [f32]) {
    state.fill(0.0);
    let maximum = state.len() - 2;
    state[maximum] = f32::NEG_INFINITY;
}

at_level! {
    fn scores_at(keys: &[f32], q: &[f32], out: &mut [f32]) = scores_body;
    fn weights_at(scores: &mut [f32], scale: f32, softcap: Option<f32>) -> (f32, f32)
        = weights_body;
    fn accumulate_at(weights: &[f32], values: &[f32], out: &mut [f32]) = accumulate_body;
    fn merge_at(merged: &mut [f32], add: &[f32]) = merge_body;
}

/// Products of a query with sixteen transposed keys: four partial sums a key, dimension `d` in sum
/// `d % 4`.
#[inline(always)]
fn scores_body(keys: &[f32], q: &[f32], out: &mut [f32]) {
    let mut sums = [[0.0f32; LANES]; 4];
    let (keys, (fours, rest)) = (keys.as_chunks::<LANES>().0, q.as_chunks::<4>());
    let (key_fours, key_rest) = keys.as_chunks::<4>();
    for (keys, q) in key_fours.iter().zip(fours) {
        for c in 0..4 {
            for i in 0..LANES {
                sums[c][i] = keys[c][i].mul_add(q[c], sums[c][i]);
            }
        }
    }
    for ((keys, q), sums) in key_rest.iter().zip(rest).zip(&mut sums) {
        for i in 0..LANES {
            sums[i] = keys[i].mul_add(*q, sums[i]);
        }
    }
    for (i, out) in out.iter_mut().enumerate() {
        *out = (sums[0][i] + sums[1][i]) + (sums[2][i] + sums[3][i]);
    }
}

/// Turns scores into weights `exp(score - top)`; gives the top and the sum.
#[inline(always)]
fn weights_body(scores: &mut [f32], scale: f32, softcap: Option<f32>) -> (f32, f32) {
    scores.iter_mut().for_each(|s| *s *= scale);
    if let Some(cap) = softcap {
        scores.iter_mut().for_each(|s| *s = cap * math::tanh(*s / cap));
    }
    let top = row_max(scores);
    (top, exp_minus(scores, top))
}

/// `out += weights[t] * values[t]`, position after position.
#[inline(always)]
fn accumulate_body(weights: &[f32], values: &[f32], out: &mut [f32]) {
    #[inline(always)]
    fn columns<const N: usize>(weights: &[f32], values: &[f32], at: usize, out: &mut [f32]) {
        let dim = out.len();
        let Some(out) = out[at..].first_chunk_mut::<N>() else { return };
        let mut sums = *out;
        for (t, weight) in weights.iter().enumerate() {
            let Some(values) = values[t * dim + at..].first_chunk::<N>() else { return };
            for i in 0..N {
                sums[i] = values[i].mul_add(*weight, sums[i]);
            }
        }
        *out = sums;
    }
    let mut at = 0;
    while at + 64 <= out.len() {
        columns::<64>(weights, values, at, out);
        at += 64;
    }
    while at + 16 <= out.len() {
        columns::<16>(weights, values, at, out);
        at += 16;
    }
    while at < out.len() {
        columns::<1>(weights, values, at, out);
        at += 1;
    }
}

#[inline(always)]
fn merge_body(merged: &mut [f32], add: &[f32]) {
    let dim = merged.len() - 2;
    let (top, sum) = (add[dim], add[dim + 1]);
    if sum == 0.0 {
        return;
    }
    let highest = merged[dim].max(top);
    let (old, new) = (math::exp(merged[dim] - highest), math::exp(top - highest));
    for (m, a) in merged[..dim].iter_mut().zip(add) {
        *m = a.mul_add(new, *m * old);
    }
    merged[dim + 1] = sum.mul_add(new, merged[dim + 1] * old);
    merged[dim] = highest;
}
