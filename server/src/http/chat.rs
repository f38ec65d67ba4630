//! POST /v1/chat/completions.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use trefoil_engine::generate::{Cancel, Event, GenerateError, Request, Summary};
use trefoil_engine::runner::RunError;
use trefoil_engine::service::{Order, ServiceError, SubmitError, Update};
use trefoil_engine::text::TemplateError;
use trefoil_engine::text::sampling::SamplingParams;

use super::answer::{self, Head};
use super::chat_request::ChatRequest;
use super::error::ApiError;
use super::info::unknown_model;
use super::sse;
use super::state::{AppState, ServedModel};

/// Updates of the reply with this number.
type Tagged = (u32, Update);

/// Reads a body within the limits of size and time.
pub(super) async fn read_body(state: &AppState, body: Body) -> Result<Bytes, ApiError> {
    let most = state.options.max_body;
    let reading = axum::body::to_bytes(body, most);
    match tokio::time::timeout(state.options.body_timeout, reading).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(_)) => Err(ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "request_too_large",
            format!("The body must be at most {most} bytes, and arrive whole."),
        )),
        Err(_) => Err(ApiError::new(
            StatusCode::REQUEST_TIMEOUT,
            "request_timeout",
            format!("The body was not in within {:?}.", state.options.body_timeout),
        )),
    }
}

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
            return Err(cannot_chat(model));
        }
        let rendered = model
            .text
            .render(&request.messages, Some(&request.template_variables))
            .map_err(|error| template_error(&error))?;
        let prompt = model.text.encode_rendered(&rendered);
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

    /// Queues the request; the updates of its replies come through the channel.
    fn submit(&self, state: &AppState, model: &ServedModel) -> Result<Updates, ApiError> {
        let service = model.service().ok_or_else(|| cannot_chat(model))?;
        let (sender, receiver) = unbounded_channel();
        let order = Order {
            request: Request {
                prompt: self.prompt.clone(),
                sampling: self.params.clone(),
                max_tokens: self.request.max_tokens,
                stop: self.request.stop.clone(),
                seed: self.seed,
                grammar: None,
            },
            choices: self.request.n,
            priority: self.request.priority,
            cache: self.request.cache_prompt,
            time_limit: state.options.request_timeout,
        };
        let (id, mut left) = (model.id.clone(), self.request.n);
        // A send fails when the client is gone: that cancels the generation.
        let sink = Box::new(move |choice, update| {
            left -= u32::from(matches!(update, Update::Done(_)));
            let heard = sender.send((choice, update)).is_ok();
            if left == 0 && !heard {
                tracing::info!(model = id, status = 499, "the client left");
            }
            heard
        });
        let cancel = service.submit(order, sink).map_err(|error| match error {
            SubmitError::QueueFull { capacity } => ApiError::queue_full(capacity),
            _ => ApiError::shutting_down(),
        })?;
        Ok(Updates { receiver, cancel })
    }
}

/// The updates of a request's replies. Whoever stops listening cancels it, wherever it is.
struct Updates {
    receiver: UnboundedReceiver<Tagged>,
    cancel: Cancel,
}

impl Drop for Updates {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

fn cannot_chat(model: &ServedModel) -> ApiError {
    let message = format!("The model '{}' makes embeddings and cannot chat.", model.id);
    ApiError::field("unsupported_value", "model", message)
}

pub(super) fn find<'a>(state: &'a AppState, name: &str) -> Result<&'a ServedModel, ApiError> {
    state.model(name).ok_or_else(|| unknown_model(state, name))
}

fn template_error(error: &TemplateError) -> ApiError {
    let message = format!("The model's chat template does not take these messages: {error}");
    ApiError::field("invalid_value", "messages", message)
}

fn service_error(error: &ServiceError) -> ApiError {
    if let ServiceError::Generate(error) = error
        && let GenerateError::Run(RunError::Execute(error)) = &**error
    {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        return ApiError::new(status, "device_error", format!("A device failed: {error}."));
    }
    match error {
        ServiceError::QueueTimeout(limit) => ApiError::queue_timeout(*limit),
        ServiceError::Deadline(limit) => ApiError::deadline(*limit),
        ServiceError::Stopped => ApiError::shutting_down(),
        error => ApiError::internal(format!("The generation failed: {error}.")),
    }
}

