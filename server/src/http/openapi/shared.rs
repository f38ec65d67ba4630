//! What several routes have in common.

use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::ToSchema;

/// How sampling differs from what the model recommends, and how a reply is limited.
#[derive(Serialize, ToSchema)]
pub(super) struct Sampling {
    /// 0: the most probable token, always.
    #[schema(minimum = 0, maximum = 2)]
    temperature: Option<f64>,
    #[schema(minimum = 0, maximum = 1)]
    top_p: Option<f64>,
    /// 0 and -1: off.
    #[schema(minimum = -1, maximum = 4_294_967_295_i64)]
    top_k: Option<i64>,
    #[schema(minimum = 0, maximum = 1)]
    min_p: Option<f64>,
    #[schema(minimum = 0, maximum = 1)]
    typical_p: Option<f64>,
    #[schema(exclusive_minimum = 0, maximum = 10)]
    repeat_penalty: Option<f64>,
    /// The same as `repeat_penalty`.
    #[schema(exclusive_minimum = 0, maximum = 10)]
    repetition_penalty: Option<f64>,
    #[schema(minimum = -1, maximum = 4_294_967_295_i64)]
    repeat_last_n: Option<i64>,
    #[schema(minimum = -2, maximum = 2)]
    frequency_penalty: Option<f64>,
    #[schema(minimum = -2, maximum = 2)]
    presence_penalty: Option<f64>,
    /// Added to logits, by token id; at most 1024.
    logit_bias: Option<BTreeMap<String, Bias>>,
    /// The same seed gives the same reply. A random one is told in `trefoil.seed`.
    seed: Option<i64>,
    /// Texts that end the reply: at most 16 of 1 to 256 bytes.
    stop: Option<OneOrMore>,
    /// Most tokens of a reply.
    #[schema(minimum = 1)]
    max_tokens: Option<i64>,
    /// The same as `max_tokens`.
    #[schema(minimum = 1)]
    max_completion_tokens: Option<i64>,
    #[schema(minimum = 0)]
    min_tokens: Option<i64>,
    ignore_eos: Option<bool>,
    /// Replies to one prompt.
    #[schema(minimum = 1, maximum = 8)]
    n: Option<i64>,
    /// Answer with server-sent events.
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    /// Token ids of the reply in `choices[].tokens`.
    return_tokens: Option<bool>,
    /// Place in the queue: higher ones go first.
    #[schema(minimum = -10, maximum = 10)]
    priority: Option<i64>,
    /// May pages of other requests serve it, and its own others?
    cache_prompt: Option<bool>,
    /// No effect.
    user: Option<serde_json::Value>,
}

/// Added to a logit.
#[derive(Serialize, ToSchema)]
#[schema(minimum = -100, maximum = 100)]
struct Bias(f64);

/// A text or several.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

#[derive(Serialize, ToSchema)]
struct StreamOptions {
    /// A last chunk with token counts.
    include_usage: Option<bool>,
    /// No effect.
    include_obfuscation: Option<serde_json::Value>,
}

/// Token counts. Each prompt counts once, whatever `n`.
#[derive(Serialize, ToSchema)]
pub(super) struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
    prompt_tokens_details: PromptTokens,
    completion_tokens_details: CompletionTokens,
}

#[derive(Serialize, ToSchema)]
struct PromptTokens {
    /// Tokens that did not have to be read.
    cached_tokens: u64,
}

#[derive(Serialize, ToSchema)]
struct CompletionTokens {
    reasoning_tokens: u64,
}

/// Times in milliseconds, rates in tokens per second.
#[derive(Serialize, ToSchema)]
pub(super) struct Timings {
    cache_n: u64,
    prompt_n: u64,
    prompt_ms: f64,
    prompt_per_second: f64,
    predicted_n: u64,
    predicted_ms: f64,
    predicted_per_second: f64,
}

/// What ran where, and what is needed to repeat the answer.
#[derive(Serialize, ToSchema)]
pub(super) struct Own {
    plan_versions: Vec<u64>,
    prefill_devices: Vec<String>,
    decode_devices: Vec<String>,
    queue_ms: f64,
    seed: i64,
    /// The stop text, the id of the end token, or null.
    #[schema(required)]
    stop_reason: Option<StopReason>,
}

#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum StopReason {
    Text(String),
    Token(u64),
}

/// What all errors look like.
#[derive(Serialize, ToSchema)]
pub(super) struct ErrorAnswer {
    error: ErrorObject,
}

#[derive(Serialize, ToSchema)]
struct ErrorObject {
    /// What was expected, what came, what to do.
    message: String,
    r#type: ErrorType,
    /// The field that is wrong.
    #[schema(required)]
    param: Option<String>,
    #[schema(required)]
    code: Option<String>,
}

#[derive(Serialize, ToSchema)]
enum ErrorType {
    #[serde(rename = "invalid_request_error")]
    InvalidRequest,
    #[serde(rename = "conflict_error")]
    Conflict,
    #[serde(rename = "rate_limit_error")]
    RateLimit,
    #[serde(rename = "server_error")]
    Server,
}

/// `stop` at an end token or a stop text, `length` at a limit, `tool_calls` where functions are called.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum FinishReason {
    Stop,
    Length,
    ToolCalls,
}

/// An event of a stream.
#[derive(Serialize, ToSchema)]
pub(super) struct Event {
    /// An object of the answer as JSON; an error object where it failed; `[DONE]` at the end.
    data: String,
}

/// Answers that nothing sets apart.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum ServiceTier {
    Default,
}
