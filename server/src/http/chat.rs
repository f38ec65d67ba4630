//! POST /v1/chat/completions.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use trefoil_engine::generate::{Request, Summary};
use trefoil_engine::service::Order;
use trefoil_engine::text::TemplateError;
use trefoil_engine::text::sampling::SamplingParams;

use super::answer::{self, Head};
use super::body::{find, name_ignored, read_body};
use super::chat_request::ChatRequest;
use super::error::ApiError;
use super::outlet::{Frame, Outlet};
use super::replies::{Part, Replies, count_rejected, not_generative};
use super::sse;
use super::state::{AppState, ServedModel};

/// A request on its way: its prompt, and what is the same for all its replies.
struct Job {
    request: ChatRequest,
    prompt: Vec<u32>,
    params: SamplingParams,
    seed: i64,
}

impl Job {
    fn new(state: &AppState, body: &[u8]) -> Result<Self, ApiError> {
        let options = &state.options;
        let request = ChatRequest::read(body, options.max_n, options.strict_fields)?;
        let model = find(state, &request.model)?;
        if !model.generative {
            return Err(not_generative(model));
        }
        let (_, prompt) = prompt(model, &request)?;
        let completion = request.max_tokens.unwrap_or(1);
        if prompt.is_empty() {
            let message = "The messages make an empty prompt with this model's template.";
            return Err(ApiError::field("invalid_value", "messages", message));
        }
        if prompt.len().saturating_add(completion) > model.context {
            return Err(ApiError::context_length(model.context, prompt.len(), completion));
        }
        let mut params = request.sampling.params(model.text.sampling);
        params.logprobs = request.logprobs.map(|n| n as u32);
        params
            .validate(model.vocabulary)
            .map_err(|error| ApiError::field("invalid_value", error.field, error.to_string()))?;
        let seed = request.sampling.seed.unwrap_or_else(super::id::seed);
        Ok(Self { request, prompt, params, seed })
    }

    /// Queues the request.
    fn submit(&self, state: &AppState, model: &ServedModel) -> Result<Replies, ApiError> {
        let order = Order {
            request: Request {
                prompt: self.prompt.clone(),
                sampling: self.params.clone(),
                max_tokens: self.request.max_tokens,
                stop: self.request.stop.clone(),
                seed: self.seed,
            },
            choices: self.request.n,
            priority: self.request.priority,
            cache: self.request.cache_prompt,
            time_limit: state.options.request_timeout,
        };
        Replies::submit(state, model, vec![order])
    }
}

/// What a model reads of a request: its text, and the token ids.
pub(crate) fn prompt(
    model: &ServedModel,
    request: &ChatRequest,
) -> Result<(String, Vec<u32>), ApiError> {
    let rendered = model
        .text
        .render(&request.messages, Some(&request.template_variables))
        .map_err(|error| template_error(&error))?;
    let prompt = model.text.encode_rendered(&rendered);
    Ok((rendered, prompt))
}

fn template_error(error: &TemplateError) -> ApiError {
    let message = format!("The model's chat template does not take these messages: {error}");
    ApiError::field("invalid_value", "messages", message)
}

/// The reply with a number, while it grows.
#[derive(Default)]
struct Reply {
    text: String,
    tokens: Vec<u32>,
    logprobs: Vec<Value>,
    summary: Option<Summary>,
}

/// POST /v1/chat/completions
pub(crate) async fn create(
    State(state): State<Arc<AppState>>,
    body: Body,
) -> Result<Response, ApiError> {
    let body = read_body(&state, body).await?;
    let job = Job::new(&state, &body).inspect_err(|error| count_rejected(&state, error))?;
    let model = find(&state, &job.request.model)?;
    let replies = job.submit(&state, model)?;
    let ignored = job.request.ignored.clone();
    let mut response = if job.request.stream {
        stream(state.clone(), job, replies).await?
    } else {
        whole(model, &job, replies).await?.into_response()
    };
    name_ignored(&mut response, &ignored);
    Ok(response)
}

/// Waits for all replies and answers at once.
async fn whole(
    model: &ServedModel,
    job: &Job,
    mut replies: Replies,
) -> Result<axum::Json<Value>, ApiError> {
    let mut grown: Vec<Reply> = (0..job.request.n).map(|_| Reply::default()).collect();
    while let Some((number, part)) = replies.next().await? {
        let reply = &mut grown[number as usize];
        match part {
            Part::Token { id, text, logprobs } => {
                reply.text.push_str(&text);
                reply.tokens.push(id);
                let logprobs = logprobs.map(|l| answer::logprobs(&model.text.tokenizer, &l));
                reply.logprobs.extend(logprobs);
            }
            Part::Text(text) => reply.text.push_str(&text),
            Part::End(summary) => reply.summary = Some(summary),
        }
    }
    let choices = grown.iter().enumerate().map(|(index, reply)| choice(job, index, reply));
    let head = Head::new(model, "chatcmpl-");
    let mut object = head.object("chat.completion", Value::Array(choices.collect()));
    object["usage"] = replies.usage();
    finish(&mut object, &replies, model, job);
    Ok(axum::Json(object))
}