/// The reply with a number, while it grows.
#[derive(Default)]
struct Reply {
    text: String,
    tokens: Vec<u32>,
    logprobs: Vec<Value>,
    summary: Option<Summary>,
}

/// What is known of a request so far, for the end of the answer.
struct Progress<'a> {
    model: &'a ServedModel,
    queued: Duration,
    /// Of each reply that ended, by its number.
    summaries: Vec<Option<Summary>>,
}

impl<'a> Progress<'a> {
    fn new(model: &'a ServedModel, replies: u32) -> Self {
        let (queued, summaries) = (Duration::ZERO, vec![None; replies as usize]);
        Self { model, queued, summaries }
    }

    fn summaries(&self) -> Vec<Summary> {
        self.summaries.iter().flatten().cloned().collect()
    }
}

/// POST /v1/chat/completions
pub(crate) async fn create(
    State(state): State<Arc<AppState>>,
    body: Body,
) -> Result<Response, ApiError> {
    let body = read_body(&state, body).await?;
    let job = Job::new(&state, &body).inspect_err(|error| {
        let reason = match error.code {
            "context_length_exceeded" => "too_long",
            _ => "invalid",
        };
        state.metrics.requests_rejected_total.with_label_values(&[reason]).inc();
    })?;
    let model = find(&state, &job.request.model)?;
    let updates = job.submit(&state, model).inspect_err(|error| {
        if error.code == "queue_full" {
            state.metrics.requests_rejected_total.with_label_values(&["queue_full"]).inc();
        }
    })?;
    let ignored = ignored_header(&job.request.ignored);
    let mut response = if job.request.stream {
        stream(state.clone(), job, updates).await
    } else {
        whole(model, &job, updates).await?.into_response()
    };
    if let Some(ignored) = ignored {
        response.headers_mut().insert("x-trefoil-ignored", ignored);
    }
    Ok(response)
}

/// The names of ignored fields as a header's value: escaped where a header could not hold them, and
/// cut where they are many.
pub(super) fn ignored_header(names: &[String]) -> Option<HeaderValue> {
    const MOST_BYTES: usize = 1024;
    let mut text = String::new();
    for name in names {
        let name = name.escape_default().to_string();
        if text.len() + name.len() > MOST_BYTES {
            text.push_str(if text.is_empty() { "..." } else { ",..." });
            break;
        }
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(&name);
    }
    HeaderValue::from_str(&text).ok().filter(|value| !value.is_empty())
}

