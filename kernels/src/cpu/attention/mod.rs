//! Attention over paged keys and values, for any mixture of long prompts and single tokens.
//!
//! Positions are cut at fixed multiples of [`CUT`], whatever a row sees of them and however many
//! rows or threads there are. Each cut gives a maximum, a sum and weighted values; a row's cuts are
//! merged from the first to the last. So every number of a row's result is made by the same
//! operations in the same order in any batch.

mod job;
#[cfg(test)]
mod tests;

use std::ops::Range;

use super::ThreadPool;
use super::kv::KvLayout;
use super::pool::SharedSlice;
use super::scratch::{Scratch, grown};
use job::Job;
pub(super) use job::JobBuffers;

/// Positions in a cut.
const CUT: usize = 256;

/// Queries (rows times heads of a group) worked on together at most, so that a cut's keys and values
/// are read from memory once for all of them.
const QUERIES: usize = 32;

/// Partial results above this number of elements are not kept for all cuts at once.
const PARTIALS: usize = 1 << 24;

/// What one row sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionRow {
    /// Index in [`Attention::page_ids`] of the page that holds position 0 of the row's sequence.
    pub table: u32,
    /// First visible position (0, or the start of a sliding window).
    pub first: u32,
    /// End of the visible positions (the row's own position + 1 under a causal mask).
    pub end: u32,
}

impl AttentionRow {
    /// The cuts that hold a visible position.
    fn cuts(&self) -> Range<usize> {
        if self.first >= self.end {
            return 0..0;
        }
        self.first as usize / CUT..(self.end as usize).div_ceil(CUT)
    }
}

/// Everything about an attention besides the queries.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// Layout of the slab.
    pub layout: KvLayout,
    /// The layer's slab.
    pub pages: &'a [u8],
    /// Page tables of all sequences, one after the other.
    pub page_ids: &'a [u32],
    /// One entry a query row. Rows of one sequence that follow each other share reads.
    pub rows: &'a [AttentionRow],
    /// Query heads, a multiple of the KV heads; head `h` reads KV head `h / (heads / kv_heads)`.
    pub heads: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// `cap * tanh(score / cap)` after scaling.
    pub softcap: Option<f32>,
    /// One score a head that takes part in the softmax with no value (attention sinks).
    pub sinks: Option<&'a [f32]>,
}

/// `out = softmax(scale * q K) V` over the visible positions, for every row and head: `q` and `out`
/// are `[rows, heads * head_dim]`. A row that sees nothing gives zeros.
///
/// # Panics
/// If the lengths do not fit, or a page leaves the slab.
pub fn attention(
    pool: &ThreadPool,
    scratch: &mut Scratch,
    args: &Attention<'_>,
    q: &[f32],
    out: &mut [f32],
) {
    let (dim, kv_heads) = (args.layout.head_dim, args.layout.kv_heads);
    assert!(kv_heads > 0 && args.heads.is_multiple_of(kv_heads), "attention: heads of a group");
    assert!(args.layout.page_tokens.is_power_of_two(), "attention: tokens of a page");
    let width = args.heads * dim;
    assert_eq!((q.len(), out.len()), (args.rows.len() * width, args.rows.len() * width));
    assert!(args.sinks.is_none_or(|sinks| sinks.len() == args.heads), "attention: sinks");

    scratch.prepare(pool);
    make_tiles(args.rows, (QUERIES * kv_heads / args.heads.max(1)).max(1), &mut scratch.tiles);
    let jobs = Jobs { args, q, tiles: &scratch.tiles };
    let seen = args.rows.iter().map(AttentionRow::cuts).filter(|cuts| !cuts.is_empty());
    let cuts = seen.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end)).unwrap_or(0..0);
    let partials = args.rows.len() * args.heads * cuts.len() * (dim + 2);
    let out = SharedSlice::new(out);
    let workers = &scratch.workers;
    if cuts.len() <= 1 || jobs.len() >= 4 * pool.threads() || partials > PARTIALS {
        pool.run(jobs.len(), |index, worker| {
            let job = jobs.get(index);
            let buffers = &mut workers.lock(worker).attention;
            job.begin(buffers);
            for cut in job.cuts() {
                job.compute(pool.level(), cut, buffers);
                job.merge_own(pool.level(), buffers);
            }
            job.finish(buffers, &out);
        });
        return;
    }

    // Few queries, many positions: every cut is a task, and a second pass merges them.
    let partials = SharedSlice::new(grown(&mut scratch.partials, partials));
    let place = |(row, head): (usize, usize), cut: usize| {
        let at = ((row * args.heads + head) * cuts.len() + cut - cuts.start) * (dim + 2);
        at..at + dim + 2
    };
    pool.run(jobs.len() * cuts.len(), |task, worker| {
        let (job, cut) = (jobs.get(task / cuts.len()), task % cuts.len() + cuts.start);
        if job.cuts().contains(&cut) {
            let buffers = &mut workers.lock(worker).attention;
            job.compute(pool.level(), cut, buffers);
            for query in 0..job.queries() {
                // SAFETY: no other task has this row, head and cut.
                let kept = unsafe { partials.part(place(job.row_and_head(query), cut)) };
                kept.copy_from_slice(job.computed(buffers, query));
            }
        }
    });
    pool.run(jobs.len(), |index, worker| {
        let job = jobs.get(index);
        let buffers = &mut workers.lock(worker).attention;
        job.begin(buffers);
        for cut in job.cuts() {
            for query in 0..job.queries() {
                // SAFETY: no other task of this pass has this row and head.
                let kept = unsafe { partials.part(place(job.row_and_head(query), cut)) };
                job.merge(pool.level(), buffers, query, kept);
            }
        }
        job.finish(buffers, &out);
    });
}

/// All (tile, KV head) pairs.
struct Jobs<'a> {
    args: &'a Attention<'a>,
    q: &'a [f32],
    tiles: &'a [(usize, usize)],
}

impl<'a> Jobs<'a> {
    fn len(&self) -> usize {
        self.tiles.len() * self.args.layout.kv_heads
    }

    fn get(&self, index: usize) -> Job<'a> {
        let kv_heads = self.args.layout.kv_heads;
        let (start, end) = self.tiles[index / kv_heads];
        Job::new(self.args, self.q, start..end, index % kv_heads)
    }
}

/// Cuts rows into tiles (start, end) of neighbours in one sequence, of `most` rows at most.
fn make_tiles(rows: &[AttentionRow], most: usize, out: &mut Vec<(usize, usize)>) {
    out.clear();
    let mut start = 0;
    while start < rows.len() {
        let same = |row: &&AttentionRow| row.table == rows[start].table;
        let end = start + rows[start..].iter().take(most).take_while(same).count();
        out.push((start, end));
        start = end;
    }
}
