//! A tokenizer's vocabulary as the compiler of grammars takes it: the bytes of every token.

use llguidance::ParserFactory;
use llguidance::api::ParserLimits;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};

use super::GrammarError;
use crate::text::Tokenizer;

/// Longest token that a mask may allow, in bytes: longer ones do not fit the tree of tokens.
const TOKEN_BYTES_MAX: usize = 200;

/// What compiles grammars for a tokenizer. Takes a fraction of a second for large vocabularies.
///
/// # Errors
/// A tokenizer without an end token: a reply by a grammar could never end.
pub(super) fn factory(tokenizer: &Tokenizer) -> Result<ParserFactory, GrammarError> {
    let refused = |error: &dyn std::fmt::Display| GrammarError::Refused(error.to_string());
    let size = u32::try_from(tokenizer.vocab_size()).map_err(|error| refused(&error))?;
    let ends = tokenizer.end_tokens();
    let eos = tokenizer.eos().or(ends.first().copied());
    let Some(eos) = eos.filter(|_| !ends.is_empty()) else {
        return Err(GrammarError::Refused("the model has no end token".to_owned()));
    };
    let words: Vec<Vec<u8>> = (0..size).map(|id| word(tokenizer, id)).collect();
    let trie = TokTrie::from(&TokRxInfo::new(size, eos), &words).with_eos_tokens(ends);
    // Any way to spell a text is allowed: the model chooses tokens, not a tokenizer.
    let environment: TokEnv = std::sync::Arc::new(ApproximateTokEnv::new(trie));
    let mut factory = ParserFactory::new_simple(&environment).map_err(|error| refused(&error))?;
    factory.quiet();
    *factory.limits_mut() = ParserLimits { verbose_errors: false, ..ParserLimits::default() };
    Ok(factory)
}

/// The bytes of a token; control tokens are set apart, so that no text allows them.
fn word(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    let bytes = tokenizer.token_bytes(id);
    match bytes.len() {
        0 | TOKEN_BYTES_MAX.. => Vec::new(),
        _ if tokenizer.is_control(id) => {
            let mut word = vec![TokTrie::SPECIAL_TOKEN_MARKER];
            word.extend_from_slice(bytes);
            word
        }
        _ => bytes.to_vec(),
    }
}
