//! POST /v1/completions.

use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::ToSchema;

use super::shared::{Event, FinishReason, Own, Sampling, ServiceTier, Timings, Usage};

#[derive(Serialize, ToSchema)]
pub(super) struct CompletionRequest {
    /// Id or alias of a model, or `default`.
    #[schema(min_length = 1, max_length = 256)]
    model: String,
    /// Without one the model begins by itself.
    prompt: Option<Prompt>,
    /// Does the text begin with the prompt? Not together with `logprobs`.
    echo: Option<bool>,
    /// Best tokens whose log probabilities are wanted, beside the chosen one.
    #[schema(minimum = 0, maximum = 5)]
    logprobs: Option<i64>,
    /// What `n` is, or absent.
    #[schema(minimum = 1, maximum = 8)]
    best_of: Option<i64>,
    #[serde(flatten)]
    sampling: Sampling,
}

/// A text, up to 128 of them, token ids, or up to 128 lists of them.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum Prompt {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u32>),
    Lists(Vec<Vec<u32>>),
}

/// A whole answer, or what an event of a stream carries.
#[derive(Serialize, ToSchema)]
pub(super) struct Completion {
    id: String,
    object: CompletionObject,
    /// Seconds since 1970.
    created: u64,
    model: String,
    service_tier: ServiceTier,
    system_fingerprint: String,
    /// By prompt, then by choice.
    choices: Vec<CompletionChoice>,
    /// In a whole answer, and in the last chunk where `stream_options.include_usage` asks for it.
    usage: Option<Usage>,
    /// In a whole answer and in the last chunk.
    timings: Option<Timings>,
    /// In a whole answer and in the last chunk.
    trefoil: Option<Own>,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum CompletionObject {
    TextCompletion,
}

#[derive(Serialize, ToSchema)]
struct CompletionChoice {
    text: String,
    index: u64,
    #[schema(required)]
    logprobs: Option<CompletionLogprobs>,
    /// Null in all but the last chunk of a choice.
    #[schema(required)]
    finish_reason: Option<FinishReason>,
    /// Where `return_tokens` asks for them.
    tokens: Option<Vec<u32>>,
}

/// An entry for each token.
#[derive(Serialize, ToSchema)]
struct CompletionLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<f64>,
    /// By token text: the best ones and the chosen one.
    top_logprobs: Vec<BTreeMap<String, f64>>,
    /// Code points of the choice's text before the token.
    text_offset: Vec<u64>,
}

/// Texts gone on with.
#[utoipa::path(
    post,
    path = "/v1/completions",
    tag = super::GENERATION,
    operation_id = "complete",
    request_body(
        content = CompletionRequest,
        example = json!({
            "model": "default",
            "prompt": ["The lemon tree", "Once upon a time"],
            "max_tokens": 8,
            "temperature": 0,
            "logprobs": 2
        })
    ),
    responses((
        status = 200,
        description = "The texts; with `stream` as events whose data are Completion.",
        content((Completion = "application/json"), (Event = "text/event-stream"))
    ))
)]
pub(super) fn create() {}
