//! Models of `tokenizer.json`: normalisation and pre-tokenisation by the tokenizers crate, so that
//! they act as the models' own tokenizer does.

use tokenizers::models::ModelWrapper;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::metaspace::PrependScheme;
use tokenizers::{Model, NormalizedString, Normalizer, OffsetReferential, OffsetType};
use tokenizers::{PreTokenizedString, PreTokenizer};

use super::bpe::Bpe;
use super::merge::Merger;
use super::vocabulary::Vocabulary;

/// Text to ids, as a `tokenizer.json` describes it; special tokens are already cut out.
#[derive(Debug)]
pub(super) struct Pipeline {
    pub(super) normalizer: Option<NormalizerWrapper>,
    /// For text at the very start.
    pub(super) pre_tokenizer: Option<PreTokenizerWrapper>,
    /// For text after a special token, where that differs.
    pub(super) pre_tokenizer_later: Option<PreTokenizerWrapper>,
    pub(super) model: PipelineModel,
}

/// The last step of a pipeline.
#[derive(Debug)]
pub(super) enum PipelineModel {
    /// Byte pair encoding, the common case.
    Bpe(Bpe),
    /// Anything else.
    Other(Box<ModelWrapper>),
}

impl Pipeline {
    /// Appends the ids of a text. Where a step fails, which only limits of the regular expression
    /// engine can cause, it leaves the text as it is.
    pub(super) fn encode(
        &self,
        vocabulary: &Vocabulary,
        text: &str,
        at_start: bool,
        merger: &mut Merger,
        out: &mut Vec<u32>,
    ) {
        let mut normalized = NormalizedString::from(text);
        if let Some(normalizer) = &self.normalizer
            && let Err(error) = normalizer.normalize(&mut normalized)
        {
            tracing::warn!(%error, "text could not be normalised");
        }
        let mut pieces = PreTokenizedString::from(normalized);
        let later = self.pre_tokenizer_later.as_ref().filter(|_| !at_start);
        if let Some(pre_tokenizer) = later.or(self.pre_tokenizer.as_ref())
            && let Err(error) = pre_tokenizer.pre_tokenize(&mut pieces)
        {
            tracing::warn!(%error, "text could not be cut into pieces");
        }
        for (piece, _, _) in pieces.get_splits(OffsetReferential::Normalized, OffsetType::None) {
            match &self.model {
                PipelineModel::Bpe(bpe) => bpe.encode(vocabulary, piece, merger, out),
                PipelineModel::Other(model) => match model.tokenize(piece) {
                    Ok(tokens) => out.extend(tokens.iter().map(|token| token.id)),
                    Err(error) => tracing::warn!(%error, "a piece of text has no tokens"),
                },
            }
        }
    }
}

/// The pre-tokenizer for text that is not at the very start: one that puts a space before the
/// first text only puts none there. `None` where there is no difference.
pub(super) fn later(pre_tokenizer: &PreTokenizerWrapper) -> Option<PreTokenizerWrapper> {
    match pre_tokenizer {
        PreTokenizerWrapper::Metaspace(metaspace)
            if metaspace.prepend_scheme == PrependScheme::First =>
        {
            let mut metaspace = metaspace.clone();
            metaspace.prepend_scheme = PrependScheme::Never;
            Some(PreTokenizerWrapper::Metaspace(metaspace))
        }
        _ => None,
    }
}
