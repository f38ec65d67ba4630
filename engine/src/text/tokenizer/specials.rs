//! Tokens that are recognised in text as a whole, before anything else.

use aho_corasick::{AhoCorasick, MatchKind};

use super::TokenizerError;

/// A token that text may name.
#[derive(Debug, Clone)]
pub(super) struct Special {
    pub(super) id: u32,
    pub(super) text: String,
    /// Recognised only where the caller asks for special tokens.
    pub(super) on_request: bool,
    /// Takes the white space before it with it.
    pub(super) strip_left: bool,
    /// Takes the white space after it with it.
    pub(super) strip_right: bool,
    /// Recognised only between characters that are not part of a word.
    pub(super) single_word: bool,
}

impl Special {
    pub(super) fn new(id: u32, text: &str, on_request: bool) -> Self {
        let text = text.to_owned();
        Self { id, text, on_request, strip_left: false, strip_right: false, single_word: false }
    }
}

/// A part of a text.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part<'a> {
    Text(&'a str),
    Token(u32),
}

/// The special tokens of a vocabulary, ready to be searched for.
#[derive(Debug)]
pub(super) struct Specials {
    /// Those that are always recognised.
    always: Matcher,
    /// All.
    all: Matcher,
}

#[derive(Debug)]
struct Matcher {
    /// In the order of the automaton's patterns.
    tokens: Vec<Special>,
    automaton: Option<AhoCorasick>,
}

impl Specials {
    pub(super) fn new(tokens: Vec<Special>) -> Result<Self, TokenizerError> {
        let always = tokens.iter().filter(|token| !token.on_request).cloned().collect();
        Ok(Self { always: Matcher::new(always)?, all: Matcher::new(tokens)? })
    }

    /// Cuts `text` at special tokens. Of tokens that overlap, the one that begins first is taken,
    /// of those the longest. Texts are never empty.
    pub(super) fn split<'a>(
        &self,
        text: &'a str,
        parse_special: bool,
        part: &mut dyn FnMut(Part<'a>),
    ) {
        let matcher = if parse_special { &self.all } else { &self.always };
        matcher.split(text, part);
    }
}

impl Matcher {
    fn new(mut tokens: Vec<Special>) -> Result<Self, TokenizerError> {
        tokens.retain(|token| !token.text.is_empty());
        let automaton = if tokens.is_empty() {
            None
        } else {
            let built = AhoCorasick::builder()
                .match_kind(MatchKind::LeftmostLongest)
                .build(tokens.iter().map(|token| token.text.as_bytes()));
            Some(built.map_err(|source| TokenizerError::Specials { source: Box::new(source) })?)
        };
        Ok(Self { tokens, automaton })
    }

    fn split<'a>(&self, text: &'a str, part: &mut dyn FnMut(Part<'a>)) {
        let mut done = 0;
        for found in self.automaton.iter().flat_map(|automaton| automaton.find_iter(text)) {
            let token = &self.tokens[found.pattern()];
            let (start, end) = (found.start(), found.end());
            // `start` may lie inside of white space that the token before took with it
            if start < done || (token.single_word && inside_word(text, start, end)) {
                continue;
            }
            let before = &text[done..start];
            let before = if token.strip_left { before.trim_end() } else { before };
            if !before.is_empty() {
                part(Part::Text(before));
            }
            part(Part::Token(token.id));
            done = end;
            if token.strip_right {
                done = text.len() - text[end..].trim_start().len();
            }
        }
        if done < text.len() {
            part(Part::Text(&text[done..]));
        }
    }
}

/// Whether a character of a word touches `text[start..end]`.
fn inside_word(text: &str, start: usize, end: usize) -> bool {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    text[..start].chars().next_back().is_some_and(word)
        || text[end..].chars().next().is_some_and(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_at_special_tokens() {
        let tokens = vec![
            Special::new(1, "<a>", true),
            Special::new(2, "<a><b>", true),
            Special::new(3, "  ", false),
            Special { strip_left: true, strip_right: true, ..Special::new(4, "<m>", true) },
            Special { single_word: true, ..Special::new(5, "yes", false) },
            Special::new(6, "", false),
        ];
        let specials = Specials::new(tokens).expect("an automaton");
        let split = |text, parse_special| {
            let mut parts = Vec::new();
            specials.split(text, parse_special, &mut |part| parts.push(part));
            parts
        };
        use Part::{Text, Token};
        assert_eq!(split("x<a><b><a>", true), [Text("x"), Token(2), Token(1)]);
        assert_eq!(split("x<a>  y", false), [Text("x<a>"), Token(3), Text("y")]);
        assert_eq!(split("x \n<m> y", true), [Text("x"), Token(4), Text("y")]);
        assert_eq!(split("<m>  <m>", true), [Token(4), Token(4)]);
        assert_eq!(split("eyes yes", false), [Text("eyes "), Token(5)]);
        assert_eq!(split("", true), []);
    }
}
