//! Everything between text and token ids: tokenizers, chat templates, sampling, and the way back
//! from ids to text that may be sent.
//!
//! Nothing in here knows of devices or threads. Types are cheap to share and are used by many
//! sequences at once; what belongs to one sequence (a [`Detokenizer`], a [`StopMatcher`], a
//! [`sampling::Sampler`]) is a value of its own.

pub mod sampling;
pub mod template;
pub mod tokenizer;

pub use template::{ChatTemplate, TemplateError};
pub use tokenizer::{DecodeOptions, EncodeOptions, Tokenizer, TokenizerError};
