//! Tokenizers from a folder with `tokenizer.json`.

mod added;
mod description;

use std::path::Path;

use serde_json::{Map, Value};
use tokenizers::models::ModelWrapper;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;

use super::bpe::{Bpe, Fallback};
use super::pipeline::{self, Pipeline, PipelineModel};
use super::specials::Specials;
use super::vocabulary::{TokenKind, Vocabulary};
use super::{Inner, Model, SpecialTokens, TokenizerError, end_tokens};
use description::Description;

/// Largest file that is read, in bytes; the largest published `tokenizer.json` has 40 MB.
const FILE_BYTES_MAX: u64 = 1 << 28;

pub(super) fn load(folder: &Path) -> Result<Inner, TokenizerError> {
    let path = folder.join("tokenizer.json");
    let text = read(&path)?;
    let description: Description = parse(&path, &text)?;
    let invalid = |what: String| TokenizerError::Invalid { path: path.clone(), what };
    let config = optional(&folder.join("tokenizer_config.json"))?;
    let map = optional(&folder.join("special_tokens_map.json"))?;

    let (texts, kinds) = added::all_tokens(&description).map_err(invalid)?;
    let mut vocabulary = Vocabulary::new(texts.iter().map(|text| &**text), kinds)?;
    // A file names its special tokens by their text.
    let named = |key: &str| {
        let text = |object: &Map<String, Value>| match object.get(key)? {
            Value::String(text) => Some(text.clone()),
            Value::Object(token) => token.get("content")?.as_str().map(str::to_owned),
            _ => None,
        };
        let text = text(&config).or_else(|| text(&map))?;
        vocabulary.id(&text)
    };
    let first_of = |names: &[&str]| names.iter().find_map(|name| vocabulary.id(name));
    let (prefix, suffix) = added::around(&description, &config, &named, &vocabulary);
    let tokens = SpecialTokens {
        bos: named("bos_token").or(named("cls_token")),
        eos: named("eos_token"),
        eot: first_of(&["<|eot_id|>", "<|im_end|>", "<end_of_turn>"]),
        eom: first_of(&["<|eom_id|>"]),
        unknown: named("unk_token").or_else(|| description.model.unknown(&vocabulary)),
        separator: named("sep_token"),
        padding: named("pad_token"),
        mask: named("mask_token"),
        fim_prefix: first_of(&["<|fim_prefix|>", "<fim_prefix>", "<｜fim▁begin｜>", "▁<PRE>"]),
        fim_suffix: first_of(&["<|fim_suffix|>", "<fim_suffix>", "<｜fim▁hole｜>", "▁<SUF>"]),
        fim_middle: first_of(&["<|fim_middle|>", "<fim_middle>", "<｜fim▁end｜>", "▁<MID>"]),
    };
    if let Some(unknown) = tokens.unknown {
        vocabulary.set_kind(unknown, TokenKind::Unknown);
    }
    let mut declared: Vec<u32> =
        [tokens.eos, tokens.eot, tokens.eom].into_iter().flatten().collect();
    for name in ["generation_config.json", "config.json"] {
        declared.extend(end_ids(&optional(&folder.join(name))?, vocabulary.len()));
    }
    let genai = optional(&folder.join("genai_config.json"))?;
    if let Some(Value::Object(model)) = genai.get("model") {
        declared.extend(end_ids(model, vocabulary.len()));
    }
    let ends = end_tokens::find(&mut vocabulary, &declared);
    let specials = Specials::new(added::specials(&description, &vocabulary))?;
    let surface = added::surface(&description);
    let pieces = surface.pieces(&vocabulary)?;
    let model = Model::Pipeline(Box::new(pipeline(&path, &text, description, &vocabulary)?));
    let warnings = Vec::new();
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

fn pipeline(
    path: &Path,
    text: &str,
    description: Description,
    vocabulary: &Vocabulary,
) -> Result<Pipeline, TokenizerError> {
    let fail = |source| TokenizerError::Json { path: path.to_path_buf(), source };
    let normalizer: Option<NormalizerWrapper> =
        serde_json::from_value(description.normalizer).map_err(fail)?;
    let pre_tokenizer: Option<PreTokenizerWrapper> =
        serde_json::from_value(description.pre_tokenizer).map_err(fail)?;
    let model = &description.model;
    let model = if model.is_plain_bpe() {
        let fallback = Fallback {
            bytes: if model.byte_fallback { vocabulary.byte_tokens() } else { None },
            unknown: model.unknown(vocabulary),
            fuse: model.fuse_unk,
        };
        let merges = model.merges.iter().map(|(left, right)| (left.as_str(), right.as_str()));
        PipelineModel::Bpe(Bpe::new(vocabulary, merges, model.ignore_merges, fallback)?)
    } else {
        #[derive(serde::Deserialize)]
        struct OnlyModel {
            model: ModelWrapper,
        }
        PipelineModel::Other(Box::new(parse::<OnlyModel>(path, text)?.model))
    };
    let pre_tokenizer_later = pre_tokenizer.as_ref().and_then(pipeline::later);
    Ok(Pipeline { normalizer, pre_tokenizer, pre_tokenizer_later, model })
}

/// `eos_token_id` of a configuration: a number or several.
fn end_ids(config: &Map<String, Value>, tokens: usize) -> Vec<u32> {
    let ids = match config.get("eos_token_id") {
        Some(Value::Array(ids)) => ids.as_slice(),
        Some(id) => std::slice::from_ref(id),
        None => &[],
    };
    ids.iter()
        .filter_map(Value::as_u64)
        .filter(|&id| id < tokens as u64)
        .filter_map(|id| u32::try_from(id).ok())
        .collect()
}

fn read(path: &Path) -> Result<String, TokenizerError> {
    let fail = |source| TokenizerError::Read { path: path.to_path_buf(), source };
    let bytes = std::fs::metadata(path).map_err(fail)?.len();
    if bytes > FILE_BYTES_MAX {
        return Err(TokenizerError::TooLarge {
            what: "bytes in tokenizer.json",
            limit: FILE_BYTES_MAX as usize,
            got: usize::try_from(bytes).unwrap_or(usize::MAX),
        });
    }
    std::fs::read_to_string(path).map_err(fail)
}

fn parse<T: for<'a> serde::Deserialize<'a>>(path: &Path, text: &str) -> Result<T, TokenizerError> {
    serde_json::from_str(text)
        .map_err(|source| TokenizerError::Json { path: path.to_path_buf(), source })
}

/// A file that need not be there.
fn optional(path: &Path) -> Result<Map<String, Value>, TokenizerError> {
    if path.exists() { parse(path, &read(path)?) } else { Ok(Map::new()) }
}
