//! Cutting text into the pieces that byte pair encoding works on, by regular expressions.

use fancy_regex::Regex;

use super::TokenizerError;

/// Regular expressions, applied one after the other: each cuts the pieces that the one before it
/// left, into its matches and what lies between them.
#[derive(Debug)]
pub(super) struct PreTokenizer {
    patterns: Vec<Regex>,
}

impl PreTokenizer {
    pub(super) fn new(name: &str, patterns: &[&str]) -> Result<Self, TokenizerError> {
        let patterns = patterns
            .iter()
            .map(|pattern| {
                Regex::new(pattern).map_err(|source| TokenizerError::Pattern {
                    name: name.to_owned(),
                    source: Box::new(source),
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { patterns })
    }

    /// Calls `piece` with every piece of `text`, in order.
    pub(super) fn split<'a>(&self, text: &'a str, piece: &mut dyn FnMut(&'a str)) {
        split_by(&self.patterns, text, piece);
    }
}

fn split_by<'a>(patterns: &[Regex], text: &'a str, piece: &mut dyn FnMut(&'a str)) {
    let Some((pattern, others)) = patterns.split_first() else {
        piece(text);
        return;
    };
    let mut done = 0;
    // A match can only fail by reaching the engine's limit of steps; what follows stays whole.
    for found in pattern.find_iter(text).map_while(Result::ok) {
        for part in [&text[done..found.start()], found.as_str()] {
            if !part.is_empty() {
                split_by(others, part, piece);
            }
        }
        done = found.end();
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
        assert_eq!(pieces, [&spaces[1..spaces.len() - 1], " x"]);
    }
}
