//! The steps of a runner: chunks of one sequence, one row of each of several.

use smallvec::SmallVec;
use trefoil_devices_api::Phase;

use super::Sequence;
use super::sharing::balanced_end;
use crate::executor::{Executor, StepOrder, Steps};

/// Steps of this many rows are made by the programs of which phase?
fn phase_of(rows: usize) -> Phase {
    if rows == 1 { Phase::Decode } else { Phase::Prefill }
}

/// What a step needs to know of the pages.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pages {
    tokens: usize,
    /// Do any move between the phases?
    moved: bool,
    failures: u64,
}

impl Pages {
    pub(super) fn of(executor: &Executor) -> Self {
        Self {
            tokens: executor.kv.layout().page_tokens,
            moved: executor.kv.moved().next().is_some(),
            failures: executor.failures(),
        }
    }

    /// Adds those of a sequence's pages that hold its first `past` tokens.
    fn used(self, pages: &[u32], past: usize, list: &mut Vec<u32>) {
        list.extend_from_slice(&pages[..past.div_ceil(self.tokens)]);
    }
}

/// Calls `each` with the number and values of each of `rows` rows.
fn each_row(values: &[f32], rows: usize, mut each: impl FnMut(usize, &[f32])) {
    let width = (values.len() / rows.max(1)).max(1);
    for (row, values) in values.chunks_exact(width).enumerate() {
        each(row, values);
    }
}

/// How a feed is cut into chunks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    /// Most rows of a chunk.
    pub(super) chunk: usize,
    /// Most rows of a chunk whose output is wanted.
    pub(super) outputs: usize,
    /// First row whose output is wanted; all after it are wanted too.
    pub(super) first_wanted: usize,
    /// Will the sequence go on with single tokens after the last row?
    pub(super) decode_follows: bool,
    /// Largest elements of each output that are looked at; 0: all of them.
    pub(super) largest: usize,
    /// Must the last chunk have enough rows for the kernels of many?
    pub(super) balanced: bool,
}

/// A chunk whose result is not here yet.
struct Chunk {
    /// Its first wanted row, among all tokens of the feed.
    wanted: usize,
    end: usize,
    rows: usize,
    phase: Phase,
    moving: Option<u64>,
}

/// Chunks of one sequence.
pub(super) struct Feed<'a, G, E> {
    pub(super) sequence: &'a mut Sequence,
    tokens: &'a [u32],
    cut: Cut,
    pages: Pages,
    go_on: G,
    each: E,
    /// Tokens submitted.
    submitted: usize,
    /// Tokens in the KV cache before the first.
    past: usize,
    /// Phase in whose domains the pages are after what is submitted.
    home: Phase,
    chunks: SmallVec<[Chunk; 4]>,
    /// Did `go_on` say no?
    pub(super) cancelled: bool,
}

impl<'a, G, E> Feed<'a, G, E>
where
    G: Fn() -> bool,
    E: FnMut(usize, &[f32]),
{
    pub(super) fn new(
        sequence: &'a mut Sequence,
        tokens: &'a [u32],
        cut: Cut,
        pages: Pages,
        go_on: G,
        each: E,
    ) -> Self {
        let (past, home) = (sequence.past, sequence.home(pages.failures));
        let (submitted, chunks, cancelled) = (0, SmallVec::new(), false);
        Self { sequence, tokens, cut, pages, go_on, each, submitted, past, home, chunks, cancelled }
    }

    /// End of the next chunk: no longer than a step takes, in rows and in outputs.
    fn end(&self) -> usize {
        let Cut { chunk, outputs, first_wanted, balanced, .. } = self.cut;
        let all = self.tokens.len();
        let end = match balanced {
            true => balanced_end(self.submitted, all, chunk, chunk),
            false => all.min(self.submitted + chunk),
        };
        end.min(first_wanted.max(self.submitted) + outputs)
    }
}

