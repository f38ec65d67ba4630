//! Pages that sequences share: beginnings that were read before, and forks of one prompt.
//!
//! What is shared must be the very bits that reading anew would give. On devices whose rows come out the
//! same in steps of any size (a *steady* plan) every full page may be shared. On others a page that was
//! read in a large step differs in its last bits from one that was made token by token: there, only
//! pages count that were read in steps of at least [`LEAST_ROWS`] rows, and what is read behind them
//! has as many.

use super::{Runner, Sequence};
use crate::kv::PageKey;

/// Rows of a step from which on kernels for many rows are used on every device, so that a row comes
/// out the same whatever else is read with it.
pub const LEAST_ROWS: usize = 16;

impl Runner {
    /// Can sequences share pages? Not where pages move between the memories of two phases: a page
    /// would have to be in both.
    pub fn can_share(&self) -> bool {
        self.causal && self.executor.kv.moved().next().is_none()
    }

    /// Most tokens of a prompt of `tokens` that may come from pages of others: at least the last one is
    /// read for its output.
    fn most_shared(&self, tokens: usize) -> usize {
        let rest = if self.steady { 1 } else { LEAST_ROWS };
        let page = self.executor.kv.layout().page_tokens;
        tokens.saturating_sub(rest) / page * page
    }

    /// Begins a sequence for `tokens` with the pages of the longest beginning that is still there
    /// ([`Runner::publish`]): [`Sequence::len`] says how much that is.
    pub fn begin_with(&mut self, capacity: usize, tokens: &[u32]) -> Sequence {
        let mut sequence = self.begin(capacity);
        if !self.can_share() {
            return sequence;
        }
        let page_tokens = self.executor.kv.layout().page_tokens;
        let most = self.most_shared(tokens.len());
        for page in tokens[..most].chunks_exact(page_tokens) {
            let key = sequence.next_key(page);
            let Some(number) = self.executor.kv.find(key) else { break };
            sequence.pages.push(number);
            sequence.keys.push(key);
        }
        sequence.past = sequence.pages.len() * page_tokens;
        sequence.read = sequence.past;
        sequence
    }

    /// Begins a sequence with the pages of another one that hold the first of `tokens`, its prompt,
    /// which it has read.
    pub fn fork(&mut self, of: &Sequence, tokens: usize) -> Sequence {
        let mut sequence = Sequence::new(of.capacity, of.long_rope);
        if !self.can_share() {
            return sequence;
        }
        let page_tokens = self.executor.kv.layout().page_tokens;
        let pages = self.pages_to_fork(of, tokens);
        self.executor.kv.share(&of.pages[..pages]);
        sequence.pages.extend_from_slice(&of.pages[..pages]);
        sequence.keys.extend_from_slice(&of.keys[..pages.min(of.keys.len())]);
        sequence.past = pages * page_tokens;
        sequence.read = sequence.past;
        sequence
    }

    /// Pages that [`Runner::fork`] shares.
    pub fn pages_to_fork(&self, of: &Sequence, tokens: usize) -> usize {
        if !self.can_share() {
            return 0;
        }
        let right = if self.steady { of.past } else { of.read };
        self.most_shared(tokens).min(right) / self.executor.kv.layout().page_tokens
    }

    /// Pages that [`Runner::begin_with`] would find for a prompt and that other sequences hold, so that
    /// they need no room.
    pub fn pages_held(&self, tokens: &[u32]) -> usize {
        if !self.can_share() {
            return 0;
        }
        let mut key = self.begin(self.context).root();
        let page_tokens = self.executor.kv.layout().page_tokens;
        let pages = tokens[..self.most_shared(tokens.len())].chunks_exact(page_tokens);
        let held = pages.take_while(|page| {
            key = key.then(page);
            self.executor.kv.is_held(key)
        });
        held.count()
    }

