//! The protobuf wire format, read in place: a message is a run of fields, each a number and a value.
//!
//! Nothing is allocated and nothing recurses: a nested message is a field's bytes until somebody reads
//! it as one, so that nesting costs nothing.

use super::OnnxError;

/// A field's value as it is on the wire.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Wire<'a> {
    /// Integers, truth values, enumerations.
    Varint(u64),
    /// `double`, `fixed64`.
    Fixed64([u8; 8]),
    /// Texts, bytes, messages, packed lists.
    Bytes(&'a [u8]),
    /// `float`, `fixed32`.
    Fixed32([u8; 4]),
}

/// The fields of one message, in their order.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields<'a> {
    message: &'static str,
    rest: &'a [u8],
    length: usize,
}

impl<'a> Fields<'a> {
    /// The fields of `bytes`, which should be a `message`.
    pub(super) fn new(message: &'static str, bytes: &'a [u8]) -> Self {
        Self { message, rest: bytes, length: bytes.len() }
    }

    fn error(&self, expected: &'static str) -> OnnxError {
        let at = self.length - self.rest.len();
        OnnxError::Wire { message: self.message, at, expected }
    }

    fn varint(&mut self) -> Result<u64, OnnxError> {
        match varint(self.rest) {
            Some((value, rest)) => {
                self.rest = rest;
                Ok(value)
            }
            None => Err(self.error("an integer of at most ten bytes")),
        }
    }

    fn chunk<const N: usize>(&mut self) -> Result<[u8; N], OnnxError> {
        let (chunk, rest) =
            self.rest.split_first_chunk().ok_or_else(|| self.error("a number of fixed size"))?;
        self.rest = rest;
        Ok(*chunk)
    }

    fn field(&mut self) -> Result<(u32, Wire<'a>), OnnxError> {
        let key = self.varint()?;
        let number = u32::try_from(key >> 3).ok().filter(|&number| number != 0);
        let number = number.ok_or_else(|| self.error("a field number"))?;
        let value = match key & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => Wire::Fixed64(self.chunk()?),
            2 => {
                let length = usize::try_from(self.varint()?).unwrap_or(usize::MAX);
                let Some((bytes, rest)) = self.rest.split_at_checked(length) else {
                    return Err(self.error("a length within the message"));
                };
                self.rest = rest;
                Wire::Bytes(bytes)
            }
            5 => Wire::Fixed32(self.chunk()?),
            _ => return Err(self.error("a field of a known wire type")),
        };
        Ok((number, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Wire<'a>), OnnxError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            // What follows a broken field cannot be read.
            self.rest = &[];
        }
        Some(field)
    }
}

/// The integer at the start of `bytes`, and what follows it.
pub(super) fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0u64;
    for (index, &byte) in bytes.iter().enumerate().take(10) {
        let bits = u64::from(byte & 0x7f);
        // The tenth byte has room for one bit.
        if index == 9 && bits > 1 {
            return None;
        }
        value |= bits << (7 * index);
        if byte & 0x80 == 0 {
            return Some((value, &bytes[index + 1..]));
        }
    }
    None
}

/// All integers of a packed list; `None` if it ends within one.
pub(super) fn varints(mut bytes: &[u8]) -> Option<Vec<u64>> {
    let mut values = Vec::new();
    while !bytes.is_empty() {
        let (value, rest) = varint(bytes)?;
        values.push(value);
        bytes = rest;
    }
    Some(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(bytes: &[u8]) -> Result<Vec<(u32, Wire<'_>)>, OnnxError> {
        Fields::new("test", bytes).collect()
    }

    #[test]
    fn fields_of_every_type_are_read() {
        let bytes = [8, 150, 1, 18, 2, 7, 8, 29, 0, 0, 128, 63, 33, 1, 0, 0, 0, 0, 0, 0, 0];
        let want = vec![
            (1, Wire::Varint(150)),
            (2, Wire::Bytes(&[7, 8])),
            (3, Wire::Fixed32(1f32.to_le_bytes())),
            (4, Wire::Fixed64(1u64.to_le_bytes())),
        ];
        assert_eq!(all(&bytes).expect("well formed"), want);
        assert_eq!(all(&[]).expect("nothing"), []);
        assert_eq!(varints(&[1, 150, 1]), Some(vec![1, 150]));
        assert_eq!(varints(&[1, 150]), None);
    }

    #[test]
    fn damage_is_an_error_and_the_end() {
        let too_long = [0xffu8; 11];
        let past_the_end = [18, 9, 7, 8];
        let huge = [18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
        let group = [11, 12];
        let no_number = [0, 0];
        for bytes in [&too_long[..], &past_the_end, &huge, &group, &no_number, &[29, 1], &[8]] {
            let mut fields = Fields::new("test", bytes);
            let message = fields.next().expect("a field").expect_err("damaged").to_string();
            assert!(message.contains("test"), "{message}");
            assert!(fields.next().is_none());
        }
        assert_eq!(varint(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2]), None);
    }
}
