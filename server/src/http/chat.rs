//! POST /v1/chat/completions.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use trefoil_engine::generate::Request;
use trefoil_engine::grammar::Grammar;
use trefoil_engine::service::Order;
use trefoil_engine::text::TemplateError;
use trefoil_engine::text::sampling::SamplingParams;
use trefoil_engine::text::thinking::Thinking;

use super::answer::{self, Head};
use super::body::{find, name_ignored, read_body};
use super::chat_reply::{Reply, deltas};
use super::chat_request::ChatRequest;
use super::error::ApiError;
use super::format::{self, Format};
use super::outlet::{Frame, Outlet};
use super::parts::Finder;
use super::replies::{Part, Replies, count_rejected, not_generative};
use super::sse;
use super::state::{AppState, ServedModel};

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
    /// A job of a chat's body, ready to be queued.
    async fn read(state: &AppState, body: &[u8]) -> Result<Self, ApiError> {
        let options = &state.options;
        let read = async {
            let request = ChatRequest::read(body, options.max_n, options.strict_fields)?;
            Self::new(state, request).await
        };
        read.await.inspect_err(|error| count_rejected(state, error))
    }

    /// A job of a checked request, with what its replies follow compiled.
    pub(super) async fn new(state: &AppState, request: ChatRequest) -> Result<Self, ApiError> {
        let model = find(state, &request.model)?;
        let mut job = Self::prepared(model, request)?;
        job.compile(model).await?;
        Ok(job)
    }

    fn prepared(model: &ServedModel, request: ChatRequest) -> Result<Self, ApiError> {
        if !model.generative {
            return Err(not_generative(model));
        }
        let (rendered, prompt) = prompt(model, &request)?;
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
    async fn compile(&mut self, model: &ServedModel) -> Result<(), ApiError> {
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

    /// Queues the request.
    pub(super) fn submit(
        &self,
        state: &AppState,
        model: &ServedModel,
    ) -> Result<Replies, ApiError> {
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
        Replies::submit(state, model, vec![order])
    }
}

/// What a model reads of a request: its text, and the token ids.
pub(crate) fn prompt(
    model: &ServedModel,
    request: &ChatRequest,
) -> Result<(String, Vec<u32>), ApiError> {
    let tools = request.tools.list();
    let rendered = model
        .text
        .render_with_tools(&request.messages, tools.as_ref(), Some(&request.template_variables))
        .map_err(|error| template_error(&error))?;
    let prompt = model.text.encode_rendered(&rendered);
    Ok((rendered, prompt))
}

fn template_error(error: &TemplateError) -> ApiError {
    let message = format!("The model's chat template does not take these messages: {error}");
    ApiError::field("invalid_value", "messages", message)
}

/// POST /v1/chat/completions
pub(crate) async fn create(
    State(state): State<Arc<AppState>>,
    body: Body,
) -> Result<Response, ApiError> {
    let body = read_body(&state, body).await?;
    let job = Job::read(&state, &body).await?;
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
    let mut grown: Vec<Reply> = (0..job.request.n).map(|_| Reply::new(job.finder(model))).collect();
    while let Some((number, part)) = replies.next().await? {
        let reply = &mut grown[number as usize];
        match part {
            Part::Token { id, text, logprobs } => {
                reply.token(id, &text);
                let logprobs = logprobs.map(|l| answer::logprobs(&model.text.tokenizer, &l));
                reply.logprobs.extend(logprobs);
            }
            Part::Text(text) => reply.push(&text),
            Part::End(summary) => {
                reply.end();
                reply.summary = Some(summary);
            }
        }
    }
    let choices = grown.iter().enumerate().map(|(index, reply)| reply.choice(job, index));
    let head = Head::new(model, "chatcmpl-");
    let mut object = head.object("chat.completion", Value::Array(choices.collect()));
    object["usage"] = replies.usage(grown.iter().map(Reply::reasoning_tokens).sum());
    finish(&mut object, &replies, model, job);
    Ok(axum::Json(object))
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
    let job = Job::read(state, body).await?;
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
    let mut finders: Vec<Finder> = (0..job.request.n).map(|_| job.finder(model)).collect();
    while let Some((index, part)) = outlet.unless_closed(replies.next()).await? {
        let finder = &mut finders[index as usize];
        let objects = match part {
            Part::Token { id, text, logprobs } => {
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
            Part::Text(text) => {
                let parts = deltas(&finder.push(&text)).into_iter();
                parts.map(|part| delta(index, part, Value::Null)).collect()
            }
            Part::End(summary) => {
                let rest = deltas(&finder.finish()).into_iter();
                let mut objects: Vec<Value> =
                    rest.map(|part| delta(index, part, Value::Null)).collect();
                let mut object = delta(index, json!({}), Value::Null);
                let reason = match finder.calls > 0 {
                    true => "tool_calls",
                    false => answer::finish_reason(&summary.finish),
                };
                object["choices"][0]["finish_reason"] = json!(reason);
                if replies.are_done() && !usage_later {
                    finish(&mut object, &replies, model, job);
                }
                objects.push(object);
                objects
            }
        };
        if !objects.into_iter().all(|object| outlet.send(Frame::Chunk(object))) {
            return Ok(());
        }
    }
    if usage_later && replies.are_done() {
        let mut object = chunk(json!([]));
        object["usage"] = replies.usage(finders.iter().map(|f| f.reasoning_tokens).sum());
        finish(&mut object, &replies, model, job);
        outlet.send(Frame::Chunk(object));
    }
    Ok(())
}
