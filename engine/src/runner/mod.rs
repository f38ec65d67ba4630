//! Feeds sequences to an executor: chunks, page growth, wanted rows.

mod error;
mod sequence;
mod sharing;
mod steps;

use trefoil_devices_api::Phase;
use trefoil_graph::Hyper;

use crate::executor::Executor;
pub use error::RunError;
pub use sequence::Sequence;
pub use sharing::LEAST_ROWS;
use steps::{Batch, Cut, Feed, Pages, Texts};

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
    steady: bool,
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
            steady: false,
        }
    }

    /// The same with what is known of its plan: do rows come out the same, bit for bit, in steps of any
    /// size and in both phases?
    pub fn with_steady_rows(self, steady: bool) -> Self {
        Self { steady, ..self }
    }

    /// Do rows come out the same, bit for bit, in steps of any size and in both phases?
    pub fn has_steady_rows(&self) -> bool {
        self.steady
    }

    /// Tokens of one prompt chunk.
    pub fn chunk(&self) -> usize {
        self.chunk
    }

    /// Begins a sequence that may grow to `capacity` tokens. The capacity decides which rope table a
    /// model with two of them uses, for the sequence's whole life.
    pub fn begin(&self, capacity: usize) -> Sequence {
        let long_rope = self.original_context.is_some_and(|original| capacity > original);
        Sequence::new(capacity, long_rope)
    }

    /// Ends a sequence: its pages are free again, or kept where others find them.
    pub fn end(&mut self, mut sequence: Sequence) {
        self.executor.kv.release(&mut sequence.pages);
    }

    /// Tokens that a sequence can hold at most.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Can a prompt be read at all?
    ///
    /// # Errors
    /// It is empty, too long for the context, or has tokens that the model has not.
    pub fn check_prompt(&self, tokens: &[u32]) -> Result<(), RunError> {
        if tokens.is_empty() {
            return Err(RunError::EmptyPrompt);
        }
        self.check_tokens(tokens)?;
        if tokens.len() > self.context {
            return Err(RunError::ContextFull { capacity: self.context, wanted: tokens.len() });
        }
        Ok(())
    }

    fn check_tokens(&self, tokens: &[u32]) -> Result<(), RunError> {
        let vocabulary = self.vocabulary;
        match tokens.iter().find(|&&token| token as usize >= vocabulary) {
            Some(&token) => Err(RunError::NoSuchToken { token, vocabulary }),
            None => Ok(()),
        }
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

    /// As [`Runner::feed`], but stops before the next step when `go_on` says no. Where the plan has
    /// several steps at once under way, those are done first.
    pub fn feed_while(
        &mut self,
        sequence: &mut Sequence,
        tokens: &[u32],
        outputs: Outputs,
        go_on: impl Fn() -> bool,
        each: impl FnMut(usize, &[f32]),
    ) -> Result<(), RunError> {
        self.feed_for(sequence, tokens, (outputs, 0), go_on, each)
    }

    /// As [`Runner::feed_while`] for the last row alone, of which only the `count` largest elements are
    /// looked at (0: all): the others may come as negative infinity.
    pub fn feed_for_largest(
        &mut self,
        sequence: &mut Sequence,
        tokens: &[u32],
        count: usize,
        go_on: impl Fn() -> bool,
        mut last: impl FnMut(&[f32]),
    ) -> Result<(), RunError> {
        self.feed_for(sequence, tokens, (Outputs::Last, count), go_on, |_, row| last(row))
    }

    fn feed_for(
        &mut self,
        sequence: &mut Sequence,
        tokens: &[u32],
        (outputs, largest): (Outputs, usize),
        go_on: impl Fn() -> bool,
        each: impl FnMut(usize, &[f32]),
    ) -> Result<(), RunError> {
        self.check(sequence, tokens)?;
        let first_wanted = match outputs {
            Outputs::None => tokens.len(),
            Outputs::Last => tokens.len().saturating_sub(1),
            Outputs::All => 0,
            Outputs::From(row) => row,
        };
        // An encoder reads a whole text in one step.
        let chunk = if self.causal { self.chunk } else { tokens.len() };
        let outputs_most =
            if self.causal { self.executor.max_outputs(Phase::Prefill) } else { tokens.len() };
        let decode_follows = outputs == Outputs::Last;
        let balanced = !self.steady && matches!(outputs, Outputs::None | Outputs::Last);
        let cut =
            Cut { chunk, balanced, outputs: outputs_most, first_wanted, decode_follows, largest };
        let pages = Pages::of(&self.executor);
        let mut feed = Feed::new(sequence, tokens, cut, pages, go_on, each);
        self.executor.run(&mut feed)?;
        if feed.cancelled { Err(RunError::Cancelled) } else { Ok(()) }
    }

    /// Reads whole texts in one step, `texts[i]` as all of the empty `sequences[i]`, and calls `each` with
    /// `i` and the output of its last row (of an encoder: of the text).
    ///
    /// # Errors
    /// Those of [`Runner::feed`], and [`RunError::TooLongForEncoder`] where the texts have more tokens
    /// together than a step takes rows.
    pub fn feed_texts(
        &mut self,
        sequences: &mut [Sequence],
        texts: &[&[u32]],
        each: impl FnMut(usize, &[f32]),
    ) -> Result<(), RunError> {
        if sequences.len() != texts.len() {
            let (sequences, tokens) = (sequences.len(), texts.len());
            return Err(RunError::UnpairedTokens { sequences, tokens });
        }
        for (sequence, text) in sequences.iter_mut().zip(texts) {
            self.check_prompt(text)?;
            self.check(sequence, text)?;
        }
        let (most, got) = (self.rows_at_once(), texts.iter().map(|text| text.len()).sum());
        if got > most {
            return Err(RunError::TooLongForEncoder { most, got });
        }
        if texts.is_empty() {
            return Ok(());
        }
        Ok(self.executor.run(&mut Texts::new(sequences, texts, each))?)
    }

    /// Rows that a step of prompts takes.
    pub fn rows_at_once(&self) -> usize {
        self.executor.max_tokens(Phase::Prefill)
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
        self.decode_for_largest(sequences, tokens, 0, each)
    }

    /// As [`Runner::decode`], where of each row only the `count` largest elements are looked at (0: all):
    /// the others may come as negative infinity.
    pub fn decode_for_largest(
        &mut self,
        sequences: &mut [&mut Sequence],
        tokens: &[u32],
        count: usize,
        each: impl FnMut(usize, &[f32]),
    ) -> Result<(), RunError> {
        if sequences.len() != tokens.len() {
            let (sequences, tokens) = (sequences.len(), tokens.len());
            return Err(RunError::UnpairedTokens { sequences, tokens });
        }
        for (sequence, token) in sequences.iter_mut().zip(tokens.chunks_exact(1)) {
            self.check(sequence, token)?;
        }
        if sequences.is_empty() {
            return Ok(());
        }
        let pages = Pages::of(&self.executor);
        Ok(self.executor.run(&mut Batch::new(sequences, tokens, pages, count, each))?)
    }

    /// Sequences that one decode step can carry.
    pub fn decode_batch(&self) -> usize {
        self.executor.max_tokens(Phase::Decode)
    }

    fn check(&mut self, sequence: &mut Sequence, tokens: &[u32]) -> Result<(), RunError> {
        self.check_tokens(tokens)?;
        let wanted = sequence.past + tokens.len();
        if wanted > sequence.capacity {
            return Err(RunError::ContextFull { capacity: sequence.capacity, wanted });
        }
        let most = self.executor.max_tokens(Phase::Prefill);
        if !self.causal && tokens.len() > most {
            return Err(RunError::TooLongForEncoder { most, got: tokens.len() });
        }
        if !self.executor.kv.grow(&mut sequence.pages, wanted) {
            let kv = &self.executor.kv;
            let (free, total) = (kv.available_pages(), kv.total_pages());
            return Err(RunError::NoPages { free, total });
        }
        Ok(())
    }
}
