//! What is known of a sequence.

use trefoil_devices_api::Phase;

use super::LEAST_ROWS;
use crate::kv::PageKey;

/// A sequence's state: what is in the KV cache, and where.
#[derive(Debug)]
pub struct Sequence {
    pub(super) pages: Vec<u32>,
    pub(super) past: usize,
    pub(super) capacity: usize,
    pub(super) long_rope: bool,
    /// Names of its first pages, as far as others may find them or it found them.
    pub(super) keys: Vec<PageKey>,
    /// Tokens from the beginning that were all read in large steps, of a prompt.
    pub(super) read: usize,
    /// Phase in whose domains its pages are, of the layers that have two.
    home: Phase,
    /// They are on the way to the other phase's domains since this count of failures: there, unless
    /// something failed meanwhile. What they left is still right until the next step.
    moving: Option<u64>,
}

impl Sequence {
    pub(super) fn new(capacity: usize, long_rope: bool) -> Self {
        let (pages, keys) = (Vec::new(), Vec::new());
        let (past, read, home, moving) = (0, 0, Phase::Prefill, None);
        Self { pages, past, capacity, long_rope, keys, read, home, moving }
    }

    /// Tokens in the KV cache.
    pub fn len(&self) -> usize {
        self.past
    }

    /// Is nothing in the KV cache yet?
    pub fn is_empty(&self) -> bool {
        self.past == 0
    }

    /// Tokens that the sequence may grow to.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Phase in whose domains the pages are, or will be before anything that is submitted now begins;
    /// `failures` is the executor's count of now.
    pub(super) fn home(&self, failures: u64) -> Phase {
        match (self.moving, self.home) {
            (Some(since), Phase::Prefill) if since == failures => Phase::Decode,
            (Some(since), Phase::Decode) if since == failures => Phase::Prefill,
            (_, home) => home,
        }
    }

    /// A step of `rows` rows in a phase is done; `moving` if pages left for the other phase behind it.
    pub(super) fn advance(&mut self, rows: usize, phase: Phase, moving: Option<u64>) {
        if phase == Phase::Prefill && rows >= LEAST_ROWS && self.read == self.past {
            self.read += rows;
        }
        self.past += rows;
        self.home = phase;
        self.moving = moving;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_on_the_way_have_arrived_unless_something_failed() {
        let mut sequence = Sequence::new(64, false);
        sequence.advance(20, Phase::Prefill, Some(3));
        assert_eq!(sequence.home(3), Phase::Decode);
        assert_eq!(sequence.home(4), Phase::Prefill, "what they left is still there");
        sequence.advance(1, Phase::Decode, None);
        assert_eq!((sequence.home(4), sequence.len()), (Phase::Decode, 21));
    }
}
