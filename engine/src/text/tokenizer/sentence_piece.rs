//! SentencePiece's byte pair encoding: no list of merges, but a score for every token; of all
//! neighbours that are a token together, the pair of the highest score is joined first.

use super::merge::{Merger, NONE};
use super::vocabulary::Vocabulary;

/// The sign that stands for a space.
pub(super) const SPACE: char = '\u{2581}';

/// Scores and rules of one vocabulary.
#[derive(Debug)]
pub(super) struct SentencePiece {
    /// Rank of each token: lower for a higher score.
    ranks: Vec<u32>,
    /// Ids of the tokens for single bytes; without them unknown text becomes `unknown`.
    bytes: Option<Box<[u32; 256]>>,
    unknown: Option<u32>,
    /// Whether a space is put before text at the start and after special tokens.
    pub(super) prefix_space: bool,
}

impl SentencePiece {
    pub(super) fn new(
        vocabulary: &Vocabulary,
        scores: &[f32],
        unknown: Option<u32>,
        prefix_space: bool,
    ) -> Self {
        let ranks = scores.iter().map(|&score| rank(score)).collect();
        Self { ranks, bytes: vocabulary.byte_tokens(), unknown, prefix_space }
    }

    /// Appends the ids of a text. `first`: it is at the start or follows a special token.
    pub(super) fn encode(
        &self,
        vocabulary: &Vocabulary,
        text: &str,
        first: bool,
        merger: &mut Merger,
        out: &mut Vec<u32>,
    ) {
        let mut escaped = String::with_capacity(text.len() + text.len() / 2 + SPACE.len_utf8());
        if first && self.prefix_space {
            escaped.push(SPACE);
        }
        escaped.extend(text.chars().map(|c| if c == ' ' { SPACE } else { c }));
        merger.clear();
        for (at, c) in escaped.char_indices() {
            let id = vocabulary.id(&escaped[at..at + c.len_utf8()]).unwrap_or(NONE);
            merger.push(c.len_utf8(), id);
        }
        merger.run(|left, right| {
            let end = (right.start + right.length) as usize;
            let id = vocabulary.id(&escaped[left.start as usize..end])?;
            Some((self.ranks.get(id as usize).copied().unwrap_or(u32::MAX), id))
        });
        for symbol in merger.symbols() {
            if symbol.id != NONE {
                out.push(symbol.id);
            } else if let Some(bytes) = &self.bytes {
                let text = &escaped.as_bytes()[symbol.start as usize..];
                out.extend(text[..symbol.length as usize].iter().map(|&b| bytes[usize::from(b)]));
            } else {
                out.extend(self.unknown);
            }
        }
    }
}

/// A number that is lower for a higher score. Not-a-number counts as the lowest score.
fn rank(score: f32) -> u32 {
    if score.is_nan() {
        return u32::MAX;
    }
    // the bits of floats are in order of magnitude: for negative ones turned round, and the sign
    // of zero does not matter
    let bits = (score + 0.0).to_bits();
    let ascending = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
    !ascending
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::vocabulary::TokenKind;
    use super::*;

    proptest! {
        #[test]
        fn ranks_are_in_order_of_scores(a: f32, b: f32) {
            prop_assume!(!a.is_nan() && !b.is_nan());
            prop_assert_eq!(rank(a).cmp(&rank(b)), b.partial_cmp(&a).expect("no NaN"));
        }
    }

    #[test]
    fn the_highest_score_is_joined_first() {
        let texts = ["<unk>", "\u{2581}", "a", "b", "ab", "\u{2581}a", "ba"];
        let scores = [0.0, -9.0, -9.0, -9.0, -2.0, -1.0, -3.0];
        let kinds = vec![TokenKind::Normal; texts.len()];
        let vocabulary = Vocabulary::new(texts.into_iter(), kinds).expect("a vocabulary");
        let model = SentencePiece::new(&vocabulary, &scores, Some(0), true);
        let encode = |text, first| {
            let mut out = Vec::new();
            model.encode(&vocabulary, text, first, &mut Merger::default(), &mut out);
            out
        };
        assert_eq!(encode("ab", true), [5, 3]);
        assert_eq!(encode("ab", false), [4]);
        assert_eq!(encode("bab a", false), [3, 4, 5]);
        assert_eq!(encode("aéa", false), [2, 0, 2]);
        assert_eq!(encode("", true), [1]);
    }
}
