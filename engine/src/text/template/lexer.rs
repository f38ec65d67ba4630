//! Just enough of Jinja's lexical rules to see where tags end and operators stand.

use std::ops::Range;

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A name, a keyword or a number.
    Word,
    /// A string literal with its quotes.
    Text,
    /// An opening or closing bracket.
    Bracket,
    /// Any other sign.
    Operator,
}

/// A token inside of a tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) kind: Kind,
    /// Bytes in the text that was given to [`lex`].
    pub(super) range: Range<usize>,
    /// Number of brackets open around it; brackets themselves count as outside.
    pub(super) depth: usize,
}

/// Operators of two characters that must not be taken for two.
const LONG_OPERATORS: [&str; 6] = ["==", "!=", "<=", ">=", "//", "**"];

/// Splits the text after the opening mark of a tag into tokens, up to the mark `close` outside of
/// brackets and strings (or the end of the text). Returns the tokens and the length of the tag's
/// inside, where `close` or its `-`/`+` begins.
pub(super) fn lex(text: &str, close: &str) -> (Vec<Token>, usize) {
    let mut tokens = Vec::new();
    let mut depth = 0_usize;
    let mut at = 0;
    while let Some(c) = text[at..].chars().next() {
        let rest = &text[at..];
        let closes =
            rest.starts_with(close) || (matches!(c, '-' | '+') && rest[1..].starts_with(close));
        // `}}` may also end two mappings
        if closes && (depth == 0 || close != "}}") {
            return (tokens, at);
        }
        let length = match c {
            c if c.is_whitespace() => {
                at += c.len_utf8();
                continue;
            }
            '"' | '\'' => text_length(rest, c),
            c if is_word(c) => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
            _ if LONG_OPERATORS.iter().any(|operator| rest.starts_with(operator)) => 2,
            c => c.len_utf8(),
        };
        if matches!(c, ')' | ']' | '}') {
            depth = depth.saturating_sub(1);
        }
        let kind = match c {
            '"' | '\'' => Kind::Text,
            '(' | '[' | '{' | ')' | ']' | '}' => Kind::Bracket,
            c if is_word(c) => Kind::Word,
            _ => Kind::Operator,
        };
        tokens.push(Token { kind, range: at..at + length, depth });
        if matches!(c, '(' | '[' | '{') {
            depth += 1;
        }
        at += length;
    }
    (tokens, text.len())
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Bytes of a string literal that begins with `quote`, both quotes included.
fn text_length(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (index, c) in text.char_indices().skip(1) {
        if escaped {
            escaped = false;
        } else if c == '\\' {
            escaped = true;
        } else if c == quote {
            return index + 1;
        }
    }
    text.len()
}
