//! The tokens of a vocabulary: their texts, kinds, and the way from text to id.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};

use super::TokenizerError;

/// Most tokens that a vocabulary may have; the largest published ones have 262,144.
const TOKENS_MAX: usize = 1 << 24;

/// What a token is for. The numbers are those of GGUF's `tokenizer.ggml.token_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum TokenKind {
    /// Ordinary text.
    Normal = 1,
    /// Stands for text that has no token.
    Unknown = 2,
    /// Steers the model (start, end, roles); in text it is recognised only where asked for.
    Control = 3,
    /// Ordinary text that is always taken whole.
    UserDefined = 4,
    /// A place in the vocabulary without use.
    Unused = 5,
    /// One byte, for text that has no token.
    Byte = 6,
}

impl TokenKind {
    /// From GGUF's number; what is not known counts as ordinary text.
    pub(super) fn from_gguf(number: i32) -> Self {
        match number {
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => Self::Normal,
        }
    }
}

/// Strings in one piece of memory.
#[derive(Debug, Default)]
pub(super) struct ByteStrings {
    bytes: Vec<u8>,
    /// Where each string ends.
    ends: Vec<u32>,
}

impl ByteStrings {
    pub(super) fn with_capacity(strings: usize, bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes), ends: Vec::with_capacity(strings) }
    }

    /// Appends the string that `write` appends to the buffer.
    pub(super) fn push_with(
        &mut self,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), TokenizerError> {
        write(&mut self.bytes);
        let end = u32::try_from(self.bytes.len()).map_err(|_| TokenizerError::TooLarge {
            what: "bytes in all tokens",
            limit: u32::MAX as usize,
            got: self.bytes.len(),
        })?;
        self.ends.push(end);
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// String `index`; empty where there is none.
    pub(super) fn get(&self, index: usize) -> &[u8] {
        let Some(&end) = self.ends.get(index) else { return &[] };
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.bytes[start as usize..end as usize]
    }
}

/// Texts, kinds and ids of all tokens.
#[derive(Debug)]
pub(super) struct Vocabulary {
    texts: ByteStrings,
    kinds: Vec<TokenKind>,
    /// Ids by the hash of their text. Where a text occurs twice, the first id stands.
    index: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

impl Vocabulary {
    /// From the texts in the order of their ids. An empty text is a token that nothing encodes to.
    pub(super) fn new<'a>(
        texts: impl ExactSizeIterator<Item = &'a str>,
        kinds: Vec<TokenKind>,
    ) -> Result<Self, TokenizerError> {
        let count = texts.len();
        if count == 0 {
            return Err(TokenizerError::Empty);
        }
        if count > TOKENS_MAX {
            let what = "tokens";
            return Err(TokenizerError::TooLarge { what, limit: TOKENS_MAX, got: count });
        }
        let hasher = DefaultHashBuilder::default();
        let mut stored = ByteStrings::with_capacity(count, count * 8);
        let mut index = HashTable::with_capacity(count);
        for (id, text) in texts.enumerate() {
            stored.push_with(|bytes| bytes.extend_from_slice(text.as_bytes()))?;
            if text.is_empty() {
                continue;
            }
            let hash_of = |&id: &u32| hasher.hash_one(stored.get(id as usize));
            let same = |&other: &u32| stored.get(other as usize) == text.as_bytes();
            index.entry(hasher.hash_one(text.as_bytes()), same, hash_of).or_insert(id as u32);
        }
        Ok(Self { texts: stored, kinds, index, hasher })
    }

    pub(super) fn len(&self) -> usize {
        self.texts.len()
    }

    /// The text of a token as the vocabulary spells it; empty where there is no such token.
    pub(super) fn text(&self, id: u32) -> &str {
        // only whole strings went in
        std::str::from_utf8(self.texts.get(id as usize)).unwrap_or_default()
    }

    /// The id of the token that the vocabulary spells so.
    pub(super) fn id(&self, text: &str) -> Option<u32> {
        let hash = self.hasher.hash_one(text.as_bytes());
        let same = |&id: &u32| self.texts.get(id as usize) == text.as_bytes();
        self.index.find(hash, same).copied()
    }

    pub(super) fn kind(&self, id: u32) -> TokenKind {
        self.kinds.get(id as usize).copied().unwrap_or(TokenKind::Unused)
    }

    pub(super) fn set_kind(&mut self, id: u32, kind: TokenKind) {
        if let Some(slot) = self.kinds.get_mut(id as usize) {
            *slot = kind;
        }
    }

    /// Ids of the 256 tokens `<0x00>` to `<0xFF>`; `None` where one of them is missing.
    pub(super) fn byte_tokens(&self) -> Option<Box<[u32; 256]>> {
        let mut ids = Box::new([0; 256]);
        for (byte, id) in ids.iter_mut().enumerate() {
            *id = self.id(&format!("<0x{byte:02X}>"))?;
        }
        Some(ids)
    }
}

/// The byte that a token such as `<0x0A>` stands for.
pub(super) fn byte_of(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}
