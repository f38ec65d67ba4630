//! POST /v1/responses: OpenAI's newer way to ask for a reply. Nothing is kept between requests.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use trefoil_engine::generate::Summary;

use super::answer;
use super::body::{find, name_ignored, read_body};
use super::chat::Job;
use super::error::ApiError;
use super::parts::Finder;
use super::replies::{Part, Replies, count_rejected};
use super::responses_output::{Frame, Output};
use super::responses_request::ResponsesRequest;
use super::sse;
use super::state::{AppState, ServedModel};

/// POST /v1/responses
pub(crate) async fn create(
    State(state): State<Arc<AppState>>,
    body: Body,
) -> Result<Response, ApiError> {
    let body = read_body(&state, body).await?;
    let refused = |error: &ApiError| count_rejected(&state, error);
    let read = ResponsesRequest::read(&body, state.options.strict_fields);
    let ResponsesRequest { chat, echo } = read.inspect_err(refused)?;
    let job = Job::new(&state, chat).await.map_err(named_as_here).inspect_err(refused)?;
    let model = find(&state, &job.request.model)?;
    let replies = job.submit(&state, model)?;
    let sampling = (job.params.temperature, job.params.top_p);
    let frame = Frame::new(model.id.clone(), sampling, echo);
    let ignored = job.request.ignored.clone();
    let mut response = match job.request.stream {
        true => stream(state.clone(), job, frame, replies).await?,
        false => whole(model, &job, &frame, replies).await.map_err(named_as_here)?.into_response(),
    };
    name_ignored(&mut response, &ignored);
    Ok(response)
}

/// An error about a field of a chat, by the name that the field has here.
fn named_as_here(error: ApiError) -> ApiError {
    let param = match error.param.as_deref() {
        Some("messages") => Some("input".to_owned()),
        Some("response_format") => Some("text.format".to_owned()),
        _ => error.param,
    };
    ApiError { param, ..error }
}

/// A response while it grows.
struct Growing<'a> {
    model: &'a ServedModel,
    finder: Finder,
    output: Output,
}

impl<'a> Growing<'a> {
    fn new(model: &'a ServedModel, job: &Job) -> Self {
        Self { model, finder: job.finder(model), output: Output::default() }
    }

    /// Takes what comes next; the figures, if it is the end.
    fn take(&mut self, part: Part) -> Option<Summary> {
        match part {
            Part::Token { text, logprobs, .. } => {
                if let Some(logprobs) = logprobs {
                    let value = answer::logprobs(&self.model.text.tokenizer, &logprobs);
                    self.output.logprobs(value);
                }
                self.finder.count();
                self.text(&text);
                None
            }
            Part::Text(text) => {
                self.text(&text);
                None
            }
            Part::End(summary) => {
                self.finder.finish().iter().for_each(|part| self.output.push(part));
                self.output.finish(answer::finish_reason(&summary.finish) != "length");
                Some(summary)
            }
        }
    }

    fn text(&mut self, text: &str) {
        self.finder.push(text).iter().for_each(|part| self.output.push(part));
    }

    fn ended(&self, frame: &Frame, summary: &Summary, replies: &Replies, seed: i64) -> Value {
        let mut object = frame.ended(&self.output, summary);
        let thought = self.finder.reasoning_tokens;
        object["usage"]["output_tokens_details"]["reasoning_tokens"] = json!(thought);
        replies.add_figures(&mut object, self.model, seed);
        object
    }
}

/// Waits for the end and answers at once.
async fn whole(
    model: &ServedModel,
    job: &Job,
    frame: &Frame,
    mut replies: Replies,
) -> Result<axum::Json<Value>, ApiError> {
    let mut growing = Growing::new(model, job);
    while let Some((_, part)) = replies.next().await? {
        let summary = growing.take(part);
        growing.output.events();
        if let Some(summary) = summary {
            return Ok(axum::Json(growing.ended(frame, &summary, &replies, job.seed)));
        }
    }
    Err(ApiError::internal("The generation ended without a result."))
}

/// Sends events with their numbers.
struct Teller {
    sender: UnboundedSender<Bytes>,
    number: u64,
}

impl Teller {
    /// False if nobody listens.
    fn tell(&mut self, kind: &str, mut data: Value) -> bool {
        data["type"] = json!(kind);
        data["sequence_number"] = json!(self.number);
        self.number += 1;
        self.sender.send(sse::named_event(kind, &data)).is_ok()
    }
}

/// Answers with events. The status is sent when the request leaves the queue, or after a while.
async fn stream(
    state: Arc<AppState>,
    job: Job,
    frame: Frame,
    mut replies: Replies,
) -> Result<Response, ApiError> {
    replies.admitted(state.options.status_after).await.map_err(named_as_here)?;
    let (sender, events) = unbounded_channel();
    let ping = state.options.sse_ping;
    tokio::spawn(async move {
        let mut teller = Teller { sender, number: 0 };
        if let Err(error) = pump(&state, &job, &frame, replies, &mut teller).await {
            // The status went out long ago: the errors are events.
            let mut data = named_as_here(error).body()["error"].take();
            teller.tell("error", data.clone());
            let mut failed = frame.object("failed", json!([]));
            failed["error"] = json!({"code": "server_error", "message": data["message"].take()});
            teller.tell("response.failed", json!({ "response": failed }));
        }
    });
    Ok(sse::response(events, ping))
}

/// Turns what comes of the reply into events until it is done or the client is gone.
async fn pump(
    state: &AppState,
    job: &Job,
    frame: &Frame,
    mut replies: Replies,
    teller: &mut Teller,
) -> Result<(), ApiError> {
    let model = find(state, &job.request.model)?;
    let mut growing = Growing::new(model, job);
    for kind in ["response.created", "response.in_progress"] {
        let response = frame.object("in_progress", json!([]));
        if !teller.tell(kind, json!({ "response": response })) {
            return Ok(());
        }
    }
    let sender = teller.sender.clone();
    loop {
        let next = tokio::select! {
            next = replies.next() => next?,
            () = sender.closed() => return Ok(()),
        };
        let Some((_, part)) = next else { return Ok(()) };
        let summary = growing.take(part);
        for (kind, data) in growing.output.events() {
            if !teller.tell(kind, data) {
                return Ok(());
            }
        }
        if let Some(summary) = summary {
            let object = growing.ended(frame, &summary, &replies, job.seed);
            let kind = match object["status"] == "completed" {
                true => "response.completed",
                false => "response.incomplete",
            };
            teller.tell(kind, json!({ "response": object }));
        }
    }
}
