//! POST /v1/responses: OpenAI's newer way to ask for a reply. Nothing is kept between requests.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::sync::mpsc::unbounded_channel;
use trefoil_engine::generate::{Event, Summary};
use trefoil_engine::service::Update;

use super::answer;
use super::chat::{self, Job, Tagged, Updates};
use super::error::ApiError;
use super::parts::Finder;
use super::responses_output::{Frame, Output};
use super::responses_request::ResponsesRequest;
use super::sse;
use super::state::{AppState, ServedModel};

/// POST /v1/responses
pub(crate) async fn create(
    State(state): State<Arc<AppState>>,
    body: Body,
) -> Result<Response, ApiError> {
    let body = chat::read_body(&state, body).await?;
    let refused = |error: &ApiError| chat::count_refused(&state, error);
    let read = ResponsesRequest::read(&body, state.options.strict_fields);
    let ResponsesRequest { chat, echo } = read.inspect_err(refused)?;
    let mut job = Job::new(&state, chat).map_err(named_as_here).inspect_err(refused)?;
    let model = chat::find(&state, &job.request.model)?;
    job.compile(model).await.map_err(named_as_here).inspect_err(refused)?;
    let updates = job.submit(&state, model).inspect_err(refused)?;
    let sampling = (job.params.temperature, job.params.top_p);
    let frame = Frame::new(model.id.clone(), sampling, echo);
    let ignored = chat::ignored_header(&job.request.ignored);
    let mut response = match job.request.stream {
        true => stream(state.clone(), job, frame, updates).await,
        false => whole(model, &job, &frame, updates).await?.into_response(),
    };
    if let Some(ignored) = ignored {
        response.headers_mut().insert("x-trefoil-ignored", ignored);
    }
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
    queued: Duration,
}

impl<'a> Growing<'a> {
    fn new(model: &'a ServedModel, job: &Job) -> Self {
        let finder = job.finder(model);
        Self { model, finder, output: Output::default(), queued: Duration::ZERO }
    }

    /// Takes an update; its end, if it is that.
    fn take(&mut self, update: Update) -> Result<Option<Summary>, ApiError> {
        match update {
            Update::Started(queued) => self.queued = queued,
            Update::Event(Event::PromptRead(_)) => {}
            Update::Event(Event::Token { text, logprobs, .. }) => {
                if let Some(logprobs) = logprobs {
                    let value = answer::logprobs(&self.model.text.tokenizer, &logprobs);
                    self.output.logprobs(value);
                }
                self.finder.count();
                self.text(&text);
            }
            Update::Event(Event::Text(text)) => self.text(&text),
            Update::Done(Ok(summary)) => {
                self.finder.finish().iter().for_each(|part| self.output.push(part));
                self.output.finish(answer::finish_reason(&summary.finish) != "length");
                return Ok(Some(summary));
            }
            Update::Done(Err(error)) => return Err(named_as_here(chat::service_error(&error))),
        }
        Ok(None)
    }

    fn text(&mut self, text: &str) {
        self.finder.push(text).iter().for_each(|part| self.output.push(part));
    }

    fn ended(&self, frame: &Frame, summary: &Summary, seed: i64) -> Value {
        let mut object = frame.ended(&self.output, summary);
        let thought = self.finder.reasoning_tokens;
        object["usage"]["output_tokens_details"]["reasoning_tokens"] = json!(thought);
        let summaries = std::slice::from_ref(summary);
        object["timings"] = answer::timings(summaries);
        object["trefoil"] = answer::trefoil(self.model, summaries, self.queued, seed);
        object
    }
}

/// Waits for the end and answers at once.
async fn whole(
    model: &ServedModel,
    job: &Job,
    frame: &Frame,
    mut updates: Updates,
) -> Result<axum::Json<Value>, ApiError> {
    let mut growing = Growing::new(model, job);
    loop {
        let Some((_, update)) = updates.receiver.recv().await else {
            return Err(ApiError::internal("The generation ended without a result."));
        };
        let summary = growing.take(update)?;
        growing.output.events();
        if let Some(summary) = summary {
            return Ok(axum::Json(growing.ended(frame, &summary, job.seed)));
        }
    }
}

/// Sends events with their numbers.
struct Teller {
    sender: sse::Sender,
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
async fn stream(state: Arc<AppState>, job: Job, frame: Frame, mut updates: Updates) -> Response {
    let first = tokio::time::timeout(state.options.status_after, updates.receiver.recv()).await;
    let first = match first {
        Ok(Some((_, Update::Done(Err(error))))) => {
            return named_as_here(chat::service_error(&error)).into_response();
        }
        Ok(first) => first,
        Err(_) => None,
    };
    let (sender, events) = unbounded_channel();
    let ping = state.options.sse_ping;
    tokio::spawn(async move {
        let mut teller = Teller { sender, number: 0 };
        if let Err(error) = pump(&state, &job, &frame, first, updates, &mut teller).await {
            // The status went out long ago: the errors are events.
            let mut data = error.body()["error"].take();
            teller.tell("error", data.clone());
            let mut failed = frame.object("failed", json!([]));
            failed["error"] = json!({"code": "server_error", "message": data["message"].take()});
            teller.tell("response.failed", json!({ "response": failed }));
        }
    });
    sse::response(events, ping)
}

/// Turns updates into events until the reply is done or the client is gone.
async fn pump(
    state: &AppState,
    job: &Job,
    frame: &Frame,
    first: Option<Tagged>,
    mut updates: Updates,
    teller: &mut Teller,
) -> Result<(), ApiError> {
    let model = chat::find(state, &job.request.model)?;
    let mut growing = Growing::new(model, job);
    for kind in ["response.created", "response.in_progress"] {
        let response = frame.object("in_progress", json!([]));
        if !teller.tell(kind, json!({ "response": response })) {
            return Ok(());
        }
    }
    let mut next = first;
    loop {
        let update = match next.take() {
            Some(update) => Some(update),
            None => {
                let sender = teller.sender.clone();
                tokio::select! {
                    update = updates.receiver.recv() => update,
                    () = sender.closed() => return Ok(()),
                }
            }
        };
        let Some((_, update)) = update else {
            return Err(ApiError::internal("The generation ended without a result."));
        };
        let summary = growing.take(update)?;
        for (kind, data) in growing.output.events() {
            if !teller.tell(kind, data) {
                return Ok(());
            }
        }
        if let Some(summary) = summary {
            let object = growing.ended(frame, &summary, job.seed);
            let kind = match object["status"] == "completed" {
                true => "response.completed",
                false => "response.incomplete",
            };
            teller.tell(kind, json!({ "response": object }));
            return Ok(());
        }
    }
}