impl<G, E> Steps for Feed<'_, G, E>
where
    G: Fn() -> bool,
    E: FnMut(usize, &[f32]),
{
    fn next(&mut self, order: StepOrder<'_>) -> Option<Phase> {
        if self.submitted == self.tokens.len() {
            return None;
        }
        if !(self.go_on)() {
            self.cancelled = true;
            return None;
        }
        let (begin, end) = (self.submitted, self.end());
        let (tokens, past) = (&self.tokens[begin..end], self.past + begin);
        let phase = phase_of(tokens.len());
        let wanted = self.cut.first_wanted.clamp(begin, end);
        let Sequence { pages, long_rope, .. } = &*self.sequence;
        let rows = (wanted - begin) as u32..tokens.len() as u32;
        order.rows.push_sequence(tokens, past as u32, pages, *long_rope, rows);
        let mut moving = None;
        if self.pages.moved {
            if self.home != phase {
                self.pages.used(pages, past, order.fetch);
            }
            self.home = phase;
            let last = end == self.tokens.len() && self.cut.decode_follows;
            if last && phase == Phase::Prefill {
                self.pages.used(pages, self.past + end, order.send);
                moving = Some(self.pages.failures);
            }
        }
        *order.largest = self.cut.largest;
        self.submitted = end;
        self.chunks.push(Chunk { wanted, end, rows: tokens.len(), phase, moving });
        Some(phase)
    }

    fn done(&mut self, values: &[f32]) {
        let Chunk { wanted, end, rows, phase, moving } = self.chunks.remove(0);
        each_row(values, end - wanted, |row, values| (self.each)(wanted + row, values));
        self.sequence.advance(rows, phase, moving);
    }
}

/// One step with one row of each of several sequences.
pub(super) struct Batch<'a, 'b, E> {
    sequences: &'a mut [&'b mut Sequence],
    tokens: &'a [u32],
    pages: Pages,
    /// Largest elements of each output that are looked at; 0: all of them.
    largest: usize,
    each: E,
    submitted: bool,
}

impl<'a, 'b, E: FnMut(usize, &[f32])> Batch<'a, 'b, E> {
    /// `tokens[i]` for `sequences[i]`.
    pub(super) fn new(
        sequences: &'a mut [&'b mut Sequence],
        tokens: &'a [u32],
        pages: Pages,
        largest: usize,
        each: E,
    ) -> Self {
        Self { sequences, tokens, pages, largest, each, submitted: false }
    }
}

impl<E: FnMut(usize, &[f32])> Steps for Batch<'_, '_, E> {
    fn next(&mut self, order: StepOrder<'_>) -> Option<Phase> {
        if std::mem::replace(&mut self.submitted, true) {
            return None;
        }
        for (sequence, token) in self.sequences.iter().zip(self.tokens.chunks_exact(1)) {
            let Sequence { pages, past, long_rope, .. } = &**sequence;
            order.rows.push_sequence(token, *past as u32, pages, *long_rope, 0..1);
            if self.pages.moved && sequence.home(self.pages.failures) == Phase::Prefill {
                self.pages.used(pages, *past, order.fetch);
            }
        }
        *order.largest = self.largest;
        Some(Phase::Decode)
    }

    fn done(&mut self, values: &[f32]) {
        each_row(values, self.tokens.len(), &mut self.each);
        for sequence in &mut *self.sequences {
            sequence.advance(1, Phase::Decode, None);
        }
    }
}

/// One step with whole texts of several sequences, each of which begins with it.
pub(super) struct Texts<'a, E> {
    sequences: &'a mut [Sequence],
    texts: &'a [&'a [u32]],
    each: E,
    submitted: bool,
}

impl<'a, E: FnMut(usize, &[f32])> Texts<'a, E> {
    /// `texts[i]` for `sequences[i]`.
    pub(super) fn new(sequences: &'a mut [Sequence], texts: &'a [&'a [u32]], each: E) -> Self {
        Self { sequences, texts, each, submitted: false }
    }
}

impl<E: FnMut(usize, &[f32])> Steps for Texts<'_, E> {
    fn next(&mut self, order: StepOrder<'_>) -> Option<Phase> {
        if std::mem::replace(&mut self.submitted, true) {
            return None;
        }
        for (sequence, text) in self.sequences.iter().zip(self.texts) {
            let last = text.len() as u32;
            let Sequence { pages, long_rope, .. } = sequence;
            order.rows.push_sequence(text, 0, pages, *long_rope, last - 1..last);
        }
        Some(phase_of(self.texts.iter().map(|text| text.len()).sum()))
    }

    fn done(&mut self, values: &[f32]) {
        each_row(values, self.texts.len(), &mut self.each);
        for (sequence, text) in self.sequences.iter_mut().zip(self.texts) {
            sequence.advance(text.len(), Phase::Prefill, None);
        }
    }
}
