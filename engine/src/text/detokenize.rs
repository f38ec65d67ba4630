//! From generated tokens to text that can be sent as it comes.

use std::sync::Arc;

use super::stop::{StopHit, StopMatcher, StopStrings};
use super::tokenizer::{DecodeOptions, Tokenizer};

/// Turns bytes into text as they come. Bytes wait until they are a whole character; what cannot
/// become one any more is U+FFFD, one for each maximal part of a character (Unicode, section 3.9).
#[derive(Debug, Default)]
pub struct Utf8Decoder {
    /// The beginning of a character.
    pending: Vec<u8>,
}

impl Utf8Decoder {
    /// Appends to `text` what `bytes` complete.
    pub fn push(&mut self, bytes: &[u8], text: &mut String) {
        self.pending.extend_from_slice(bytes);
        let mut rest = self.pending.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(whole) => {
                    text.push_str(whole);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (whole, broken) = rest.split_at(error.valid_up_to());
                    text.push_str(std::str::from_utf8(whole).unwrap_or_default());
                    rest = broken;
                    // no length: the bytes are the beginning of a character
                    let Some(length) = error.error_len() else { break };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &rest[length..];
                }
            }
        }
        let done = self.pending.len() - rest.len();
        self.pending.drain(..done);
    }

    /// Ends the text: the beginning of a character that waits becomes U+FFFD.
    pub fn finish(&mut self, text: &mut String) {
        if !self.pending.is_empty() {
            self.pending.clear();
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }
}

/// What a token, or the end, added to a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece<'a> {
    /// Whole characters that can be sent; empty while bytes wait.
    pub text: &'a str,
    /// Set as soon as a stop string is found; the reply ends before it.
    pub stop: Option<StopHit>,
}

/// Makes the text of one reply from its tokens: bytes, stop strings, whole characters.
///
/// Joined, the pieces are the text exactly. A token of a SentencePiece vocabulary that begins with
/// a space writes that space also at the start of a reply.
#[derive(Debug)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    options: DecodeOptions,
    /// Control tokens that write their names all the same.
    shown: Arc<[u32]>,
    stops: StopMatcher,
    decoder: Utf8Decoder,
    /// Bytes of all tokens so far.
    position: u64,
    bytes: Vec<u8>,
    text: String,
}

impl Detokenizer {
    /// For a new reply.
    pub fn new(tokenizer: Tokenizer, options: DecodeOptions, stops: StopStrings) -> Self {
        Self {
            tokenizer,
            options,
            shown: Arc::default(),
            stops: StopMatcher::new(stops),
            decoder: Utf8Decoder::default(),
            position: 0,
            bytes: Vec::new(),
            text: String::new(),
        }
    }

    /// The same with some control tokens as part of the text.
    pub fn showing(self, shown: Arc<[u32]>) -> Self {
        Self { shown, ..self }
    }

    /// Takes the next token.
    pub fn push(&mut self, id: u32) -> Piece<'_> {
        self.clear();
        if self.options.special || !self.tokenizer.is_control(id) || self.shown.contains(&id) {
            let bytes = self.tokenizer.token_bytes(id);
            self.position += bytes.len() as u64;
            self.stops.push(bytes, &mut self.bytes);
        }
        self.decoder.push(&self.bytes, &mut self.text);
        if self.stops.hit().is_some() {
            self.decoder.finish(&mut self.text);
        }
        Piece { text: &self.text, stop: self.stops.hit() }
    }

    /// Ends the reply: what was held back for stop strings and for whole characters comes out.
    pub fn finish(&mut self) -> Piece<'_> {
        self.clear();
        self.stops.finish(&mut self.bytes);
        self.decoder.push(&self.bytes, &mut self.text);
        self.decoder.finish(&mut self.text);
        Piece { text: &self.text, stop: self.stops.hit() }
    }

    /// Bytes of all tokens so far, those after a stop string included: where the next token's
    /// first byte will be. A token whose first byte lies before [`StopHit::start`] belongs to the
    /// reply.
    pub fn position(&self) -> u64 {
        self.position
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.text.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Cut anywhere, the pieces are the text that the standard library makes of the whole.
        #[test]
        fn pieces_make_the_lossy_text(
            bytes in prop::collection::vec(
                prop_oneof![
                    any::<u8>(),
                    prop::sample::select(vec![0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0x98, 0x80, 0xED, 0xA0]),
                ],
                0..40,
            ),
            sizes in prop::collection::vec(1_usize..5, 40),
        ) {
            let mut decoder = Utf8Decoder::default();
            let mut text = String::new();
            let mut rest = &bytes[..];
            for size in sizes {
                let (piece, later) = rest.split_at(size.min(rest.len()));
                decoder.push(piece, &mut text);
                rest = later;
            }
            decoder.push(rest, &mut text);
            decoder.finish(&mut text);
            prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
        }
    }

    #[test]
    fn characters_come_as_soon_as_they_are_whole() {
        let mut decoder = Utf8Decoder::default();
        let mut step = |bytes: &[u8]| {
            let mut text = String::new();
            decoder.push(bytes, &mut text);
            text
        };
        assert_eq!(step(b"a\xE2"), "a");
        assert_eq!(step(b"\x82"), "");
        assert_eq!(step(b"\xACb"), "€b");
        assert_eq!(step(b"\xE2\x82"), "");
        assert_eq!(step(b"c"), "\u{FFFD}c");
        assert_eq!(step(b"\xFF"), "\u{FFFD}");
    }
}
