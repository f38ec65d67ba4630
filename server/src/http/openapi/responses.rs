//! POST /v1/responses.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::shared::{Event, Own, Timings};

#[derive(Serialize, ToSchema)]
pub(super) struct ResponsesRequest {
    /// Id or alias of a model, or `default`.
    #[schema(min_length = 1, max_length = 256)]
    model: String,
    input: ResponsesInput,
    /// A system message before the input.
    instructions: Option<String>,
    #[schema(minimum = 1)]
    max_output_tokens: Option<i64>,
    #[schema(minimum = 0, maximum = 2)]
    temperature: Option<f64>,
    #[schema(minimum = 0, maximum = 1)]
    top_p: Option<f64>,
    /// Functions that may be called.
    tools: Option<Vec<Value>>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    /// `text.format`: the form of the text.
    text: Option<Value>,
    reasoning: Option<Value>,
    /// `message.output_text.logprobs`
    include: Option<Vec<String>>,
    /// Echoed; at most 16 pairs.
    metadata: Option<BTreeMap<String, Value>>,
    /// Answer with server-sent events.
    stream: Option<bool>,
}

/// A text, or items.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum ResponsesInput {
    Text(String),
    Items(Vec<Value>),
}

#[derive(Serialize, ToSchema)]
pub(super) struct ResponseAnswer {
    id: String,
    object: ResponseObject,
    /// Seconds since 1970.
    created_at: u64,
    status: ResponseStatus,
    model: String,
    /// Messages, calls of functions, thought.
    output: Vec<Value>,
    usage: ResponseUsage,
    timings: Timings,
    trefoil: Own,
    #[serde(flatten)]
    echo: BTreeMap<String, Value>,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ResponseObject {
    Response,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ResponseStatus {
    Completed,
    Incomplete,
}

#[derive(Serialize, ToSchema)]
struct ResponseUsage {
    input_tokens: u64,
    input_tokens_details: BTreeMap<String, u64>,
    output_tokens: u64,
    output_tokens_details: BTreeMap<String, u64>,
    total_tokens: u64,
}

/// A reply, in OpenAI's newer form. Nothing is kept between requests.
#[utoipa::path(
    post,
    path = "/v1/responses",
    tag = super::GENERATION,
    operation_id = "respond",
    request_body(
        content = ResponsesRequest,
        example = json!({
            "model": "default",
            "instructions": "Answer in one sentence.",
            "input": [{"role": "user", "content": [{"type": "input_text", "text": "Who are you?"}]}],
            "max_output_tokens": 8,
            "temperature": 0,
            "metadata": {"from": "an example"}
        })
    ),
    responses((
        status = 200,
        description = "The response; with `stream` as named events, the last of which has it whole.",
        content((ResponseAnswer = "application/json"), (Event = "text/event-stream"))
    ))
)]
pub(super) fn create() {}
