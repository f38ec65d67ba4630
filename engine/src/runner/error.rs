//! Why a sequence cannot go on.

use crate::executor::ExecuteError;

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
