//! Feeds sequences to an executor: chunks, page growth, wanted rows.

use trefoil_devices_api::Phase;
use trefoil_graph::Hyper;

use crate::executor::{ExecuteError, Executor};

/// A sequence's state: what is in the KV cache, and where.
#[derive(Debug, Default)]
pub struct Sequence {
    pages: Vec<u32>,
    past: usize,
    capacity: usize,
    long_rope: bool,
}

impl Sequence {
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
}

/// Rows whose output is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outputs {
    /// None: only the KV cache is filled.
    None,
    /// The last one.
    Last,
    /// All of them.
    All,
    /// From this one on.
    From(usize),
}

/// A sequence that cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// More tokens than the sequence was made for.
    #[error("expected at most {capacity} tokens of context, got {wanted}")]
    ContextFull {
        /// Tokens it was made for.
        capacity: usize,
        /// Tokens with the new ones.
        wanted: usize,
    },
    /// No free KV pages.
    #[error("the KV cache is full: {free} of {total} pages are free; lower the context size")]
    NoPages {
        /// Pages free.
        free: usize,
        /// All pages.
        total: usize,
    },
    /// A token that the model does not have.
    #[error("token {token}: expected an id below {vocabulary}")]
    NoSuchToken {
        /// What came.
        token: u32,
        /// Size of the vocabulary.
        vocabulary: usize,
    },
    /// An encoder's text that does not fit one step.
    #[error("expected at most {most} tokens for an encoder, got {got}")]
    TooLongForEncoder {
        /// Rows of the largest step.
        most: usize,
        /// Tokens of the text.
        got: usize,
    },
    /// Sequences and tokens of a decode step that do not pair up.
    #[error("expected one token for each of {sequences} sequences, got {tokens}")]
    UnpairedTokens {
        /// Sequences of the step.
        sequences: usize,
        /// Tokens of the step.
        tokens: usize,
    },
    /// Nothing to begin with.
    #[error("expected a prompt of at least 1 token, got none")]
    EmptyPrompt,
    /// The caller wished so.
    #[error("cancelled")]
    Cancelled,
    /// The step failed.
    #[error(transparent)]
    Execute(#[from] ExecuteError),
}

/// One sequence's rows of a step.
struct Part<'a> {
    sequence: &'a mut Sequence,
    tokens: &'a [u32],
    /// First row whose output is wanted, among `tokens`; all after it are wanted too.
    first_wanted: usize,
}

/// An executor with what it needs to know of its model.
#[derive(Debug)]
pub struct Runner {
    /// The plan at work.
    pub executor: Executor,
    causal: bool,
    original_context: Option<usize>,
    vocabulary: usize,
    chunk: usize,
    context: usize,
}

impl Runner {
    /// A runner for sequences of up to `context` tokens that reads prompts in chunks of at most
    /// `chunk`.
    pub fn new(
        executor: Executor,
        hyper: &Hyper,
        vocabulary: usize,
        chunk: usize,
        context: usize,
    ) -> Self {
        let chunk = chunk.clamp(1, executor.max_tokens(Phase::Prefill).max(1));
        Self {
            executor,
            causal: hyper.causal,
            original_context: hyper.original_context,
            vocabulary,
            chunk,
            context,
        }
    }

    /// Tokens of one prompt chunk.
    pub fn chunk(&self) -> usize {
        self.chunk
    }

    /// Begins a sequence that may grow to `capacity` tokens. The capacity decides which rope table a
    /// model with two of them uses, for the sequence's whole life.
    pub fn begin(&self, capacity: usize) -> Sequence {
        let long_rope = self.original_context.is_some_and(|original| capacity > original);
        Sequence { capacity, long_rope, ..Sequence::default() }
    }

    /// Ends a sequence: its pages are free again.
    pub fn end(&mut self, mut sequence: Sequence) {
        self.executor.kv.release(&mut sequence.pages);
    }

    /// Takes a sequence back to its first `len` tokens, keeping its pages: what comes next is as if
    /// the others had never been. Does nothing if it has no more.
    pub fn rewind(&self, sequence: &mut Sequence, len: usize) {
        sequence.past = sequence.past.min(len);
    }

    /// Tokens that a sequence can hold at most.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Takes all pages back, from sequences that were lost by a panic.
    pub fn release_all(&mut self) {
        self.executor.kv.release_all();
    }

    /// Feeds `tokens` and calls `each` with the index and output of each wanted row, in order.
    pub fn feed(
        &mut self,
        sequence: &mut Sequence,
        tokens: &[u32],
        outputs: Outputs,
        each: impl FnMut(usize, &[f32]),
    ) -> Result<(), RunError> {
        self.feed_while(sequence, tokens, outputs, || true, each)
    }

