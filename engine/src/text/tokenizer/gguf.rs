//! Tokenizers from the metadata of GGUF files.

use trefoil_graph::metadata::Metadata;

use super::bpe::{Bpe, Fallback};
use super::pre_tokenizer::PreTokenizer;
use super::presets::{self, Preset};
use super::sentence_piece::SentencePiece;
use super::specials::{Special, Specials};
use super::surface::Surface;
use super::vocabulary::{TokenKind, Vocabulary};
use super::word_piece::WordPiece;
use super::{Inner, Model, SpecialTokens, TokenizerError, end_tokens};

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const SCORES: &str = "tokenizer.ggml.scores";
const TOKEN_TYPE: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";

/// Control tokens of Phi-3 that do not take the white space after them with them, as all others
/// of that model do; GGUF has no field for it.
const PHI3_KEEPS_SPACE: [&str; 3] = ["<unk>", "<s>", "<|endoftext|>"];

/// What a kind of model implies where the file is silent.
struct Defaults {
    add_bos: bool,
    add_sep: bool,
    bos: Option<u32>,
    eos: Option<u32>,
    unknown: Option<u32>,
    separator: Option<u32>,
}

pub(super) fn load(metadata: &Metadata) -> Result<Inner, TokenizerError> {
    let mut warnings = Vec::new();
    let kind = metadata.required(MODEL)?.str()?;
    let texts = metadata.required(TOKENS)?.strings()?;
    let kinds = kinds(metadata, texts.len())?;
    let mut vocabulary = Vocabulary::new(texts.iter().map(String::as_str), kinds)?;

    // the only kinds with named pre-tokenizers; the others have their own rules
    let preset = match kind {
        "gpt2" => Some(preset(metadata, &mut warnings)?),
        "gemma4" => presets::find("gemma4"),
        "llama" | "bert" => None,
        other => return Err(TokenizerError::Model { model: other.to_owned() }),
    };
    let defaults = defaults(kind, preset);
    let tokens = special_tokens(metadata, &vocabulary, &defaults)?;
    let declared: Vec<u32> = [tokens.eos, tokens.eot, tokens.eom].into_iter().flatten().collect();
    let ends = end_tokens::find(&mut vocabulary, &declared);
    let (prefix, suffix) = around(metadata, kind, &tokens, &defaults)?;
    let (model, surface) = match (kind, preset) {
        (_, Some(preset)) => bpe_model(metadata, &vocabulary, preset, &tokens)?,
        ("bert", _) => {
            let lowercase = metadata.bool("tokenizer.ggml.normalizer.lowercase")?.unwrap_or(true);
            let strip = metadata.bool("tokenizer.ggml.normalizer.strip_accents")?;
            let unknown = tokens.unknown.unwrap_or(0);
            let model = WordPiece::new(unknown, lowercase, strip.unwrap_or(lowercase));
            (Model::WordPiece(model), Surface::WordStart)
        }
        _ => sentence_piece_model(metadata, &vocabulary, &tokens)?,
    };
    let specials = Specials::new(specials(metadata, &vocabulary)?)?;
    let pieces = surface.pieces(&vocabulary)?;
    Ok(Inner {
        vocabulary,
        pieces,
        surface,
        specials,
        model,
        tokens,
        prefix,
        suffix,
        ends,
        warnings,
    })
}

fn kinds(metadata: &Metadata, tokens: usize) -> Result<Vec<TokenKind>, TokenizerError> {
    let Some(numbers) = metadata.i32s(TOKEN_TYPE)? else {
        return Ok(vec![TokenKind::Normal; tokens]);
    };
    check_length(TOKEN_TYPE, tokens, numbers.len())?;
    Ok(numbers.iter().map(|&number| TokenKind::from_gguf(number)).collect())
}

fn check_length(key: &'static str, expected: usize, got: usize) -> Result<(), TokenizerError> {
    if expected == got { Ok(()) } else { Err(TokenizerError::Length { key, expected, got }) }
}

