//! The replies to one request while a model makes them, whichever route asked.

use std::time::Duration;

use axum::http::StatusCode;
use serde_json::Value;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use trefoil_engine::generate::{Cancel, Event, GenerateError, Summary, TokenLogprobs};
use trefoil_engine::runner::RunError;
use trefoil_engine::service::{Order, ServiceError, SubmitError, Update};

use super::answer;
use super::error::ApiError;
use super::format;
use super::state::{AppState, ServedModel};

/// An update of the reply with this number.
type Tagged = (u32, Update);

/// What comes next of a reply.
#[derive(Debug)]
pub(crate) enum Part {
    /// A token, with the text that can be shown now (see [`Event::Token`]).
    Token { id: u32, text: String, logprobs: Option<TokenLogprobs> },
    /// Text that was held back.
    Text(String),
    /// The reply is done.
    End(Summary),
}

/// The replies to a request, as they grow. Whoever drops them cancels them, wherever they are.
pub(crate) struct Replies {
    receiver: UnboundedReceiver<Tagged>,
    /// One for each prompt.
    cancels: Vec<Cancel>,
    /// What was heard while the answer had no status yet.
    first: Option<Tagged>,
    queued: Duration,
    /// Of each reply that ended, by its number.
    summaries: Vec<Option<Summary>>,
    /// Replies that go on.
    left: u32,
}

impl Drop for Replies {
    fn drop(&mut self) {
        for cancel in &self.cancels {
            cancel.cancel();
        }
    }
}

impl Replies {
    /// Queues `orders`, one for each prompt, all for as many choices. Replies are numbered by prompt,
    /// then by choice.
    pub(crate) fn submit(
        state: &AppState,
        model: &ServedModel,
        orders: Vec<Order>,
    ) -> Result<Self, ApiError> {
        let service = model.service().ok_or_else(|| not_generative(model))?;
        let (sender, receiver) = unbounded_channel();
        let count: u32 = orders.iter().map(|order| order.choices).sum();
        let summaries = vec![None; count as usize];
        let mut replies = Self {
            receiver,
            cancels: Vec::new(),
            first: None,
            queued: Duration::ZERO,
            summaries,
            left: count,
        };
        let mut before = 0;
        for order in orders {
            let (id, sender, first) = (model.id.clone(), sender.clone(), before);
            let mut left = order.choices;
            before += order.choices;
            // A send fails when the client is gone: that cancels the generation.
            let sink = Box::new(move |choice, update| {
                left -= u32::from(matches!(update, Update::Done(_)));
                let heard = sender.send((first + choice, update)).is_ok();
                if left == 0 && !heard {
                    tracing::info!(model = id, status = 499, "the client left");
                }
                heard
            });
            // Those that were queued before one that is refused are cancelled.
            let cancel = service.submit(order, sink).map_err(|error| refused(&error));
            replies.cancels.push(cancel.inspect_err(|error| count_rejected(state, error))?);
        }
        Ok(replies)
    }

    /// Waits until a reply begins, or for `most`. After that the status of the answer is sent.
    ///
    /// # Errors
    /// The request failed before anything was said.
    pub(crate) async fn admitted(&mut self, most: Duration) -> Result<(), ApiError> {
        match tokio::time::timeout(most, self.receiver.recv()).await {
            Ok(Some((_, Update::Done(Err(error))))) => return Err(service_error(&error)),
            Ok(first) => self.first = first,
            Err(_) => {}
        }
        Ok(())
    }

    /// What comes next, with the number of its reply; `None` when all are done.
    ///
    /// # Errors
    /// One of them failed: nothing comes of the others.
    pub(crate) async fn next(&mut self) -> Result<Option<(u32, Part)>, ApiError> {
        while self.left > 0 {
            let update = match self.first.take() {
                Some(update) => Some(update),
                None => self.receiver.recv().await,
            };
            let Some((number, update)) = update else {
                return Err(ApiError::internal("The generation ended without a result."));
            };
            let part = match update {
                Update::Started(queued) => {
                    self.queued = self.queued.max(queued);
                    continue;
                }
                Update::Event(Event::PromptRead(_)) => continue,
                Update::Event(Event::Token { id, text, logprobs }) => {
                    Part::Token { id, text, logprobs }
                }
                Update::Event(Event::Text(text)) => Part::Text(text),
                Update::Done(Ok(summary)) => {
                    self.left -= 1;
                    self.summaries[number as usize] = Some(summary.clone());
                    Part::End(summary)
                }
                Update::Done(Err(error)) => return Err(service_error(&error)),
            };
            return Ok(Some((number, part)));
        }
        Ok(None)
    }

    /// Have all of them ended?
    pub(crate) fn are_done(&self) -> bool {
        self.left == 0
    }

    /// Figures of those that ended, by prompt.
    fn by_prompt(&self) -> Vec<Vec<Summary>> {
        let choices = self.summaries.len() / self.cancels.len().max(1);
        let prompts = self.summaries.chunks(choices.max(1));
        prompts.map(|replies| replies.iter().flatten().cloned().collect()).collect()
    }

    /// Token counts of all replies; `thought` of them are reasoning.
    pub(crate) fn usage(&self, thought: usize) -> Value {
        answer::usage(&self.by_prompt(), thought)
    }

    /// Puts into the last object of an answer what was measured, and what a client needs to repeat it.
    pub(crate) fn add_figures(&self, object: &mut Value, model: &ServedModel, seed: i64) {
        let summaries = self.by_prompt();
        object["timings"] = answer::timings(&summaries);
        object["trefoil"] = answer::trefoil(model, &summaries, self.queued, seed);
    }
}

/// 400 for a model that makes no text.
pub(crate) fn not_generative(model: &ServedModel) -> ApiError {
    let message = format!("The model '{}' makes embeddings and cannot chat.", model.id);
    ApiError::field("unsupported_value", "model", message)
}

/// The error of a request that found no place.
pub(crate) fn refused(error: &SubmitError) -> ApiError {
    match error {
        SubmitError::QueueFull { capacity } => ApiError::queue_full(*capacity),
        _ => ApiError::shutting_down(),
    }
}

/// Counts a request that was turned away.
pub(crate) fn count_rejected(state: &AppState, error: &ApiError) {
    let reason = match error.code {
        "context_length_exceeded" => "too_long",
        "queue_full" => "queue_full",
        _ if error.status.is_server_error() => return,
        _ => "invalid",
    };
    state.metrics.requests_rejected_total.with_label_values(&[reason]).inc();
}

fn service_error(error: &ServiceError) -> ApiError {
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
