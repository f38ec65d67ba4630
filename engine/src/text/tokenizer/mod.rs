//! Tokenizers: text to token ids and back.
//!
//! A [`Tokenizer`] comes from a GGUF file's metadata or from a folder with `tokenizer.json`. Both
//! end in the same few parts: special tokens are cut out of the text first; what is left goes
//! through a model (byte-level or plain byte pair encoding, SentencePiece's variant, WordPiece, or
//! a pipeline of the tokenizers crate); ids that every text gets are put around.

mod bpe;
mod byte_alphabet;
mod end_tokens;
mod error;
mod folder;
mod gguf;
mod merge;
mod pipeline;
mod pre_tokenizer;
mod presets;
mod sentence_piece;
mod specials;
mod surface;
mod vocabulary;
mod word_piece;

use std::path::Path;
use std::sync::Arc;

use trefoil_graph::metadata::Metadata;

pub use error::TokenizerError;
pub use vocabulary::TokenKind;

use bpe::Bpe;
use merge::Merger;
use pipeline::Pipeline;
use pre_tokenizer::PreTokenizer;
use sentence_piece::SentencePiece;
use specials::{Part, Specials};
use surface::Surface;
use vocabulary::{ByteStrings, Vocabulary};
use word_piece::WordPiece;

/// Longest text that is encoded in one piece, in bytes; longer ones are encoded in several.
const TEXT_BYTES_MAX: usize = 1 << 30;

/// How text is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EncodeOptions {
    /// Put the tokens around the text that the model expects around every text (start, end).
    pub add_special: bool,
    /// Take the names of control tokens in the text for these tokens. User-defined tokens are
    /// always recognised.
    pub parse_special: bool,
}

/// How ids are decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DecodeOptions {
    /// Write the names of control tokens; otherwise they leave no text.
    pub special: bool,
}

/// Tokens with a duty of their own, where the model has them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SpecialTokens {
    /// Begins a text.
    pub bos: Option<u32>,
    /// Ends a text.
    pub eos: Option<u32>,
    /// Ends a turn.
    pub eot: Option<u32>,
    /// Ends a message inside of a turn.
    pub eom: Option<u32>,
    /// Stands for text without a token.
    pub unknown: Option<u32>,
    /// Separates texts (BERT).
    pub separator: Option<u32>,
    /// Fills up batches.
    pub padding: Option<u32>,
    /// Stands for hidden text (BERT).
    pub mask: Option<u32>,
    /// Fill in the middle: before the text that precedes the gap.
    pub fim_prefix: Option<u32>,
    /// Fill in the middle: before the text that follows the gap.
    pub fim_suffix: Option<u32>,
    /// Fill in the middle: before the text of the gap.
    pub fim_middle: Option<u32>,
}

/// A tokenizer. Cloning shares the vocabulary; all methods may be called from many threads.
#[derive(Clone)]
pub struct Tokenizer(Arc<Inner>);

impl std::fmt::Debug for Tokenizer {
    /// Without the vocabulary, which nobody could read.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("tokens", &self.vocab_size())
            .field("special", &self.0.tokens)
            .field("ends", &self.0.ends)
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Inner {
    vocabulary: Vocabulary,
    /// The bytes that each token writes.
    pieces: ByteStrings,
    surface: Surface,
    specials: Specials,
    model: Model,
    tokens: SpecialTokens,
    /// Ids before and after every text.
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    /// Ids that end the turn, sorted.
    ends: Vec<u32>,
    warnings: Vec<String>,
}

/// How text without special tokens becomes ids.
#[derive(Debug)]
enum Model {
    /// Byte pair encoding over the byte alphabet.
    ByteLevel {
        bpe: Bpe,
        pre_tokenizer: PreTokenizer,
    },
    /// Byte pair encoding over characters, spaces written as U+2581.
    Characters {
        bpe: Bpe,
        pre_tokenizer: PreTokenizer,
    },
    SentencePiece(SentencePiece),
    WordPiece(WordPiece),
    Pipeline(Box<Pipeline>),
}

impl Tokenizer {
    /// From the metadata of a GGUF file (keys `tokenizer.ggml.*`).
    ///
    /// # Errors
    /// A key is missing or wrong, or the kind of tokenizer is not known.
    pub fn from_metadata(metadata: &Metadata) -> Result<Self, TokenizerError> {
        gguf::load(metadata).map(|inner| Self(Arc::new(inner)))
    }

    /// From a folder with `tokenizer.json` and, where they are there, `tokenizer_config.json`,
    /// `special_tokens_map.json`, `generation_config.json` and `config.json`.
    ///
    /// # Errors
    /// A file is missing, cannot be read or is not understood.
    pub fn from_folder(folder: &Path) -> Result<Self, TokenizerError> {
        folder::load(folder).map(|inner| Self(Arc::new(inner)))
    }

