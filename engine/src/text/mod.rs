//! Everything between text and token ids: tokenizers, chat templates, sampling, and the way back
//! from ids to text that may be sent.
//!
//! Nothing in here knows of devices or threads. Types are cheap to share and are used by many
//! sequences at once; what belongs to one sequence (a [`Detokenizer`], a [`sampling::Sampler`]) is a value of its own.

pub mod detokenize;
pub mod of_model;
pub mod sampling;
pub mod stop;
pub mod template;
pub mod thinking;
pub mod tokenizer;
pub mod tools;

pub use detokenize::{Detokenizer, Piece};
pub use stop::{StopHit, StopStrings};
pub use template::{ChatTemplate, TemplateError};
pub use tokenizer::{DecodeOptions, EncodeOptions, Tokenizer, TokenizerError};