/// Waits for all replies and answers at once.
async fn whole(
    model: &ServedModel,
    job: &Job,
    mut updates: Updates,
) -> Result<axum::Json<Value>, ApiError> {
    let mut progress = Progress::new(model, job.request.n);
    let mut replies: Vec<Reply> = (0..job.request.n).map(|_| Reply::default()).collect();
    let mut left = replies.len();
    while left > 0 {
        let Some((choice, update)) = updates.receiver.recv().await else {
            return Err(ApiError::internal("The generation ended without a result."));
        };
        let reply = &mut replies[choice as usize];
        match update {
            Update::Started(queued) => progress.queued = queued,
            Update::Event(Event::PromptRead(_)) => {}
            Update::Event(Event::Token { id, text, logprobs }) => {
                reply.text.push_str(&text);
                reply.tokens.push(id);
                let logprobs = logprobs.map(|l| answer::logprobs(&model.text.tokenizer, &l));
                reply.logprobs.extend(logprobs);
            }
            Update::Event(Event::Text(text)) => reply.text.push_str(&text),
            Update::Done(Ok(summary)) => {
                progress.summaries[choice as usize] = Some(summary.clone());
                reply.summary = Some(summary);
                left -= 1;
            }
            Update::Done(Err(error)) => return Err(service_error(&error)),
        }
    }
    let choices = replies.iter().enumerate().map(|(index, reply)| choice(job, index, reply));
    let mut object = Head::new(model).object("chat.completion", Value::Array(choices.collect()));
    object["usage"] = answer::usage(&progress.summaries());
    finish(&mut object, &progress, job);
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
fn finish(object: &mut Value, progress: &Progress<'_>, job: &Job) {
    let summaries = progress.summaries();
    object["timings"] = answer::timings(&summaries);
    object["trefoil"] = answer::trefoil(progress.model, &summaries, progress.queued, job.seed);
    if let Some(metadata) = &job.request.metadata {
        object["metadata"] = metadata.clone();
    }
}

/// Answers with events. The status is sent when the request leaves the queue, or after a while.
async fn stream(state: Arc<AppState>, job: Job, mut updates: Updates) -> Response {
    let first = tokio::time::timeout(state.options.status_after, updates.receiver.recv()).await;
    let first = match first {
        Ok(Some((_, Update::Done(Err(error))))) => return service_error(&error).into_response(),
        Ok(first) => first,
        Err(_) => None,
    };
    let (sender, events) = unbounded_channel();
    let ping = state.options.sse_ping;
    tokio::spawn(async move {
        if let Err(error) = pump(&state, &job, first, updates, &sender).await {
            // The status went out long ago: the error is an event, and nothing follows it.
            let _ = sender.send(sse::event(&error.body()));
        }
    });
    sse::response(events, ping)
}

/// Turns updates into events until all replies are done or the client is gone.
async fn pump(
    state: &AppState,
    job: &Job,
    first: Option<Tagged>,
    mut updates: Updates,
    sender: &sse::Sender,
) -> Result<(), ApiError> {
    let model = find(state, &job.request.model)?;
    let mut progress = Progress::new(model, job.request.n);
    let head = Head::new(model);
    let usage_later = job.request.include_usage;
    let chunk = |choices: Value| {
        let mut object = head.object("chat.completion.chunk", choices);
        if usage_later {
            object["usage"] = Value::Null;
        }
        object
    };
    // A send fails when the client is gone; dropping the receiver then cancels the generation.
    let send = |object: &Value| sender.send(sse::event(object)).is_ok();
    let delta = |index: u32, delta: Value, logprobs: Value| {
        chunk(json!([{
            "index": index, "delta": delta, "logprobs": logprobs, "finish_reason": null,
        }]))
    };
    for index in 0..job.request.n {
        let opening = json!({"role": "assistant", "content": ""});
        if !send(&delta(index, opening, Value::Null)) {
            return Ok(());
        }
    }
    let mut left = job.request.n;
    let mut next = first;
    while left > 0 {
        let update = match next.take() {
            Some(update) => Some(update),
            None => tokio::select! {
                update = updates.receiver.recv() => update,
                () = sender.closed() => return Ok(()),
            },
        };
        let Some((index, update)) = update else {
            return Err(ApiError::internal("The generation ended without a result."));
        };
        let object = match update {
            Update::Started(queued) => {
                progress.queued = queued;
                continue;
            }
            Update::Event(Event::PromptRead(_)) => continue,
            Update::Event(Event::Token { id, text, logprobs }) => {
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
            Update::Event(Event::Text(text)) => delta(index, json!({"content": text}), Value::Null),
            Update::Done(Ok(summary)) => {
                left -= 1;
                let mut object = delta(index, json!({}), Value::Null);
                let reason = answer::finish_reason(&summary.finish);
                progress.summaries[index as usize] = Some(summary);
                object["choices"][0]["finish_reason"] = json!(reason);
                if left == 0 && !usage_later {
                    finish(&mut object, &progress, job);
                }
                object
            }
            Update::Done(Err(error)) => return Err(service_error(&error)),
        };
        if !send(&object) {
            return Ok(());
        }
    }
    if usage_later {
        let mut object = chunk(json!([]));
        object["usage"] = answer::usage(&progress.summaries());
        finish(&mut object, &progress, job);
        send(&object);
    }
    let _ = sender.send(sse::DONE);
    Ok(())
}
