//! The parts of `tokenizer.json` that are read here; what is left to the tokenizers crate stays
//! JSON.

use std::fmt;

use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::Value;

use super::super::vocabulary::Vocabulary;

#[derive(Debug, Deserialize)]
pub(super) struct Description {
    #[serde(default)]
    pub(super) added_tokens: Vec<AddedToken>,
    #[serde(default)]
    pub(super) normalizer: Value,
    #[serde(default)]
    pub(super) pre_tokenizer: Value,
    #[serde(default)]
    pub(super) post_processor: Value,
    #[serde(default)]
    pub(super) decoder: Value,
    pub(super) model: ModelDescription,
}

/// A token that is recognised in text as a whole.
#[derive(Debug, Deserialize)]
pub(super) struct AddedToken {
    pub(super) id: u32,
    pub(super) content: String,
    #[serde(default)]
    pub(super) single_word: bool,
    #[serde(default)]
    pub(super) lstrip: bool,
    #[serde(default)]
    pub(super) rstrip: bool,
    #[serde(default)]
    pub(super) special: bool,
}

#[derive(Debug, Deserialize)]
pub(super) struct ModelDescription {
    #[serde(rename = "type")]
    kind: Option<String>,
    pub(super) vocab: Tokens,
    #[serde(default)]
    pub(super) merges: Merges,
    unk_token: Option<String>,
    unk_id: Option<u32>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    dropout: Option<f32>,
    #[serde(default)]
    pub(super) fuse_unk: bool,
    #[serde(default)]
    pub(super) byte_fallback: bool,
    #[serde(default)]
    pub(super) ignore_merges: bool,
}

impl ModelDescription {
    /// Whether it is byte pair encoding without marks inside of words.
    pub(super) fn is_plain_bpe(&self) -> bool {
        let empty = |mark: &Option<String>| mark.as_deref().unwrap_or_default().is_empty();
        let bpe = match self.kind.as_deref() {
            Some(kind) => kind == "BPE",
            None => !self.merges.is_empty(),
        };
        bpe && empty(&self.continuing_subword_prefix)
            && empty(&self.end_of_word_suffix)
            && self.dropout.is_none_or(|dropout| dropout == 0.0)
    }

    /// The mark of tokens that continue a word, of WordPiece.
    pub(super) fn continuation(&self) -> Option<&str> {
        let word_piece = self.kind.as_deref() == Some("WordPiece");
        self.continuing_subword_prefix.as_deref().filter(|_| word_piece)
    }

    /// The token for unknown text.
    pub(super) fn unknown(&self, vocabulary: &Vocabulary) -> Option<u32> {
        let by_text = self.unk_token.as_deref().and_then(|text| vocabulary.id(text));
        by_text.or(self.unk_id.filter(|&id| (id as usize) < vocabulary.len()))
    }
}

/// Tokens with their ids: a JSON object from text to id, or an array of pairs of text and score.
#[derive(Debug)]
pub(super) struct Tokens(pub(super) Vec<(String, u32)>);

impl<'de> Deserialize<'de> for Tokens {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;

        impl<'de> Visitor<'de> for Read {
            type Value = Tokens;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("tokens with their ids or scores")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tokens, A::Error> {
                let mut tokens = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    tokens.push(entry);
                }
                Ok(Tokens(tokens))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Tokens, A::Error> {
                let mut tokens = Vec::new();
                while let Some((text, _score)) = seq.next_element::<(String, IgnoredAny)>()? {
                    let id = u32::try_from(tokens.len()).map_err(serde::de::Error::custom)?;
                    tokens.push((text, id));
                }
                Ok(Tokens(tokens))
            }
        }

        deserializer.deserialize_any(Read)
    }
}

/// Merges: `"a b"` in older files, `["a", "b"]` in newer ones.
#[derive(Debug, Default)]
pub(super) struct Merges(Vec<(String, String)>);

impl std::ops::Deref for Merges {
    type Target = [(String, String)];

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Merges {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let merges = Vec::<Merge>::deserialize(deserializer)?;
        Ok(Self(merges.into_iter().map(|merge| (merge.0, merge.1)).collect()))
    }
}

struct Merge(String, String);

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;

        impl<'de> Visitor<'de> for Read {
            type Value = Merge;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("two tokens, in an array or with a space between")
            }

            fn visit_str<E: serde::de::Error>(self, line: &str) -> Result<Merge, E> {
                let wrong = || E::invalid_value(serde::de::Unexpected::Str(line), &self);
                let (left, right) = line.split_once(' ').ok_or_else(wrong)?;
                Ok(Merge(left.to_owned(), right.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Merge, A::Error> {
                let mut part = |index| {
                    seq.next_element()?
                        .ok_or_else(|| serde::de::Error::invalid_length(index, &"two tokens"))
                };
                let merge = Merge(part(0)?, part(1)?);
                match seq.next_element::<IgnoredAny>()? {
                    None => Ok(merge),
                    Some(_) => Err(serde::de::Error::invalid_length(3, &"two tokens")),
                }
            }
        }

        deserializer.deserialize_any(Read)
    }
}
