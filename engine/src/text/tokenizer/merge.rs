//! Joining neighbours, the best pair first: what byte pair encoding and SentencePiece's variant of
//! it have in common.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// No symbol: the end of the chain, or a symbol that is not a token.
pub(super) const NONE: u32 = u32::MAX;

/// A run of text that is one token so far.
#[derive(Debug, Clone, Copy)]
pub(super) struct Symbol {
    /// First byte in the text.
    pub(super) start: u32,
    /// Bytes; 0 once it became part of the symbol before it.
    pub(super) length: u32,
    /// Token id, or [`NONE`].
    pub(super) id: u32,
    previous: u32,
    next: u32,
}

/// A pair that may be joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Candidate {
    /// Lower goes first.
    rank: u32,
    left: u32,
    right: u32,
    /// Bytes of both together, to tell candidates that are out of date.
    length: u32,
    /// Token id of both together.
    id: u32,
}

impl Ord for Candidate {
    /// By rank, then from left to right.
    fn cmp(&self, other: &Self) -> Ordering {
        (self.rank, self.left).cmp(&(other.rank, other.left))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Working memory, to be used again for the next piece of text.
#[derive(Debug, Default)]
pub(super) struct Merger {
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Reverse<Candidate>>,
}

impl Merger {
    pub(super) fn clear(&mut self) {
        self.symbols.clear();
        self.queue.clear();
    }

    /// Appends the next `length` bytes as a symbol.
    pub(super) fn push(&mut self, length: usize, id: u32) {
        let start = self.symbols.last().map_or(0, |last| last.start + last.length);
        let index = self.symbols.len() as u32;
        let previous = index.checked_sub(1).unwrap_or(NONE);
        if let Some(last) = self.symbols.last_mut() {
            last.next = index;
        }
        self.symbols.push(Symbol { start, length: length as u32, id, previous, next: NONE });
    }

    /// Joins pairs until none is left for which `join` gives a rank (lower goes first) and the id
    /// of both together.
    pub(super) fn run(&mut self, join: impl Fn(&Symbol, &Symbol) -> Option<(u32, u32)>) {
        for right in 1..self.symbols.len() as u32 {
            self.offer(right - 1, right, &join);
        }
        while let Some(Reverse(best)) = self.queue.pop() {
            let (left, right) =
                (self.symbols[best.left as usize], self.symbols[best.right as usize]);
            let alive = left.length > 0 && right.length > 0;
            if !alive || left.length + right.length != best.length {
                continue;
            }
            self.symbols[best.right as usize].length = 0;
            let joined = &mut self.symbols[best.left as usize];
            joined.length = best.length;
            joined.id = best.id;
            joined.next = right.next;
            if right.next != NONE {
                self.symbols[right.next as usize].previous = best.left;
                self.offer(best.left, right.next, &join);
            }
            if left.previous != NONE {
                self.offer(left.previous, best.left, &join);
            }
        }
    }

    fn offer(
        &mut self,
        left: u32,
        right: u32,
        join: impl Fn(&Symbol, &Symbol) -> Option<(u32, u32)>,
    ) {
        let pair = (&self.symbols[left as usize], &self.symbols[right as usize]);
        if let Some((rank, id)) = join(pair.0, pair.1) {
            let length = pair.0.length + pair.1.length;
            self.queue.push(Reverse(Candidate { rank, left, right, length, id }));
        }
    }

    /// What is left, from left to right.
    pub(super) fn symbols(&self) -> impl Iterator<Item = &Symbol> {
        self.symbols.iter().filter(|symbol| symbol.length > 0)
    }
}
