//! POST /v1/completions.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use trefoil_engine::generate::Request;
use trefoil_engine::service::Order;
use trefoil_engine::text::DecodeOptions;
use trefoil_engine::text::sampling::SamplingParams;

use super::answer::{self, Head};
use super::body::{find, name_ignored, read_body};
use super::completion_choice::{Choice, Piece};
use super::completion_request::{CompletionRequest, DEFAULT_MAX_TOKENS};
use super::error::ApiError;
use super::outlet::{Frame, Outlet};
use super::replies::{Replies, count_rejected, not_generative};
use super::sse;
use super::state::{AppState, ServedModel};
use super::text_inputs::{Input, check_ids};

/// A text to go on with.
struct Prompt {
    ids: Vec<u32>,
    /// What each reply begins with: the text itself, if it is to be echoed.
    echo: String,
}

/// A request on its way: its prompts, and what is the same for all its replies.
struct Job {
    request: CompletionRequest,
    prompts: Vec<Prompt>,
    params: SamplingParams,
    max_tokens: usize,
    seed: i64,
}

impl Job {
    /// Reads and checks a body.
    fn new(state: &AppState, body: &[u8]) -> Result<Self, ApiError> {
        let options = &state.options;
        let request = CompletionRequest::read(body, options.max_n, options.strict_fields)?;
        let model = find(state, &request.model)?;
        let service = model.service().ok_or_else(|| not_generative(model))?;
        let prompts = prompts(model, &request)?;
        if prompts.len() > service.capacity() {
            let message = format!(
                "'prompt': expected at most as many texts as the queue has places, {}, got {}.",
                service.capacity(),
                prompts.len()
            );
            return Err(ApiError::field("invalid_value", "prompt", message));
        }
        let mut params = request.sampling.params(model.text.sampling);
        params.logprobs = request.logprobs.map(|n| n as u32);
        params
            .validate(model.vocabulary)
            .map_err(|error| ApiError::field("invalid_value", error.field, error.to_string()))?;
        let max_tokens = request.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS);
        let seed = request.sampling.seed.unwrap_or_else(super::id::seed);
        Ok(Self { request, prompts, params, max_tokens, seed })
    }

    /// The model that is asked.
    fn model<'a>(&self, state: &'a AppState) -> Result<&'a ServedModel, ApiError> {
        find(state, &self.request.model)
    }

    /// Queues the request.
    fn submit(&self, state: &AppState) -> Result<Replies, ApiError> {
        let order = |prompt: &Prompt| Order {
            request: Request {
                prompt: prompt.ids.clone(),
                sampling: self.params.clone(),
                max_tokens: Some(self.max_tokens),
                stop: self.request.stop.clone(),
                seed: self.seed,
                grammar: None,
                shown: [].into(),
            },
            choices: self.request.n,
            priority: self.request.priority,
            cache: self.request.cache_prompt,
            time_limit: state.options.request_timeout,
        };
        Replies::submit(state, self.model(state)?, self.prompts.iter().map(order).collect())
    }

    /// One for each reply: by prompt, then by choice.
    fn choices(&self, model: &ServedModel) -> Vec<Choice> {
        let tokenizer = &model.text.tokenizer;
        let of = |prompt: &Prompt| {
            let choice = move |_| Choice::new(tokenizer.clone(), &prompt.echo);
            (0..self.request.n).map(choice).collect::<Vec<_>>()
        };
        self.prompts.iter().flat_map(of).collect()
    }

    fn choice(&self, index: u32, piece: &Piece) -> Value {
        let logprobs = self.request.logprobs.map(|_| piece.logprobs.object());
        let mut choice = json!({
            "text": piece.text,
            "index": index,
            "logprobs": logprobs,
            "finish_reason": piece.finish.as_ref().map(answer::finish_reason),
        });
        if self.request.return_tokens {
            choice["tokens"] = json!(piece.tokens);
        }
        choice
    }
}

