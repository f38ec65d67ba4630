//! Replies that follow a grammar: JSON schemas, GBNF, Lark and regular expressions become masks over
//! token ids, one for each token of a reply.
//!
//! A [`GrammarSource`] is compiled once, by [`Grammars`], on a thread of its own and within limits; a
//! [`Grammar`] serves any number of replies. Each reply has a [`Constraint`]: the state of the parser,
//! which goes to a mask thread with every token that was chosen and comes back with the mask of the
//! next one. So masks are made while the devices work on the step between the two.

mod compile;
mod constraint;
mod gbnf;
mod masks;
mod regular;
mod schema;
mod vocabulary;

pub(crate) use compile::json_part;
pub use compile::{COMPILE_LIMIT, Grammar, Grammars};
pub(crate) use constraint::Constraint;
pub(crate) use regular::escaped;
pub use schema::{CheckedSchema, check_schema};

/// Longest source of a grammar or schema, in bytes.
pub const SOURCE_BYTES_MAX: usize = 256 << 10;

/// Deepest nesting of a schema or a grammar.
pub const DEPTH_MAX: usize = 64;

/// What a grammar is made of.
#[derive(Clone, Debug, PartialEq)]
pub enum GrammarSource {
    /// Any JSON object.
    JsonObject,
    /// JSON that is valid by a schema.
    JsonSchema(CheckedSchema),
    /// A grammar as llama.cpp writes them, with a rule `root`.
    Gbnf(String),
    /// A grammar in llguidance's variant of Lark, with a rule `start`.
    Lark(String),
    /// A regular expression that the whole reply matches.
    Regex(String),
}

/// Why a grammar cannot be used.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum GrammarError {
    /// A keyword of a schema that masks cannot enforce.
    #[error("{pointer}: {what} cannot be enforced; leave it out, or do without `strict`")]
    Unsupported {
        /// JSON pointer into the schema.
        pointer: String,
        /// The keyword, or its value.
        what: String,
    },
    /// A schema that is none.
    #[error("the schema at '{pointer}': expected {expected}, got {got}")]
    Invalid {
        /// JSON pointer into the schema.
        pointer: String,
        /// What may stand there.
        expected: &'static str,
        /// What does.
        got: String,
    },
    /// Beyond the limits of size, depth, or work.
    #[error("the grammar is too complex: {0}; make it smaller, or split it")]
    TooComplex(String),
    /// A grammar that is not understood.
    #[error("line {line} of the grammar: {message}")]
    Syntax {
        /// Line, from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// A source that the compiler of grammars refuses.
    #[error("the grammar cannot be compiled: {0}")]
    Refused(String),
    /// Other grammars are being compiled, for too long.
    #[error("other grammars are being compiled; try again in a moment")]
    Busy,
    /// The reply cannot go on as the grammar says. A bug, of the grammar or of this program.
    #[error("no token of the vocabulary continues the reply as its grammar says: {0}")]
    Stuck(String),
}
