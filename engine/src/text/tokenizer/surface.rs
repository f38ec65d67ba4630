//! How tokens are spelled in a vocabulary, and the bytes that they write.

use super::TokenizerError;
use super::byte_alphabet;
use super::sentence_piece::SPACE;
use super::vocabulary::{self, ByteStrings, TokenKind, Vocabulary};

/// The spelling of ordinary tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Surface {
    /// Every byte as a character of its own.
    ByteLevel,
    /// Spaces as U+2581, single bytes as `<0x0A>`.
    Metaspace {
        /// Whether encoding puts a space before text, which decoding takes away again.
        prefix_space: bool,
    },
    /// Tokens that continue a word begin with this; the others follow a space.
    Continued(String),
    /// Tokens that begin a word begin with U+2581.
    WordStart,
    /// As they are.
    Plain,
}

impl Surface {
    /// The bytes that each token writes.
    pub(super) fn pieces(&self, vocabulary: &Vocabulary) -> Result<ByteStrings, TokenizerError> {
        let count = vocabulary.len();
        let mut pieces = ByteStrings::with_capacity(count, count * 8);
        for id in 0..count as u32 {
            let text = vocabulary.text(id);
            pieces.push_with(|out| match vocabulary.kind(id) {
                TokenKind::Normal | TokenKind::Byte => self.write(text, out),
                _ => out.extend_from_slice(text.as_bytes()),
            })?;
        }
        Ok(pieces)
    }

    fn write(&self, text: &str, out: &mut Vec<u8>) {
        match self {
            Self::ByteLevel => {
                for c in text.chars() {
                    match byte_alphabet::byte_of(c) {
                        Some(byte) => out.push(byte),
                        // not of the alphabet: an added token that the file calls ordinary
                        None => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
                    }
                }
            }
            Self::Metaspace { .. } => match vocabulary::byte_of(text) {
                Some(byte) => out.push(byte),
                None => write_spaces(text, out),
            },
            Self::Continued(mark) => match text.strip_prefix(mark.as_str()) {
                Some(rest) => out.extend_from_slice(rest.as_bytes()),
                None => {
                    out.push(b' ');
                    out.extend_from_slice(text.as_bytes());
                }
            },
            Self::WordStart => write_spaces(text, out),
            Self::Plain => out.extend_from_slice(text.as_bytes()),
        }
    }

    /// The bytes of an ordinary token without a space that encoding put there. `first`: the token
    /// is at the start or follows a special token.
    pub(super) fn strip<'a>(&self, piece: &'a [u8], first: bool) -> &'a [u8] {
        let strips = match self {
            Self::Metaspace { prefix_space } => *prefix_space,
            Self::Continued(_) | Self::WordStart => true,
            Self::ByteLevel | Self::Plain => false,
        };
        if strips && first { piece.strip_prefix(b" ").unwrap_or(piece) } else { piece }
    }
}

fn write_spaces(text: &str, out: &mut Vec<u8>) {
    for c in text.chars() {
        let c = if c == SPACE { ' ' } else { c };
        out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
    }
}
