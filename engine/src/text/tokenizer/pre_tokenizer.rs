//! Cutting text into the pieces that byte pair encoding works on, by regular expressions.

use fancy_regex::Regex;

use super::TokenizerError;

/// How many expressions end: white space without the last character where something follows,
/// which begins with a space then, else all of it.
const SPACES: &str = r"|\s+(?!\S)|\s+";

/// Regular expressions, applied one after the other: each cuts the pieces that the one before it
/// left, into its matches and what lies between them.
#[derive(Debug)]
pub(super) struct PreTokenizer {
    patterns: Vec<Pattern>,
}

/// A regular expression. Its end [`SPACES`] is taken out and done by hand, since without the
/// look-ahead an expression runs on an automaton, in linear time and without a stack.
#[derive(Debug)]
struct Pattern {
    regex: Regex,
    /// It ended with [`SPACES`].
    spaces: bool,
    /// It matches white space up to a line break by another rule.
    lines: bool,
}

impl PreTokenizer {
    pub(super) fn new(name: &str, patterns: &[&str]) -> Result<Self, TokenizerError> {
        let patterns = patterns.iter().map(|pattern| Pattern::new(name, pattern));
        Ok(Self { patterns: patterns.collect::<Result<_, _>>()? })
    }

    /// Calls `piece` with every piece of `text`, in order.
    pub(super) fn split<'a>(&self, text: &'a str, piece: &mut dyn FnMut(&'a str)) {
        split_by(&self.patterns, text, piece);
    }
}

impl Pattern {
    fn new(name: &str, pattern: &str) -> Result<Self, TokenizerError> {
        let plain = pattern.strip_suffix(SPACES).map(|start| format!(r"{start}|\s+"));
        let regex = Regex::new(plain.as_deref().unwrap_or(pattern)).map_err(|source| {
            TokenizerError::Pattern { name: name.to_owned(), source: Box::new(source) }
        })?;
        Ok(Self { regex, spaces: plain.is_some(), lines: pattern.contains(r"\s*[\r\n]") })
    }

    /// The first match from `from` on. An expression with look-ahead can reach its engine's limit
    /// of steps; then there is none.
    fn find(&self, text: &str, from: usize) -> Option<(usize, usize)> {
        let found = self.regex.find_from_pos(text, from).ok()??;
        let (start, end) = (found.start(), found.end());
        let by_line = self.lines && found.as_str().ends_with(['\r', '\n']);
        if !self.spaces || by_line || !text[end..].starts_with(|c: char| !c.is_whitespace()) {
            return Some((start, end));
        }
        let mut characters = found.as_str().chars();
        let last = characters.next_back().map_or(0, char::len_utf8);
        let is_spaces = last < found.as_str().len() && found.as_str().trim_start().is_empty();
        Some((start, if is_spaces { end - last } else { end }))
    }
}

fn split_by<'a>(patterns: &[Pattern], text: &'a str, piece: &mut dyn FnMut(&'a str)) {
    let Some((pattern, others)) = patterns.split_first() else {
        piece(text);
        return;
    };
    let mut done = 0;
    while let Some((start, end)) = pattern.find(text, done).filter(|(_, end)| *end > done) {
        for part in [&text[done..start], &text[start..end]] {
            if !part.is_empty() {
                split_by(others, part, piece);
            }
        }
        done = end;
    }
    if done < text.len() {
        split_by(others, &text[done..], piece);
    }
}

#[cfg(test)]
mod tests {
    use super::super::presets;
    use super::*;

    #[test]
    fn every_preset_keeps_all_text() {
        let text =
            "Hello, World's 1234567 naïve \t\n\n  x  \r\n(你好) ٣٤ 🙂🙂 don't'LL <a>\u{301}b   ";
        for preset in presets::all() {
            let splitter = PreTokenizer::new(preset.names[0], preset.patterns).expect("compiles");
            let mut pieces = Vec::new();
            splitter.split(text, &mut |piece| pieces.push(piece));
            assert_eq!(pieces.concat(), text, "{}", preset.names[0]);
            assert!(pieces.len() > 1, "{}", preset.names[0]);
        }
    }

    /// Taking the look-ahead out of an expression changes nothing.
    #[test]
    fn spaces_are_cut_as_the_expression_says() {
        let pieces = ["a", " ", "\n", "\t", "\u{3000}", "é", "1", "!", "\r\n", "'s", "  "];
        for preset in presets::all() {
            let splitter = PreTokenizer::new(preset.names[0], preset.patterns).expect("compiles");
            let regexes: Vec<Regex> =
                preset.patterns.iter().map(|p| Regex::new(p).expect("compiles")).collect();
            let mut state = 1_u32;
            for _ in 0..500 {
                let mut text = String::new();
                for _ in 0..12 {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    text.push_str(pieces[(state >> 16) as usize % pieces.len()]);
                }
                let mut fast = Vec::new();
                splitter.split(&text, &mut |piece| fast.push(piece));
                let mut plain = vec![&text[..]];
                for regex in &regexes {
                    plain = plain.iter().flat_map(|text| isolate(regex, text)).collect();
                }
                assert_eq!(fast, plain, "{} {text:?}", preset.names[0]);
            }
        }
    }

    /// Matches and what lies between them.
    fn isolate<'a>(regex: &Regex, text: &'a str) -> Vec<&'a str> {
        let mut out = Vec::new();
        let mut done = 0;
        for found in regex.find_iter(text).map(|found| found.expect("within the limit")) {
            out.extend([&text[done..found.start()], &text[found.start()..found.end()]]);
            done = found.end();
        }
        out.push(&text[done..]);
        out.retain(|piece| !piece.is_empty());
        out
    }

    #[test]
    fn long_runs_take_no_long_time() {
        let spaces = " ".repeat(1 << 20) + "x";
        let digits = "7".repeat(1 << 18);
        for preset in presets::all() {
            let splitter = PreTokenizer::new(preset.names[0], preset.patterns).expect("compiles");
            for text in [&spaces, &digits] {
                let mut length = 0;
                splitter.split(text, &mut |piece| length += piece.len());
                assert_eq!(length, text.len(), "{}", preset.names[0]);
            }
        }
        let llama = presets::find("llama-bpe").expect("a known name");
        let splitter = PreTokenizer::new("llama-bpe", llama.patterns).expect("compiles");
        let mut pieces = Vec::new();
        splitter.split(&spaces, &mut |piece| pieces.push(piece));
        let lengths: Vec<usize> = pieces.iter().map(|piece| piece.len()).collect();
        assert_eq!(lengths, [spaces.len() - 2, 2]);
    }
}