    /// The token ids of a text.
    pub fn encode(&self, text: &str, options: EncodeOptions) -> Vec<u32> {
        let inner = &*self.0;
        let mut out = Vec::with_capacity(text.len() / 3 + 4);
        if options.add_special {
            out.extend(&inner.prefix);
        }
        let mut merger = Merger::default();
        let mut first = true;
        inner.specials.split(text, options.parse_special, &mut |part| match part {
            Part::Token(id) => {
                out.push(id);
                first = true;
            }
            Part::Text(mut rest) => {
                let at_start = rest.as_ptr() == text.as_ptr();
                while !rest.is_empty() {
                    let (text, later) = rest.split_at(rest.floor_char_boundary(TEXT_BYTES_MAX));
                    inner.encode_text(text, Place { first, at_start }, &mut merger, &mut out);
                    first = false;
                    rest = later;
                }
            }
        });
        if options.add_special {
            out.extend(&inner.suffix);
        }
        out
    }

    /// The text of token ids. Bytes that are not UTF-8 become U+FFFD, one for each maximal part
    /// of a character; ids that are not in the vocabulary leave nothing.
    ///
    /// `decode(encode(text))`, without what `add_special` adds and with `special`, is `text` for
    /// byte-level and SentencePiece vocabularies, but: a byte that the vocabulary has no token for
    /// is lost, and SentencePiece gives U+2581 back as a space. WordPiece is not reversible, nor
    /// is a `tokenizer.json` that normalises text.
    pub fn decode(&self, ids: &[u32], options: DecodeOptions) -> String {
        let inner = &*self.0;
        let mut bytes = Vec::with_capacity(ids.len() * 4);
        // whether the encoder would have put a space here that the text did not have
        let mut first = true;
        for &id in ids {
            let special = self.is_special(id);
            if !special {
                let piece = inner.pieces.get(id as usize);
                bytes.extend(inner.surface.strip(piece, first));
            } else if options.special || !self.is_control(id) {
                bytes.extend(inner.pieces.get(id as usize));
            }
            first = special;
        }
        match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
        }
    }

    /// The bytes that a token writes, control tokens their name; they need not be whole
    /// characters. Empty for ids that are not in the vocabulary.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.0.pieces.get(id as usize)
    }

    /// The token as the vocabulary spells it (`Ġthe`, `▁the`, `##ing`); empty for ids that are not
    /// in it.
    pub fn token_text(&self, id: u32) -> &str {
        self.0.vocabulary.text(id)
    }

    /// Number of token ids.
    pub fn vocab_size(&self) -> usize {
        self.0.vocabulary.len()
    }

    /// The id of the token that the vocabulary spells so.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.0.vocabulary.id(token)
    }

    /// What a token is for; unused for ids that are not in the vocabulary.
    pub fn kind(&self, id: u32) -> TokenKind {
        self.0.vocabulary.kind(id)
    }

    /// Whether the token steers the model and is no text.
    pub fn is_control(&self, id: u32) -> bool {
        matches!(self.kind(id), TokenKind::Control | TokenKind::Unknown | TokenKind::Unused)
    }

    /// Whether the token is recognised in text as a whole: control, unknown and user-defined ones.
    pub fn is_special(&self, id: u32) -> bool {
        self.is_control(id) || self.kind(id) == TokenKind::UserDefined
    }

    /// Whether a model that writes this token has finished its turn.
    pub fn is_end_of_generation(&self, id: u32) -> bool {
        self.0.ends.binary_search(&id).is_ok()
    }

    /// All tokens that end a turn, in the order of their ids.
    pub fn end_tokens(&self) -> &[u32] {
        &self.0.ends
    }

    /// Tokens with a duty of their own.
    pub fn special_tokens(&self) -> SpecialTokens {
        self.0.tokens
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.0.tokens.bos
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.0.tokens.eos
    }

    /// The token that ends a turn.
    pub fn eot(&self) -> Option<u32> {
        self.0.tokens.eot
    }

    /// Whether a text that is encoded with `add_special` begins with [`Tokenizer::bos`].
    pub fn add_bos(&self) -> bool {
        self.bos().is_some() && self.0.prefix.first().copied() == self.bos()
    }

    /// Things about the file that were mended by guessing, for the log.
    pub fn warnings(&self) -> &[String] {
        &self.0.warnings
    }
}

/// Where a text without special tokens stands.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// At the start, or after a special token.
    first: bool,
    /// At the very start.
    at_start: bool,
}

impl Inner {
    fn encode_text(&self, text: &str, place: Place, merger: &mut Merger, out: &mut Vec<u32>) {
        let vocabulary = &self.vocabulary;
        match &self.model {
            Model::ByteLevel { bpe, pre_tokenizer } => {
                let mut spelled = String::new();
                pre_tokenizer.split(text, &mut |piece| {
                    spelled.clear();
                    spelled.extend(piece.bytes().map(byte_alphabet::char_of));
                    bpe.encode(vocabulary, &spelled, merger, out);
                });
            }
            Model::Characters { bpe, pre_tokenizer } => {
                let escaped = text.replace(' ', "\u{2581}");
                pre_tokenizer.split(&escaped, &mut |piece| {
                    bpe.encode(vocabulary, piece, merger, out);
                });
            }
            Model::SentencePiece(model) => {
                model.encode(vocabulary, text, place.first, merger, out);
            }
            Model::WordPiece(model) => model.encode(vocabulary, text, out),
            Model::Pipeline(pipeline) => {
                pipeline.encode(vocabulary, text, place.at_start, merger, out);
            }
        }
    }
}