/// The token ids of all prompts, and what is echoed of them.
fn prompts(model: &ServedModel, request: &CompletionRequest) -> Result<Vec<Prompt>, ApiError> {
    let tokenizer = &model.text.tokenizer;
    let Some(inputs) = &request.prompts else {
        let Some(bos) = tokenizer.bos() else {
            let message = "'prompt' is required: this model has no token that begins a text.";
            return Err(ApiError::field("missing_required_parameter", "prompt", message));
        };
        return Ok(vec![Prompt { ids: vec![bos], echo: String::new() }]);
    };
    let one = |(index, input): (usize, &Input)| {
        let (ids, text) = match input {
            Input::Text(text) => (model.text.encode_raw(text), text.clone()),
            Input::Tokens(ids) => {
                check_ids(model, &format!("prompt[{index}]"), ids)?;
                (ids.clone(), tokenizer.decode(ids, DecodeOptions { special: true }))
            }
        };
        if ids.is_empty() {
            let message = format!("'prompt[{index}]': expected a text, got nothing.");
            return Err(ApiError::field("invalid_value", "prompt", message));
        }
        let completion = request.max_tokens.unwrap_or(1);
        if ids.len().saturating_add(completion) > model.context {
            let (context, prompt) = (model.context, ids.len());
            return Err(ApiError::context_length_of("prompt", context, prompt, completion));
        }
        Ok(Prompt { ids, echo: if request.echo { text } else { String::new() } })
    };
    inputs.iter().enumerate().map(one).collect()
}

/// POST /v1/completions
pub(crate) async fn create(
    State(state): State<Arc<AppState>>,
    body: Body,
) -> Result<Response, ApiError> {
    let body = read_body(&state, body).await?;
    let job = Job::new(&state, &body).inspect_err(|error| count_rejected(&state, error))?;
    let mut replies = job.submit(&state)?;
    let ignored = job.request.ignored.clone();
    let mut response = if job.request.stream {
        replies.admitted(state.options.status_after).await?;
        let ping = state.options.sse_ping;
        sse::answer(ping, move |outlet| async move { pump(&state, &job, replies, &outlet).await })
    } else {
        whole(&state, &job, replies).await?.into_response()
    };
    name_ignored(&mut response, &ignored);
    Ok(response)
}

/// Waits for all replies and answers at once.
async fn whole(
    state: &AppState,
    job: &Job,
    mut replies: Replies,
) -> Result<axum::Json<Value>, ApiError> {
    let model = job.model(state)?;
    let mut choices = job.choices(model);
    let mut texts: Vec<Piece> = choices.iter_mut().map(Choice::opening).collect();
    while let Some((number, part)) = replies.next().await? {
        let number = number as usize;
        texts[number].append(choices[number].piece(part));
    }
    let texts = texts.iter().zip(0..).map(|(text, index)| job.choice(index, text)).collect();
    let mut object = Head::new(model, "cmpl-").object("text_completion", Value::Array(texts));
    object["usage"] = replies.usage(0);
    replies.add_figures(&mut object, model, job.seed);
    Ok(axum::Json(object))
}

/// Answers a body that streams, for a socket.
pub(super) async fn streamed<T>(
    state: &AppState,
    body: &[u8],
    outlet: &Outlet<T>,
) -> Result<(), ApiError> {
    let job = Job::new(state, body).inspect_err(|error| count_rejected(state, error))?;
    let replies = job.submit(state)?;
    pump(state, &job, replies, outlet).await
}

/// Turns what comes of the replies into frames until all are done or the client is gone.
async fn pump<T>(
    state: &AppState,
    job: &Job,
    mut replies: Replies,
    outlet: &Outlet<T>,
) -> Result<(), ApiError> {
    let model = job.model(state)?;
    let head = Head::new(model, "cmpl-");
    let usage_later = job.request.include_usage;
    let chunk = |choices: Value| {
        let mut object = head.object("text_completion", choices);
        if usage_later {
            object["usage"] = Value::Null;
        }
        object
    };
    let mut choices = job.choices(model);
    for (choice, index) in choices.iter_mut().zip(0..) {
        let opening = choice.opening();
        if !opening.text.is_empty()
            && !outlet.send(Frame::Chunk(chunk(json!([job.choice(index, &opening)]))))
        {
            return Ok(());
        }
    }
    while let Some((index, part)) = outlet.unless_closed(replies.next()).await? {
        let piece = choices[index as usize].piece(part);
        if piece.is_silent() && !job.request.return_tokens {
            continue;
        }
        let mut object = chunk(json!([job.choice(index, &piece)]));
        if replies.are_done() && !usage_later {
            replies.add_figures(&mut object, model, job.seed);
        }
        if !outlet.send(Frame::Chunk(object)) {
            return Ok(());
        }
    }
    if usage_later && replies.are_done() {
        let mut object = chunk(json!([]));
        object["usage"] = replies.usage(0);
        replies.add_figures(&mut object, model, job.seed);
        outlet.send(Frame::Chunk(object));
    }
    Ok(())
}
