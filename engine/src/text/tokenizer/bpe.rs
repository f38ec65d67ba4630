//! Byte pair encoding with ranked merges, over characters of the vocabulary's own alphabet.

use hashbrown::HashMap;

use super::TokenizerError;
use super::merge::{Merger, NONE};
use super::vocabulary::Vocabulary;

/// Characters below this are looked up in a table; it spans the byte-level alphabet.
const TABLE_CHARS: usize = 512;

/// What becomes of characters that are not in the vocabulary.
#[derive(Debug, Default)]
pub(super) struct Fallback {
    /// Ids of the tokens for single bytes, tried first.
    pub(super) bytes: Option<Box<[u32; 256]>>,
    /// The token for unknown text, tried next. Without it the character is dropped.
    pub(super) unknown: Option<u32>,
    /// Whether neighbouring unknown characters share one unknown token.
    pub(super) fuse: bool,
}

/// Merges and rules of one vocabulary.
#[derive(Debug)]
pub(super) struct Bpe {
    /// Rank and id of what two tokens become, by the pair of their ids.
    merges: HashMap<(u32, u32), (u32, u32)>,
    /// Ids of single characters, [`NONE`] where there is no token.
    characters: Box<[u32; TABLE_CHARS]>,
    /// Whether a piece that is a token is taken as it is, whatever the merges say.
    ignore_merges: bool,
    fallback: Fallback,
}

impl Bpe {
    /// From merges in the order of their rank. A merge whose parts or whole are no tokens cannot
    /// act and is left out.
    pub(super) fn new<'a>(
        vocabulary: &Vocabulary,
        merges: impl ExactSizeIterator<Item = (&'a str, &'a str)>,
        ignore_merges: bool,
        fallback: Fallback,
    ) -> Result<Self, TokenizerError> {
        let limit = NONE as usize;
        if merges.len() >= limit {
            return Err(TokenizerError::TooLarge { what: "merges", limit, got: merges.len() });
        }
        let mut table = HashMap::with_capacity(merges.len());
        let mut whole = String::new();
        for (rank, (left, right)) in merges.enumerate() {
            whole.clear();
            whole.push_str(left);
            whole.push_str(right);
            let ids = (vocabulary.id(left), vocabulary.id(right), vocabulary.id(&whole));
            if let (Some(left), Some(right), Some(whole)) = ids {
                table.entry((left, right)).or_insert((rank as u32, whole));
            }
        }
        let mut characters = Box::new([NONE; TABLE_CHARS]);
        for (code, id) in characters.iter_mut().enumerate() {
            let c = char::from_u32(code as u32).expect("codes below 0x200 are characters");
            *id = vocabulary.id(c.encode_utf8(&mut [0; 4])).unwrap_or(NONE);
        }
        Ok(Self { merges: table, characters, ignore_merges, fallback })
    }

    /// Appends the ids of one piece, spelled in the vocabulary's alphabet.
    pub(super) fn encode(
        &self,
        vocabulary: &Vocabulary,
        piece: &str,
        merger: &mut Merger,
        out: &mut Vec<u32>,
    ) {
        if self.ignore_merges
            && let Some(id) = vocabulary.id(piece)
        {
            out.push(id);
            return;
        }
        merger.clear();
        for (at, c) in piece.char_indices() {
            let length = c.len_utf8();
            let id = match self.characters.get(c as usize) {
                Some(&id) => id,
                None => vocabulary.id(&piece[at..at + length]).unwrap_or(NONE),
            };
            merger.push(length, id);
        }
        merger.run(|left, right| self.merges.get(&(left.id, right.id)).copied());
        let mut after_unknown = false;
        for symbol in merger.symbols() {
            if symbol.id != NONE {
                out.push(symbol.id);
                after_unknown = false;
                continue;
            }
            if let Some(bytes) = &self.fallback.bytes {
                let text = &piece.as_bytes()[symbol.start as usize..];
                out.extend(text[..symbol.length as usize].iter().map(|&b| bytes[usize::from(b)]));
                after_unknown = false;
            } else if let Some(unknown) = self.fallback.unknown {
                if !(self.fallback.fuse && after_unknown) {
                    out.push(unknown);
                }
                after_unknown = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::vocabulary::TokenKind;
    use super::*;

    /// The rule as it is stated: join the leftmost pair of the lowest rank, again and again.
    fn naive(vocabulary: &Vocabulary, merges: &[(&str, &str)], text: &str) -> Vec<u32> {
        let mut parts: Vec<String> = text.chars().map(String::from).collect();
        loop {
            let rank =
                |at: usize| merges.iter().position(|&(a, b)| parts[at] == a && parts[at + 1] == b);
            let best = (0..parts.len().saturating_sub(1))
                .filter_map(|at| rank(at).map(|rank| (rank, at)))
                .min();
            let Some((_, at)) = best else { break };
            let right = parts.remove(at + 1);
            parts[at].push_str(&right);
        }
        parts.iter().filter_map(|part| vocabulary.id(part)).collect()
    }

    const TOKENS: [&str; 12] =
        ["a", "b", "c", "ab", "bc", "aa", "abc", "aab", "cc", "bcc", "aaaa", "abcc"];
    const MERGES: [(&str, &str); 9] = [
        ("a", "b"),
        ("b", "c"),
        ("a", "a"),
        ("c", "c"),
        ("ab", "c"),
        ("aa", "b"),
        ("b", "cc"),
        ("aa", "aa"),
        ("ab", "cc"),
    ];

    fn bpe(fallback: Fallback) -> (Vocabulary, Bpe) {
        let kinds = vec![TokenKind::Normal; TOKENS.len()];
        let vocabulary = Vocabulary::new(TOKENS.iter().copied(), kinds).expect("a vocabulary");
        let bpe = Bpe::new(&vocabulary, MERGES.iter().copied(), false, fallback).expect("merges");
        (vocabulary, bpe)
    }

    proptest! {
        #[test]
        fn merging_follows_the_stated_rule(text in "[abc]{0,40}") {
            let (vocabulary, bpe) = bpe(Fallback::default());
            let mut out = Vec::new();
            bpe.encode(&vocabulary, &text, &mut Merger::default(), &mut out);
            prop_assert_eq!(out, naive(&vocabulary, &MERGES, &text));
        }
    }

    #[test]
    fn unknown_characters_fall_back() {
        let encode = |fallback| {
            let (vocabulary, bpe) = bpe(fallback);
            let mut out = Vec::new();
            bpe.encode(&vocabulary, "aéüb", &mut Merger::default(), &mut out);
            out
        };
        assert_eq!(encode(Fallback::default()), [0, 1]);
        let fused = Fallback { unknown: Some(9), fuse: true, ..Fallback::default() };
        assert_eq!(encode(fused), [0, 9, 1]);
        let each = Fallback { unknown: Some(9), fuse: false, ..Fallback::default() };
        assert_eq!(encode(each), [0, 9, 9, 1]);
        let bytes = Some(Box::new(std::array::from_fn(|byte| byte as u32 + 1000)));
        let bytes = Fallback { bytes, unknown: Some(9), fuse: true };
        assert_eq!(encode(bytes), [0, 1195, 1169, 1195, 1188, 1]);
    }
}
