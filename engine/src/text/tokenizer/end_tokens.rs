//! Tokens that end a model's turn, by the names that models give them.
//!
//! Files declare one end token, at most three; many models have more, and some files declare the
//! wrong one.

use super::vocabulary::{TokenKind, Vocabulary};

/// Names of tokens after which a model stops.
const NAMES: [&str; 27] = [
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|calls|>",
    "<|flush|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|end_of_turn|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|eos|>",
    "<|assistant_end|>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<turn|>",
    "<|tool_response>",
    "<eos>",
    "<EOT>",
    "[EOT]",
    "[EOS]",
    "[e~[",
    "<｜end▁of▁sentence｜>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
];

/// Sets of names of which all must be there; then `<|end|>` ends a message inside of a turn only.
const END_IS_INNER: [[&str; 2]; 2] = [["<|return|>", "<|call|>"], ["<|calls|>", "<|flush|>"]];

/// Tokens that end the turn, sorted: those that the file declares, and those with a known name.
///
/// A known name of the shape `<|…|>` counts even if the file calls the token ordinary text, and
/// it is made a control token; other names are taken for ordinary text then.
pub(super) fn find(vocabulary: &mut Vocabulary, declared: &[u32]) -> Vec<u32> {
    let mut found: Vec<u32> = declared.to_vec();
    let inner = END_IS_INNER.iter().any(|set| set.iter().all(|name| vocabulary.id(name).is_some()));
    for name in NAMES {
        let Some(id) = vocabulary.id(name) else { continue };
        if name == "<|end|>" && inner {
            continue;
        }
        if vocabulary.kind(id) == TokenKind::Normal {
            if !(name.starts_with("<|") && name.ends_with("|>")) {
                continue;
            }
            vocabulary.set_kind(id, TokenKind::Control);
        }
        found.push(id);
    }
    found.sort_unstable();
    found.dedup();
    found
}