fn preset(
    metadata: &Metadata,
    warnings: &mut Vec<String>,
) -> Result<&'static Preset, TokenizerError> {
    let name = metadata.str(PRE)?.unwrap_or_else(|| {
        warnings.push(format!(
            "{PRE} is missing; text is cut by the default rules, which may not be this model's: \
             replies may be worse. Convert the model again with a newer converter."
        ));
        "default"
    });
    presets::find(name).ok_or_else(|| TokenizerError::PreTokenizer { name: name.to_owned() })
}

fn defaults(kind: &str, preset: Option<&Preset>) -> Defaults {
    let none = Defaults {
        add_bos: preset.is_some_and(|preset| preset.add_bos),
        add_sep: preset.is_some_and(|preset| preset.add_sep),
        bos: None,
        eos: None,
        unknown: None,
        separator: None,
    };
    match kind {
        "llama" => Defaults { add_bos: true, bos: Some(1), eos: Some(2), unknown: Some(0), ..none },
        "bert" => Defaults {
            add_bos: true,
            add_sep: true,
            bos: Some(101),
            unknown: Some(100),
            separator: Some(102),
            ..none
        },
        _ => none,
    }
}

fn special_tokens(
    metadata: &Metadata,
    vocabulary: &Vocabulary,
    defaults: &Defaults,
) -> Result<SpecialTokens, TokenizerError> {
    let declared = |name: &str| -> Result<Option<u32>, TokenizerError> {
        let key = format!("tokenizer.ggml.{name}_token_id");
        let Some(id) = metadata.i64(&key)?.filter(|&id| id >= 0) else { return Ok(None) };
        let (id, tokens) = (id.unsigned_abs(), vocabulary.len());
        match u32::try_from(id) {
            // all ones: "none" of some converters
            Ok(u32::MAX) => Ok(None),
            Ok(id) if (id as usize) < tokens => Ok(Some(id)),
            _ => Err(TokenizerError::NoSuchToken { key, tokens, id }),
        }
    };
    let assumed = |id: Option<u32>| id.filter(|&id| (id as usize) < vocabulary.len());
    let named = |names: &[&str]| names.iter().find_map(|name| vocabulary.id(name));
    Ok(SpecialTokens {
        bos: declared("bos")?.or(declared("cls")?).or(assumed(defaults.bos)),
        eos: declared("eos")?.or(assumed(defaults.eos)),
        eot: declared("eot")?.or(named(&["<|eot_id|>", "<|im_end|>", "<end_of_turn>"])),
        eom: declared("eom")?.or(named(&["<|eom_id|>"])),
        unknown: declared("unknown")?.or(assumed(defaults.unknown)),
        // the key is spelled so in the format
        separator: declared("seperator")?.or(assumed(defaults.separator)),
        padding: declared("padding")?,
        mask: declared("mask")?,
        fim_prefix: declared("fim_pre")?.or(declared("prefix")?).or(named(&[
            "<|fim_prefix|>",
            "<fim_prefix>",
            "<｜fim▁begin｜>",
            "<PRE>",
            "▁<PRE>",
        ])),
        fim_suffix: declared("fim_suf")?.or(declared("suffix")?).or(named(&[
            "<|fim_suffix|>",
            "<fim_suffix>",
            "<｜fim▁hole｜>",
            "<SUF>",
            "▁<SUF>",
        ])),
        fim_middle: declared("fim_mid")?.or(declared("middle")?).or(named(&[
            "<|fim_middle|>",
            "<fim_middle>",
            "<｜fim▁end｜>",
            "<MID>",
            "▁<MID>",
        ])),
    })
}

