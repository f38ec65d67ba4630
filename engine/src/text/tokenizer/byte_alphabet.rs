//! The alphabet of byte-level vocabularies: every byte has a printable character of its own.
//!
//! Printable ASCII and the printable part of Latin-1 stand for themselves; the other 68 bytes, in
//! order, are U+0100 and the characters after it (the scheme of GPT-2).

/// Number of bytes that do not stand for themselves.
const MOVED: u32 = 68;

/// The character of a byte.
pub(super) const fn char_of(byte: u8) -> char {
    CHARS[byte as usize]
}

/// The byte of a character; `None` where it belongs to none.
pub(super) fn byte_of(c: char) -> Option<u8> {
    match u32::from(c) {
        code if code < 0x100 => is_itself(code as u8).then_some(code as u8),
        code if code < 0x100 + MOVED => Some(MOVED_BYTES[(code - 0x100) as usize]),
        _ => None,
    }
}

const fn is_itself(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
}

const CHARS: [char; 256] = {
    let mut chars = ['\0'; 256];
    let mut moved = 0;
    let mut byte = 0;
    while byte < 256 {
        let code = if is_itself(byte as u8) {
            byte as u32
        } else {
            moved += 1;
            0x100 + moved - 1
        };
        chars[byte] = match char::from_u32(code) {
            Some(c) => c,
            None => panic!("codes below 0x200 are characters"),
        };
        byte += 1;
    }
    assert!(moved == MOVED);
    chars
};

const MOVED_BYTES: [u8; MOVED as usize] = {
    let mut bytes = [0; MOVED as usize];
    let mut moved = 0;
    let mut byte = 0;
    while byte < 256 {
        if !is_itself(byte as u8) {
            bytes[moved] = byte as u8;
            moved += 1;
        }
        byte += 1;
    }
    bytes
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_characters_pair_up() {
        for byte in 0..=255 {
            assert_eq!(byte_of(char_of(byte)), Some(byte));
        }
        assert_eq!([b' ', b'\n', b'a', 0xAD].map(char_of), ['Ġ', 'Ċ', 'a', 'Ń']);
        assert_eq!([' ', '\u{AD}', '\u{144}', '€'].map(byte_of), [None; 4]);
    }
}