    /// Lets others find the full pages of a sequence, whose tokens so far are `tokens`, by what they
    /// hold. They stay when it ends, until their room is needed.
    pub fn publish(&mut self, sequence: &mut Sequence, tokens: &[u32]) {
        if !self.can_share() {
            return;
        }
        let page_tokens = self.executor.kv.layout().page_tokens;
        let right = if self.steady { sequence.past } else { sequence.read };
        let full = right.min(tokens.len()) / page_tokens;
        for index in sequence.keys.len()..full {
            let key = sequence.next_key(&tokens[index * page_tokens..(index + 1) * page_tokens]);
            self.executor.kv.name(sequence.pages[index], key);
            sequence.keys.push(key);
        }
    }

    /// Pages that a sequence needs more to hold `tokens` tokens.
    pub fn pages_missing(&self, sequence: &Sequence, tokens: usize) -> usize {
        let need = tokens.div_ceil(self.executor.kv.layout().page_tokens);
        need.saturating_sub(sequence.pages.len())
    }

    /// Takes the pages that a sequence needs to hold `tokens` tokens. False, and nothing taken, if there
    /// are too few.
    pub fn reserve(&mut self, sequence: &mut Sequence, tokens: usize) -> bool {
        self.executor.kv.grow(&mut sequence.pages, tokens)
    }

    /// Takes a sequence back to its first `len` tokens, keeping its pages: what comes next is as if
    /// the others had never been. Does nothing if it has no more. Where other sequences hold pages of
    /// what is left out, it goes back to the beginning of the first such page.
    pub fn rewind(&mut self, sequence: &mut Sequence, len: usize) {
        if len >= sequence.past {
            return;
        }
        let page_tokens = self.executor.kv.layout().page_tokens;
        sequence.past = len;
        sequence.read = sequence.read.min(len);
        sequence.keys.truncate(len / page_tokens);
        for index in len / page_tokens..sequence.pages.len() {
            if !self.executor.kv.make_writable(sequence.pages[index]) {
                let mut others = sequence.pages.split_off(index);
                self.executor.kv.release(&mut others);
                sequence.past = sequence.past.min(index * page_tokens);
                sequence.read = sequence.read.min(sequence.past);
                break;
            }
        }
    }

    /// End of the next chunk of a prompt that has `total` tokens, from `begin` on, in a step of at most
    /// `most` rows. Results do not depend on `most`: where they would, neither this chunk nor the last
    /// one has fewer than [`LEAST_ROWS`] rows, unless the whole prompt or the largest step has.
    pub fn chunk_end(&self, begin: usize, total: usize, most: usize) -> usize {
        if self.steady {
            return total.min(begin + most.clamp(1, self.chunk));
        }
        balanced_end(begin, total, most.max(LEAST_ROWS).min(self.chunk), self.chunk)
    }
}

/// End of a chunk of at most `most` rows, of a prompt that has `total`, or a little more: so that what is
/// left are none or [`LEAST_ROWS`] rows at least. `largest`: most rows of a step.
pub(super) fn balanced_end(begin: usize, total: usize, most: usize, largest: usize) -> usize {
    let end = total.min(begin + most);
    let earlier = total.saturating_sub(LEAST_ROWS);
    match () {
        () if end == total || end <= earlier => end,
        () if earlier >= begin + LEAST_ROWS => earlier,
        () if total - begin <= largest => total,
        // Steps are too small for enough rows.
        () => end,
    }
}

impl Sequence {
    /// Name of the next page after those that have one, if it holds `tokens`.
    fn next_key(&self, tokens: &[u32]) -> PageKey {
        let last = self.keys.last().copied();
        last.unwrap_or_else(|| self.root()).then(tokens)
    }

    fn root(&self) -> PageKey {
        PageKey::root(self.long_rope)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_chunk_is_short_where_that_matters() {
        for largest in [32, 48, 512] {
            for total in 1..1200 {
                for most in [16, 17, 24, 32, 100, 512] {
                    let mut begin = 0;
                    while begin < total {
                        let end = balanced_end(begin, total, most.min(largest), largest);
                        assert!(end > begin && end - begin <= largest);
                        let rows = end - begin;
                        assert!(rows >= LEAST_ROWS.min(total), "{total} by {most}: {begin}..{end}");
                        begin = end;
                    }
                }
            }
        }
    }
}
