//! A made-up vocabulary of any size: byte-level BPE whose words are runs of small letters.

use trefoil_graph::metadata::Metadata;

/// Names of the control tokens, at the end of the vocabulary.
const CONTROL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
/// Fewest tokens: all bytes and the control tokens.
pub(super) const FEWEST: usize = 256 + CONTROL.len();

/// `tokenizer.ggml.token_type` of ordinary and control tokens (GGUF specification).
const ORDINARY: i32 = 1;
const CONTROL_TYPE: i32 = 3;

/// Characters that stand for the bytes, as GPT-2 has them: printable ones for themselves, the others
/// from U+0100 on.
fn byte_characters() -> Vec<char> {
    let mut others = 0x100u32..;
    let one = |byte: u8| match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
        _ => others.next().and_then(char::from_u32).expect("the range has enough characters"),
    };
    (0..=255).map(one).collect()
}

/// Sets `tokenizer.*` for `size` tokens (at least [`FEWEST`]), split by the rule called `rule`.
pub(super) fn write(metadata: &mut Metadata, size: usize, rule: &str) {
    let letters: Vec<String> = ('a'..='z').map(String::from).collect();
    let mut tokens: Vec<String> = byte_characters().into_iter().map(String::from).collect();
    let mut merges = Vec::new();
    let words = size - CONTROL.len();
    // All words of two letters, then of three, and so on: each made of the one before and a letter.
    let mut shorter = letters.clone();
    while tokens.len() < words {
        let mut longer = Vec::new();
        for (word, letter) in shorter.iter().flat_map(|w| letters.iter().map(move |l| (w, l))) {
            if tokens.len() + longer.len() == words {
                break;
            }
            merges.push(format!("{word} {letter}"));
            longer.push(format!("{word}{letter}"));
        }
        tokens.extend_from_slice(&longer);
        shorter = longer;
    }
    tokens.extend(CONTROL.map(str::to_owned));
    let mut types = vec![ORDINARY; words];
    types.resize(size, CONTROL_TYPE);
    metadata.set("tokenizer.ggml.model", "gpt2".to_owned());
    metadata.set("tokenizer.ggml.pre", rule.to_owned());
    metadata.set("tokenizer.ggml.tokens", tokens);
    metadata.set("tokenizer.ggml.token_type", types);
    metadata.set("tokenizer.ggml.merges", merges);
    metadata.set("tokenizer.ggml.bos_token_id", (size - 3) as u32);
    metadata.set("tokenizer.ggml.eos_token_id", (size - 1) as u32);
    metadata.set("tokenizer.ggml.padding_token_id", (size - 3) as u32);
    metadata.set("tokenizer.ggml.add_bos_token", false);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::text::{EncodeOptions, Tokenizer};

    #[test]
    fn every_size_is_a_vocabulary_without_doubles() {
        for size in [FEWEST, 300, 1000, 20_000] {
            let mut metadata = Metadata::new();
            write(&mut metadata, size, "qwen2");
            let tokens = metadata.strings("tokenizer.ggml.tokens").expect("texts").expect("there");
            assert_eq!(tokens.len(), size);
            assert_eq!(tokens.iter().collect::<BTreeSet<_>>().len(), size);
            let tokenizer = Tokenizer::from_metadata(&metadata).expect("a tokenizer");
            let options = EncodeOptions { add_special: true, parse_special: true };
            let text = "abc DEF\n<|im_end|>";
            let ids = tokenizer.encode(text, options);
            assert_eq!(ids.last(), Some(&(size as u32 - 1)));
            assert!(size < 1000 || ids.len() < text.len() - 9, "letters merge: {ids:?}");
        }
    }
}
