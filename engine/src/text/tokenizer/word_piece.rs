//! WordPiece, the tokenizer of BERT: words are cut greedily into the longest tokens.

use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::{NormalizedString, Normalizer, OffsetReferential, OffsetType};
use tokenizers::{PreTokenizedString, PreTokenizer};

use super::sentence_piece::SPACE;
use super::vocabulary::Vocabulary;

/// Longer words become the unknown token, in characters; the limit of the models' own tokenizer.
const WORD_CHARS_MAX: usize = 100;

/// WordPiece over a vocabulary in GGUF's spelling: tokens that begin a word begin with U+2581,
/// the others are bare.
#[derive(Debug)]
pub(super) struct WordPiece {
    normalizer: BertNormalizer,
    unknown: u32,
}

impl WordPiece {
    pub(super) fn new(unknown: u32, lowercase: bool, strip_accents: bool) -> Self {
        let normalizer = BertNormalizer::new(true, true, Some(strip_accents), lowercase);
        Self { normalizer, unknown }
    }

    /// Appends the ids of a text.
    pub(super) fn encode(&self, vocabulary: &Vocabulary, text: &str, out: &mut Vec<u32>) {
        let mut normalized = NormalizedString::from(text);
        self.normalizer.normalize(&mut normalized).expect("cleaning text cannot fail");
        let mut words = PreTokenizedString::from(normalized);
        BertPreTokenizer.pre_tokenize(&mut words).expect("splitting at spaces cannot fail");
        let mut spelled = String::new();
        for (word, _, _) in words.get_splits(OffsetReferential::Normalized, OffsetType::None) {
            spelled.clear();
            spelled.push(SPACE);
            spelled.push_str(word);
            let before = out.len();
            if word.chars().count() > WORD_CHARS_MAX || !cut(vocabulary, &spelled, out) {
                out.truncate(before);
                out.push(self.unknown);
            }
        }
    }
}

/// Appends the ids of a word; `false` where no token fits.
fn cut(vocabulary: &Vocabulary, word: &str, out: &mut Vec<u32>) -> bool {
    let mut rest = word;
    while !rest.is_empty() {
        let longest = rest
            .char_indices()
            .rev()
            .map(|(at, c)| at + c.len_utf8())
            .find_map(|end| vocabulary.id(&rest[..end]).map(|id| (end, id)));
        // the mark of a word's start is no part of the word
        let Some((end, id)) = longest.filter(|&(end, _)| &rest[..end] != "\u{2581}") else {
            return false;
        };
        out.push(id);
        rest = &rest[end..];
    }
    true
}