/// Ids before and after every text.
fn around(
    metadata: &Metadata,
    kind: &str,
    tokens: &SpecialTokens,
    defaults: &Defaults,
) -> Result<(Vec<u32>, Vec<u32>), TokenizerError> {
    let add_bos = metadata.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(defaults.add_bos);
    let add_eos = metadata.bool("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
    let add_sep = metadata.bool("tokenizer.ggml.add_sep_token")?.unwrap_or(defaults.add_sep);
    // Gemma 4's first converters wrote false, but the model does not work without
    let add_bos = add_bos || kind == "gemma4";
    let when = |add: bool, id: Option<u32>| if add { id } else { None };
    let suffix = when(add_eos, tokens.eos).or(when(add_sep, tokens.separator.or(tokens.eos)));
    Ok((when(add_bos, tokens.bos).into_iter().collect(), suffix.into_iter().collect()))
}

fn bpe_model(
    metadata: &Metadata,
    vocabulary: &Vocabulary,
    preset: &Preset,
    tokens: &SpecialTokens,
) -> Result<(Model, Surface), TokenizerError> {
    let merges = metadata.required(MERGES)?.strings()?;
    let pairs = merges
        .iter()
        .enumerate()
        .map(|(index, merge)| {
            // either part may begin with a space, so the first character does not separate
            let separator = merge.char_indices().skip(1).find(|&(_, c)| c == ' ');
            match separator {
                Some((at, _)) => Ok((&merge[..at], &merge[at + 1..])),
                None => Err(TokenizerError::Merge { key: MERGES, index, got: merge.clone() }),
            }
        })
        .collect::<Result<Vec<_>, _>>()?;
    let fallback = if preset.byte_level {
        // a byte without a token is dropped, even if the file names an unknown token
        Fallback::default()
    } else {
        Fallback { bytes: vocabulary.byte_tokens(), unknown: tokens.unknown, fuse: true }
    };
    let bpe = Bpe::new(vocabulary, pairs.into_iter(), preset.ignore_merges, fallback)?;
    let pre_tokenizer = PreTokenizer::new(preset.names[0], preset.patterns)?;
    Ok(if preset.byte_level {
        (Model::ByteLevel { bpe, pre_tokenizer }, Surface::ByteLevel)
    } else {
        (Model::Characters { bpe, pre_tokenizer }, Surface::Metaspace { prefix_space: false })
    })
}

fn sentence_piece_model(
    metadata: &Metadata,
    vocabulary: &Vocabulary,
    tokens: &SpecialTokens,
) -> Result<(Model, Surface), TokenizerError> {
    let scores = metadata.required(SCORES)?.f32s()?;
    check_length(SCORES, vocabulary.len(), scores.len())?;
    let prefix_space = metadata.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let model = SentencePiece::new(vocabulary, &scores, tokens.unknown, prefix_space);
    Ok((Model::SentencePiece(model), Surface::Metaspace { prefix_space }))
}

/// The tokens that are recognised in text as a whole.
fn specials(metadata: &Metadata, vocabulary: &Vocabulary) -> Result<Vec<Special>, TokenizerError> {
    let name = metadata.str("general.name")?.unwrap_or_default().to_lowercase();
    let phi3 = name.contains("phi-3") || name.contains("phi3");
    Ok((0..vocabulary.len() as u32)
        .filter_map(|id| {
            let on_request = match vocabulary.kind(id) {
                TokenKind::Control | TokenKind::Unknown => true,
                TokenKind::UserDefined => false,
                _ => return None,
            };
            let text = vocabulary.text(id);
            let mut special = Special::new(id, text, on_request);
            special.strip_right = phi3 && !PHI3_KEEPS_SPACE.contains(&text);
            Some(special)
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::super::{DecodeOptions, EncodeOptions, Tokenizer};
    use super::*;

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| text.to_string()).collect()
    }

    /// A byte-level vocabulary of a few tokens.
    fn metadata() -> Metadata {
        let mut metadata = Metadata::new();
        metadata.set(MODEL, "gpt2".to_owned());
        metadata.set(PRE, "gpt-2".to_owned());
        metadata.set(TOKENS, strings(&["a", "b", "ab", "Ġ", "<|im_end|>", "<u>", "<e>"]));
        metadata.set(TOKEN_TYPE, vec![1, 1, 1, 1, 1, 4, 3]);
        metadata.set(MERGES, strings(&["a b"]));
        metadata.set("tokenizer.ggml.bos_token_id", 6_u32);
        metadata.set("tokenizer.ggml.eos_token_id", 6_u32);
        metadata
    }

    fn error(change: impl FnOnce(&mut Metadata)) -> String {
        let mut metadata = metadata();
        change(&mut metadata);
        Tokenizer::from_metadata(&metadata).expect_err("damaged").to_string()
    }

    #[test]
    fn a_small_vocabulary_works() {
        let tokenizer = Tokenizer::from_metadata(&metadata()).expect("a tokenizer");
        let encode = |text, add_special, parse_special| {
            tokenizer.encode(text, EncodeOptions { add_special, parse_special })
        };
        assert_eq!(encode("ab<u> a<e>", false, true), [2, 5, 3, 0, 6]);
        // `<`, `e` and `>` have no token
        assert_eq!(encode("ab<u> a<e>", true, false), [2, 5, 3, 0]);
        assert!(!tokenizer.add_bos());
        // a file that calls the end of a turn ordinary text is mended
        assert_eq!(tokenizer.end_tokens(), [4, 6]);
        assert!(tokenizer.is_control(4) && tokenizer.is_end_of_generation(4));
        let decode = |special| tokenizer.decode(&[2, 6, 3, 5, 99], DecodeOptions { special });
        assert_eq!(decode(true), "ab<e> <u>");
        assert_eq!(decode(false), "ab <u>");
        assert_eq!(tokenizer.token_bytes(99), b"");
    }

    #[test]
    fn the_file_says_what_every_text_gets() {
        let mut metadata = metadata();
        metadata.set("tokenizer.ggml.add_bos_token", true);
        metadata.set("tokenizer.ggml.add_eos_token", true);
        let tokenizer = Tokenizer::from_metadata(&metadata).expect("a tokenizer");
        let options = EncodeOptions { add_special: true, parse_special: false };
        assert_eq!(tokenizer.encode("a", options), [6, 0, 6]);
        assert!(tokenizer.add_bos());
    }

    #[test]
    fn a_missing_name_is_told_and_a_wrong_one_refused() {
        let mut metadata = metadata();
        metadata.retain(|key, _| key != PRE);
        let tokenizer = Tokenizer::from_metadata(&metadata).expect("a tokenizer");
        assert!(tokenizer.warnings()[0].contains(PRE));
        assert!(error(|m| _ = m.set(PRE, "new-model".to_owned())).contains("\"new-model\""));
        assert!(error(|m| _ = m.set(MODEL, "t5".to_owned())).contains("got \"t5\""));
    }

    #[test]
    fn damaged_files_are_named() {
        for key in [MODEL, TOKENS, MERGES] {
            assert!(error(|m| m.retain(|other, _| other != key)).contains(key), "{key}");
        }
        assert!(error(|m| _ = m.set(TOKENS, Vec::<String>::new())).contains("7"));
        assert!(error(|m| _ = m.set(TOKEN_TYPE, vec![1, 1])).contains(TOKEN_TYPE));
        assert!(error(|m| _ = m.set(MERGES, strings(&["a b", "ab"]))).contains("entry 1"));
        assert!(error(|m| _ = m.set(MERGES, 3_u32)).contains(MERGES));
        let wrong_id = error(|m| _ = m.set("tokenizer.ggml.eos_token_id", 7_u32));
        assert!(wrong_id.contains("eos_token_id") && wrong_id.contains("below 7"), "{wrong_id}");
        let llama = error(|m| _ = m.set(MODEL, "llama".to_owned()));
        assert!(llama.contains(SCORES), "{llama}");
    }

    #[test]
    fn strange_vocabularies_do_no_harm() {
        let mut metadata = metadata();
        // empty and repeated tokens, merges of tokens that are not there
        metadata.set(TOKENS, strings(&["a", "", "a", "Ġ", "", "<u>", "<e>"]));
        metadata.set(MERGES, strings(&["a a", "x y", "  "]));
        let tokenizer = Tokenizer::from_metadata(&metadata).expect("a tokenizer");
        assert_eq!(tokenizer.encode("aa b", EncodeOptions::default()), [0, 0, 3]);
        assert_eq!(tokenizer.vocab_size(), 7);
    }
}
