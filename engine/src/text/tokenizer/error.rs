//! Why a tokenizer could not be made.

use std::path::PathBuf;

use trefoil_graph::metadata::MetadataError;

/// Why a tokenizer could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// A key of the file is missing or of another type.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// The vocabulary has no tokens.
    #[error("tokenizer: expected at least one token, got none; the file has no vocabulary")]
    Empty,
    /// More than fits.
    #[error("tokenizer: expected at most {limit} {what}, got {got}; is the file damaged?")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// How much is accepted.
        limit: usize,
        /// How much there is.
        got: usize,
    },
    /// A list that goes with the tokens has another length.
    #[error("{key}: expected {expected} entries (one per token), got {got}; is the file damaged?")]
    Length {
        /// Key of the list.
        key: &'static str,
        /// Number of tokens.
        expected: usize,
        /// Entries in the list.
        got: usize,
    },
    /// A token id that is not in the vocabulary.
    #[error("{key}: expected a token below {tokens}, got {id}; is the file damaged?")]
    NoSuchToken {
        /// Key of the id.
        key: String,
        /// Number of tokens.
        tokens: usize,
        /// The id.
        id: u64,
    },
    /// A kind of tokenizer that is not built in.
    #[error(
        "tokenizer.ggml.model: expected one of gpt2, llama, bert, gemma4, got {model:?}; this kind \
         of tokenizer is not supported"
    )]
    Model {
        /// The kind that the file names.
        model: String,
    },
    /// A pre-tokenizer that is not known.
    #[error(
        "tokenizer.ggml.pre: {name:?} is not a known pre-tokenizer; a newer version may know it, \
         or use the model's folder with tokenizer.json"
    )]
    PreTokenizer {
        /// The name in the file.
        name: String,
    },
    /// A merge rule that is not two tokens with a space between.
    #[error("{key}: entry {index}: expected two tokens with a space between, got {got:?}")]
    Merge {
        /// Key of the list.
        key: &'static str,
        /// Position in the list.
        index: usize,
        /// The entry.
        got: String,
    },
    /// A pre-tokenizer's regular expression does not compile.
    #[error("pre-tokenizer {name}: the regular expression does not compile")]
    Pattern {
        /// Name of the pre-tokenizer.
        name: String,
        /// What is wrong with it.
        source: Box<fancy_regex::Error>,
    },
    /// The special tokens cannot be searched for.
    #[error("tokenizer: the special tokens are too many or too long to be searched for")]
    Specials {
        /// What is wrong with them.
        source: Box<aho_corasick::BuildError>,
    },
    /// A file cannot be read.
    #[error("{}: cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not the JSON that is expected.
    #[error("{}: not a tokenizer description that is understood", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A description is well-formed but says something that cannot be.
    #[error("{}: {what}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Field, expected and got.
        what: String,
    },
}
