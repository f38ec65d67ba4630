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
use trefoil_engine::grammar::Grammar;
use trefoil_engine::runner::RunError;
use trefoil_engine::service::{Order, ServiceError, SubmitError, Update};
use trefoil_engine::text::TemplateError;
use trefoil_engine::text::sampling::SamplingParams;
use trefoil_engine::text::thinking::Thinking;

use super::answer::{self, Head};
use super::chat_reply::{Reply, deltas};
use super::chat_request::ChatRequest;
use super::error::ApiError;
use super::format::{self, Format};
use super::info::unknown_model;
use super::parts::Finder;
use super::sse;
use super::state::{AppState, ServedModel};

/// Updates of the reply with this number.
pub(super) type Tagged = (u32, Update);

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
pub(super) struct Job {
    pub(super) request: ChatRequest,
    prompt: Vec<u32>,
    pub(super) params: SamplingParams,
    pub(super) seed: i64,
    /// What its replies follow, once it was compiled.
    grammar: Option<Grammar>,
    /// The prompt as text, as the template wrote it.
    rendered: String,
}

impl Job {
    fn read(state: &AppState, body: &[u8]) -> Result<Self, ApiError> {
        let options = &state.options;
        Self::new(state, ChatRequest::read(body, options.max_n, options.strict_fields)?)
    }

    pub(super) fn new(state: &AppState, request: ChatRequest) -> Result<Self, ApiError> {
        let model = find(state, &request.model)?;
        if !model.generative {
            return Err(cannot_chat(model));
        }
        let rendered = model
            .text
            .render_with_tools(
                &request.messages,
                request.tools.list().as_ref(),
                Some(&request.template_variables),
            )
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
        Ok(Self { request, prompt, params, seed, grammar: None, rendered })
    }

    /// What tells thought from text; a reply that is held to a form is not thought.
    fn thinking(&self, model: &ServedModel) -> Option<Thinking> {
        let free = self.request.format.source.is_none() && !self.request.tools.required();
        Thinking::after(&model.text.template, &self.rendered).filter(|_| free)
    }

    /// What tells the parts of a reply from each other.
    pub(super) fn finder(&self, model: &ServedModel) -> Finder {
        Finder::new(self.thinking(model), self.request.tools.parser(&model.text))
    }

    /// Compiles what the replies follow, if they follow anything.
    pub(super) async fn compile(&mut self, model: &ServedModel) -> Result<(), ApiError> {
        let Format { source, field, .. } = &self.request.format;
        let tools = &self.request.tools;
        // What the text must be counts unless there must be calls instead.
        let (source, field) = match source {
            Some(source) if !tools.required() => (Some(source.clone()), *field),
            _ => (tools.grammar(&model.text), "tools"),
        };
        if let Some(source) = source {
            self.grammar = Some(format::compile(model, source, field).await?);
        }
        Ok(())
    }

