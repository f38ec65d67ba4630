//! POST /v1/chat/completions.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::shared::{Event, FinishReason, Own, Sampling, ServiceTier, Timings, Usage};

#[derive(Serialize, ToSchema)]
pub(super) struct ChatCompletionRequest {
    /// Id or alias of a model, or `default`.
    #[schema(min_length = 1, max_length = 256)]
    model: String,
    #[schema(min_items = 1, max_items = 2048)]
    messages: Vec<Message>,
    logprobs: Option<bool>,
    /// Best tokens whose log probabilities are wanted; needs `logprobs`.
    #[schema(minimum = 0, maximum = 20)]
    top_logprobs: Option<i64>,
    response_format: Option<ResponseFormat>,
    /// The same as `response_format` with this schema.
    json_schema: Option<Value>,
    /// A grammar in GBNF that the reply follows.
    grammar: Option<String>,
    /// Functions that may be called, at most 128.
    tools: Option<Vec<Value>>,
    /// `none`, `auto`, `required`, or which function.
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    reasoning_effort: Option<String>,
    /// Variables for the chat template.
    chat_template_kwargs: Option<BTreeMap<String, Value>>,
    /// Echoed; at most 16 pairs.
    metadata: Option<BTreeMap<String, Value>>,
    #[serde(flatten)]
    sampling: Sampling,
}

#[derive(Serialize, ToSchema)]
struct Message {
    role: Role,
    /// May be missing beside `tool_calls` only.
    content: Option<MessageContent>,
    name: Option<String>,
    reasoning_content: Option<String>,
    tool_calls: Option<Vec<Value>>,
    /// Of a message of the role tool.
    tool_call_id: Option<String>,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Role {
    System,
    Developer,
    User,
    Assistant,
    Tool,
}

#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum MessageContent {
    Text(String),
    Parts(Vec<Part>),
}

/// Parts are joined in order.
#[derive(Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Part {
    Text { text: String },
    Refusal { refusal: String },
}

#[derive(Serialize, ToSchema)]
struct ResponseFormat {
    r#type: FormatType,
    /// Of the type `json_schema`: `name`, `schema`, `strict`.
    json_schema: Option<Value>,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum FormatType {
    Text,
    JsonObject,
    JsonSchema,
}

#[derive(Serialize, ToSchema)]
pub(super) struct ChatCompletion {
    id: String,
    object: ChatObject,
    /// Seconds since 1970.
    created: u64,
    model: String,
    service_tier: ServiceTier,
    system_fingerprint: String,
    choices: Vec<ChatChoice>,
    usage: Usage,
    timings: Timings,
    trefoil: Own,
    metadata: Option<BTreeMap<String, Value>>,
}

#[derive(Serialize, ToSchema)]
enum ChatObject {
    #[serde(rename = "chat.completion")]
    Whole,
}

#[derive(Serialize, ToSchema)]
struct ChatChoice {
    index: u64,
    message: AssistantMessage,
    #[schema(required)]
    logprobs: Option<ChatLogprobs>,
    finish_reason: FinishReason,
    /// Where `return_tokens` asks for them.
    tokens: Option<Vec<u32>>,
}

#[derive(Serialize, ToSchema)]
struct AssistantMessage {
    role: AssistantRole,
    #[schema(required)]
    content: Option<String>,
    #[schema(required)]
    refusal: Option<String>,
    reasoning_content: Option<String>,
    tool_calls: Option<Vec<Value>>,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum AssistantRole {
    Assistant,
}

#[derive(Serialize, ToSchema)]
struct ChatLogprobs {
    content: Vec<TokenLogprob>,
    refusal: Option<String>,
}

#[derive(Serialize, ToSchema)]
struct TokenLogprob {
    #[serde(flatten)]
    token: Logprob,
    top_logprobs: Vec<Logprob>,
}

#[derive(Serialize, ToSchema)]
struct Logprob {
    /// As text; what is no text is U+FFFD.
    token: String,
    #[schema(maximum = 0)]
    logprob: f64,
    bytes: Vec<u8>,
}

/// What the events of a stream carry; `data: [DONE]` follows the last one.
#[derive(Serialize, ToSchema)]
pub(super) struct ChatCompletionChunk {
    id: String,
    object: ChunkObject,
    created: u64,
    model: String,
    service_tier: ServiceTier,
    system_fingerprint: String,
    choices: Vec<ChunkChoice>,
    /// In the last chunk where `stream_options.include_usage` asks for it, null before.
    usage: Option<Usage>,
    /// In the last chunk.
    timings: Option<Timings>,
    /// In the last chunk.
    trefoil: Option<Own>,
    metadata: Option<BTreeMap<String, Value>>,
}

#[derive(Serialize, ToSchema)]
enum ChunkObject {
    #[serde(rename = "chat.completion.chunk")]
    Chunk,
}

#[derive(Serialize, ToSchema)]
struct ChunkChoice {
    index: u64,
    delta: Delta,
    #[schema(required)]
    logprobs: Option<ChatLogprobs>,
    #[schema(required)]
    finish_reason: Option<FinishReason>,
    tokens: Option<Vec<u32>>,
}

#[derive(Serialize, ToSchema)]
struct Delta {
    role: Option<AssistantRole>,
    content: Option<String>,
    reasoning_content: Option<String>,
    tool_calls: Option<Vec<Value>>,
}

/// A reply to a conversation.
#[utoipa::path(
    post,
    path = "/v1/chat/completions",
    tag = super::GENERATION,
    operation_id = "chat",
    request_body(
        content = ChatCompletionRequest,
        example = json!({
            "model": "default",
            "messages": [
                {"role": "system", "content": "Answer in one sentence."},
                {"role": "user", "content": [{"type": "text", "text": "Who are you?"}]}
            ],
            "max_completion_tokens": 8,
            "temperature": 0,
            "stop": ["\n\n"],
            "logprobs": true,
            "top_logprobs": 2,
            "metadata": {"from": "an example"}
        })
    ),
    responses((
        status = 200,
        description = "The reply; with `stream` as events whose data are ChatCompletionChunk.",
        content((ChatCompletion = "application/json"), (Event = "text/event-stream"))
    ))
)]
pub(super) fn create() {}