fn choice(job: &Job, index: usize, reply: &Reply) -> Value {
    let finish = reply.summary.as_ref().map(|summary| answer::finish_reason(&summary.finish));
    let mut value = json!({
        "index": index,
        "message": {"role": "assistant", "content": reply.text, "refusal": null},
        "logprobs": job.request.logprobs.map(|_| json!({
            "content": reply.logprobs, "refusal": null,
        })),
        "finish_reason": finish,
    });
    if job.request.return_tokens {
        value["tokens"] = json!(reply.tokens);
    }
    value
}

/// What the last object of an answer carries.
fn finish(object: &mut Value, replies: &Replies, model: &ServedModel, job: &Job) {
    replies.add_figures(object, model, job.seed);
    if let Some(metadata) = &job.request.metadata {
        object["metadata"] = metadata.clone();
    }
}

/// Answers with events. The status is sent when the request leaves the queue, or after a while.
async fn stream(
    state: Arc<AppState>,
    job: Job,
    mut replies: Replies,
) -> Result<Response, ApiError> {
    replies.admitted(state.options.status_after).await?;
    let ping = state.options.sse_ping;
    Ok(sse::answer(ping, move |outlet| async move { pump(&state, &job, replies, &outlet).await }))
}

/// Answers a body that streams, for a socket.
pub(super) async fn streamed<T>(
    state: &AppState,
    body: &[u8],
    outlet: &Outlet<T>,
) -> Result<(), ApiError> {
    let job = Job::new(state, body).inspect_err(|error| count_rejected(state, error))?;
    let replies = job.submit(state, find(state, &job.request.model)?)?;
    pump(state, &job, replies, outlet).await
}

/// Turns what comes of the replies into frames until all are done or the client is gone.
async fn pump<T>(
    state: &AppState,
    job: &Job,
    mut replies: Replies,
    outlet: &Outlet<T>,
) -> Result<(), ApiError> {
    let model = find(state, &job.request.model)?;
    let head = Head::new(model, "chatcmpl-");
    let usage_later = job.request.include_usage;
    let chunk = |choices: Value| {
        let mut object = head.object("chat.completion.chunk", choices);
        if usage_later {
            object["usage"] = Value::Null;
        }
        object
    };
    let delta = |index: u32, delta: Value, logprobs: Value| {
        chunk(json!([{
            "index": index, "delta": delta, "logprobs": logprobs, "finish_reason": null,
        }]))
    };
    for index in 0..job.request.n {
        let opening = json!({"role": "assistant", "content": ""});
        if !outlet.send(Frame::Chunk(delta(index, opening, Value::Null))) {
            return Ok(());
        }
    }
    while let Some((index, part)) = outlet.unless_closed(replies.next()).await? {
        let object = match part {
            Part::Token { id, text, logprobs } => {
                let list = logprobs
                    .map(|l| json!({"content": [answer::logprobs(&model.text.tokenizer, &l)]}));
                if text.is_empty() && list.is_none() && !job.request.return_tokens {
                    continue;
                }
                let content = if text.is_empty() { json!({}) } else { json!({"content": text}) };
                let mut object = delta(index, content, list.unwrap_or(Value::Null));
                if job.request.return_tokens {
                    object["choices"][0]["tokens"] = json!([id]);
                }
                object
            }
            Part::Text(text) => delta(index, json!({"content": text}), Value::Null),
            Part::End(summary) => {
                let mut object = delta(index, json!({}), Value::Null);
                let reason = answer::finish_reason(&summary.finish);
                object["choices"][0]["finish_reason"] = json!(reason);
                if replies.are_done() && !usage_later {
                    finish(&mut object, &replies, model, job);
                }
                object
            }
        };
        if !outlet.send(Frame::Chunk(object)) {
            return Ok(());
        }
    }
    if usage_later && replies.are_done() {
        let mut object = chunk(json!([]));
        object["usage"] = replies.usage();
        finish(&mut object, &replies, model, job);
        outlet.send(Frame::Chunk(object));
    }
    Ok(())
}