    /// As [`Runner::feed`], but stops before the next step when `go_on` says no.
    pub fn feed_while(
        &mut self,
        sequence: &mut Sequence,
        tokens: &[u32],
        outputs: Outputs,
        go_on: impl Fn() -> bool,
        mut each: impl FnMut(usize, &[f32]),
    ) -> Result<(), RunError> {
        self.check(sequence, tokens)?;
        let first_wanted = match outputs {
            Outputs::None => tokens.len(),
            Outputs::Last => tokens.len().saturating_sub(1),
            Outputs::All => 0,
            Outputs::From(row) => row,
        };
        let mut done = 0;
        while done < tokens.len() {
            if !go_on() {
                return Err(RunError::Cancelled);
            }
            let end = self.chunk_end(tokens.len(), done, first_wanted);
            let wanted = first_wanted.clamp(done, end)..end;
            let first_wanted = wanted.start - done;
            let part = Part { sequence, tokens: &tokens[done..end], first_wanted };
            self.step(&mut [part], |row, values| each(wanted.start + row, values))?;
            done = end;
        }
        Ok(())
    }

    /// Decodes one token of each sequence in one step, `tokens[i]` for `sequences[i]`, and calls
    /// `each` with `i` and the output of its row. At most [`Runner::decode_batch`] sequences.
    ///
    /// # Errors
    /// Those of [`Runner::feed`]; no sequence is longer then.
    pub fn decode(
        &mut self,
        sequences: &mut [&mut Sequence],
        tokens: &[u32],
        each: impl FnMut(usize, &[f32]),
    ) -> Result<(), RunError> {
        if sequences.len() != tokens.len() {
            let (sequences, tokens) = (sequences.len(), tokens.len());
            return Err(RunError::UnpairedTokens { sequences, tokens });
        }
        let pairs = || tokens.chunks_exact(1);
        for (sequence, token) in sequences.iter_mut().zip(pairs()) {
            self.check(sequence, token)?;
        }
        let mut parts: Vec<Part<'_>> = sequences
            .iter_mut()
            .zip(pairs())
            .map(|(sequence, tokens)| Part { sequence, tokens, first_wanted: 0 })
            .collect();
        if parts.is_empty() {
            return Ok(());
        }
        self.step(&mut parts, each)
    }

    /// Sequences that one decode step can carry.
    pub fn decode_batch(&self) -> usize {
        self.executor.max_tokens(Phase::Decode)
    }

    fn check(&mut self, sequence: &mut Sequence, tokens: &[u32]) -> Result<(), RunError> {
        if let Some(&token) = tokens.iter().find(|&&token| token as usize >= self.vocabulary) {
            return Err(RunError::NoSuchToken { token, vocabulary: self.vocabulary });
        }
        let wanted = sequence.past + tokens.len();
        if wanted > sequence.capacity {
            return Err(RunError::ContextFull { capacity: sequence.capacity, wanted });
        }
        let most = self.executor.max_tokens(Phase::Prefill);
        if !self.causal && tokens.len() > most {
            return Err(RunError::TooLongForEncoder { most, got: tokens.len() });
        }
        if !self.executor.kv.grow(&mut sequence.pages, wanted) {
            let (free, total) = (self.executor.kv.free_pages(), self.executor.kv.total_pages());
            return Err(RunError::NoPages { free, total });
        }
        Ok(())
    }

    /// End of the chunk that begins at `done`: no longer than a step takes, in rows and in outputs.
    fn chunk_end(&self, total: usize, done: usize, first_wanted: usize) -> usize {
        if !self.causal {
            return total;
        }
        let end = total.min(done + self.chunk);
        let most_outputs = self.executor.max_outputs(Phase::Prefill);
        end.min(first_wanted.max(done) + most_outputs)
    }

    /// Runs one step of all `parts` and calls `each` with the number and values of each wanted row.
    fn step(
        &mut self,
        parts: &mut [Part<'_>],
        mut each: impl FnMut(usize, &[f32]),
    ) -> Result<(), RunError> {
        let decodes = parts.iter().all(|part| part.tokens.len() == 1);
        let phase = if decodes { Phase::Decode } else { Phase::Prefill };
        let wanted: usize = parts.iter().map(|part| part.tokens.len() - part.first_wanted).sum();
        self.executor.step(
            phase,
            |step| {
                for Part { sequence, tokens, first_wanted } in &*parts {
                    let Sequence { pages, past, long_rope, .. } = &**sequence;
                    let rows = *first_wanted as u32..tokens.len() as u32;
                    step.push_sequence(tokens, *past as u32, pages, *long_rope, rows);
                }
            },
            |values| {
                let width = (values.len() / wanted.max(1)).max(1);
                for (row, values) in values.chunks_exact(width).enumerate() {
                    each(row, values);
                }
            },
        )?;
        for part in parts {
            part.sequence.past += part.tokens.len();
        }
        Ok(())
    }
}