    /// Queues the request; the updates of its replies come through the channel.
    pub(super) fn submit(
        &self,
        state: &AppState,
        model: &ServedModel,
    ) -> Result<Updates, ApiError> {
        let service = model.service().ok_or_else(|| cannot_chat(model))?;
        let (sender, receiver) = unbounded_channel();
        let order = Order {
            request: Request {
                prompt: self.prompt.clone(),
                sampling: self.params.clone(),
                max_tokens: self.request.max_tokens,
                stop: self.request.stop.clone(),
                seed: self.seed,
                grammar: self.grammar.clone(),
                shown: match self.request.tools.any() || self.thinking(model).is_some() {
                    true => model.text.calls.shown.clone(),
                    false => [].into(),
                },
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
pub(super) struct Updates {
    pub(super) receiver: UnboundedReceiver<Tagged>,
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

pub(super) fn service_error(error: &ServiceError) -> ApiError {
    if let ServiceError::Generate(error) = error
        && let GenerateError::Run(RunError::Execute(error)) = &**error
    {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        return ApiError::new(status, "device_error", format!("A device failed: {error}."));
    }
    if let ServiceError::Generate(error) = error
        && let GenerateError::Grammar(error) = &**error
    {
        return format::grammar_error(error, "response_format");
    }
    match error {
        ServiceError::QueueTimeout(limit) => ApiError::queue_timeout(*limit),
        ServiceError::Deadline(limit) => ApiError::deadline(*limit),
        ServiceError::Stopped => ApiError::shutting_down(),
        error => ApiError::internal(format!("The generation failed: {error}.")),
    }
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
    let refused = |error: &ApiError| count_refused(&state, error);
    let mut job = Job::read(&state, &body).inspect_err(refused)?;
    let model = find(&state, &job.request.model)?;
    job.compile(model).await.inspect_err(refused)?;
    let updates = job.submit(&state, model).inspect_err(refused)?;
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

/// Counts a request that was refused.
pub(super) fn count_refused(state: &AppState, error: &ApiError) {
    let reason = match error.code {
        "context_length_exceeded" => "too_long",
        "queue_full" => "queue_full",
        _ if error.status.is_server_error() => return,
        _ => "invalid",
    };
    state.metrics.requests_rejected_total.with_label_values(&[reason]).inc();
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
    let mut replies: Vec<Reply> =
        (0..job.request.n).map(|_| Reply::new(job.finder(model))).collect();
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
                reply.token(id, &text);
                let logprobs = logprobs.map(|l| answer::logprobs(&model.text.tokenizer, &l));
                reply.logprobs.extend(logprobs);
            }
            Update::Event(Event::Text(text)) => reply.push(&text),
            Update::Done(Ok(summary)) => {
                reply.end();
                progress.summaries[choice as usize] = Some(summary.clone());
                reply.summary = Some(summary);
                left -= 1;
            }
            Update::Done(Err(error)) => return Err(service_error(&error)),
        }
    }
    let choices = replies.iter().enumerate().map(|(index, reply)| reply.choice(job, index));
    let mut object = Head::new(model).object("chat.completion", Value::Array(choices.collect()));
    let thought = replies.iter().map(Reply::reasoning_tokens).sum();
    object["usage"] = answer::usage(&progress.summaries(), thought);
    finish(&mut object, &progress, job);
    Ok(axum::Json(object))
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
    let mut finders: Vec<Finder> = (0..job.request.n).map(|_| job.finder(model)).collect();
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
        let finder = &mut finders[index as usize];
        let objects = match update {
            Update::Started(queued) => {
                progress.queued = queued;
                continue;
            }
            Update::Event(Event::PromptRead(_)) => continue,
            Update::Event(Event::Token { id, text, logprobs }) => {
                let list = logprobs
                    .map(|l| json!({"content": [answer::logprobs(&model.text.tokenizer, &l)]}));
                finder.count();
                let mut parts = deltas(&finder.push(&text));
                if parts.is_empty() && (list.is_some() || job.request.return_tokens) {
                    parts.push(json!({}));
                }
                let mut list = list.unwrap_or(Value::Null);
                let mut objects: Vec<Value> =
                    parts.into_iter().map(|part| delta(index, part, list.take())).collect();
                if let (Some(first), true) = (objects.first_mut(), job.request.return_tokens) {
                    first["choices"][0]["tokens"] = json!([id]);
                }
                objects
            }
            Update::Event(Event::Text(text)) => {
                let parts = deltas(&finder.push(&text)).into_iter();
                parts.map(|part| delta(index, part, Value::Null)).collect()
            }
            Update::Done(Ok(summary)) => {
                left -= 1;
                let rest = deltas(&finder.finish()).into_iter();
                let mut objects: Vec<Value> =
                    rest.map(|part| delta(index, part, Value::Null)).collect();
                let mut object = delta(index, json!({}), Value::Null);
                let reason = match finder.calls > 0 {
                    true => "tool_calls",
                    false => answer::finish_reason(&summary.finish),
                };
                progress.summaries[index as usize] = Some(summary);
                object["choices"][0]["finish_reason"] = json!(reason);
                if left == 0 && !usage_later {
                    finish(&mut object, &progress, job);
                }
                objects.push(object);
                objects
            }
            Update::Done(Err(error)) => return Err(service_error(&error)),
        };
        if !objects.iter().all(&send) {
            return Ok(());
        }
    }
    if usage_later {
        let mut object = chunk(json!([]));
        let thought = finders.iter().map(|finder| finder.reasoning_tokens).sum();
        object["usage"] = answer::usage(&progress.summaries(), thought);
        finish(&mut object, &progress, job);
        send(&object);
    }
    let _ = sender.send(sse::DONE);
    Ok(())
}
