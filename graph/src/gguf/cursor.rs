//! Reading position in untrusted bytes: every length is checked against what is left before
//! anything is allocated.

use std::fmt;

use super::GgufError;

/// What is being read, for messages.
#[derive(Clone, Copy)]
pub(super) enum At<'a> {
    Header(&'static str),
    Key(u64),
    Value(&'a str),
    TensorName(u64),
    Tensor(&'a str),
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(field) => f.write_str(field),
            Self::Key(index) => write!(f, "metadata key number {index}"),
            Self::Value(key) => write!(f, "metadata key `{key}`"),
            Self::TensorName(index) => write!(f, "name of tensor number {index}"),
            Self::Tensor(name) => write!(f, "record of tensor `{name}`"),
        }
    }
}

pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0 }
    }

    pub(super) fn position(&self) -> usize {
        self.position
    }

    fn left(&self) -> usize {
        self.bytes.len() - self.position
    }

    /// The next `count` bytes.
    pub(super) fn take(&mut self, count: u64, at: At<'_>) -> Result<&'a [u8], GgufError> {
        match usize::try_from(count).ok().filter(|&count| count <= self.left()) {
            Some(count) => {
                let start = self.position;
                self.position += count;
                Ok(&self.bytes[start..self.position])
            }
            None => Err(GgufError::Truncated {
                at: at.to_string(),
                offset: self.position as u64,
                needed: count,
                left: self.left() as u64,
            }),
        }
    }

    /// The next `N` bytes.
    pub(super) fn array<const N: usize>(&mut self, at: At<'_>) -> Result<[u8; N], GgufError> {
        let bytes = self.take(N as u64, at)?;
        Ok(bytes.try_into().expect("take gives as many bytes as asked for"))
    }

    pub(super) fn u32(&mut self, at: At<'_>) -> Result<u32, GgufError> {
        self.array(at).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, at: At<'_>) -> Result<u64, GgufError> {
        self.array(at).map(u64::from_le_bytes)
    }

    /// A count of things of which each takes at least `least` bytes; refused if so many cannot
    /// follow, so the count may size an allocation.
    pub(super) fn count(&mut self, least: u64, at: At<'_>) -> Result<usize, GgufError> {
        let count = self.u64(at)?;
        let most = self.left() as u64 / least;
        if count > most {
            return Err(GgufError::TooMany { at: at.to_string(), most, got: count });
        }
        // Cannot be lost: `count` is at most the length of a slice.
        Ok(count as usize)
    }

    /// `count` numbers of `N` bytes.
    pub(super) fn numbers<const N: usize, T>(
        &mut self,
        count: u64,
        at: At<'_>,
        number: fn([u8; N]) -> T,
    ) -> Result<Vec<T>, GgufError> {
        // An overflow asks for more bytes than any file has, which is what it means.
        let bytes = self.take(count.saturating_mul(N as u64), at)?;
        Ok(bytes.as_chunks().0.iter().map(|&chunk| number(chunk)).collect())
    }

    /// A text: its length in bytes (u64), then UTF-8.
    pub(super) fn text(&mut self, at: At<'_>) -> Result<&'a str, GgufError> {
        let length = self.u64(at)?;
        let bytes = self.take(length, at)?;
        std::str::from_utf8(bytes).map_err(|error| GgufError::NotUtf8 {
            at: at.to_string(),
            valid_up_to: error.valid_up_to(),
        })
    }
}
