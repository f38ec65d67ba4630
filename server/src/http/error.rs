//! The one place that makes HTTP errors: `{"error":{"message","type","param","code"}}`.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// An error as clients see it (API.md, "Errors").
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) code: &'static str,
    pub(crate) message: String,
    pub(crate) param: Option<String>,
    /// Seconds after which a client may try again.
    pub(crate) retry_after: Option<u32>,
    /// Would a second try end the same way, although the status says otherwise?
    pub(crate) hopeless: bool,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { status, code, message, param: None, retry_after: None, hopeless: false }
    }

    /// 400 about one field of the body.
    pub(crate) fn field(code: &'static str, param: &str, message: impl Into<String>) -> Self {
        let error = Self::new(StatusCode::BAD_REQUEST, code, message);
        Self { param: Some(param.to_owned()), ..error }
    }

    /// A known field that would change the answer if it were dropped.
    pub(crate) fn unsupported(param: &str) -> Self {
        let message = format!("'{param}' is not supported by this server; leave it out");
        Self::field("unsupported_parameter", param, message)
    }

    /// The messages and the reply to them hold more tokens than the model can.
    pub(crate) fn context_length(context: usize, prompt: usize, completion: usize) -> Self {
        Self::context_length_of("messages", context, prompt, completion)
    }

    /// What `field` brings and the reply to it hold more tokens than the model can.
    pub(crate) fn context_length_of(
        field: &str,
        context: usize,
        prompt: usize,
        completion: usize,
    ) -> Self {
        let message = format!(
            "This model's maximum context length is {context} tokens. However, you requested {} \
             tokens ({prompt} in the {field}, {completion} in the completion).",
            prompt.saturating_add(completion)
        );
        Self::field("context_length_exceeded", field, message)
    }

    pub(crate) fn queue_full(capacity: usize) -> Self {
        let message =
            format!("All {capacity} places in the queue are taken; try again in a moment.");
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", message);
        Self { retry_after: Some(1), ..error }
    }

    /// 429: no place came free in time.
    pub(crate) fn queue_timeout(limit: Duration) -> Self {
        let message = format!("No place came free within {limit:?}; try again in a moment.");
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, "queue_timeout", message);
        Self { retry_after: Some(5), ..error }
    }

    /// 504: the request took longer than the server lets any.
    pub(crate) fn deadline(limit: Duration) -> Self {
        let message = format!("The request was not done within {limit:?}; ask for fewer tokens.");
        Self::new(StatusCode::GATEWAY_TIMEOUT, "deadline_exceeded", message)
    }

    /// 503: no more requests are taken.
    pub(crate) fn shutting_down() -> Self {
        let message = "The server is shutting down.";
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "shutting_down", message);
        Self { retry_after: Some(1), ..error }
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message)
    }

    fn kind(&self) -> &'static str {
        match self.status.as_u16() {
            409 => "conflict_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// The body that all errors share.
    pub(crate) fn body(&self) -> serde_json::Value {
        json!({"error": {
            "message": self.message,
            "type": self.kind(),
            "param": self.param,
            "code": self.code,
        }})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(self.body())).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.hopeless {
            headers.insert("x-should-retry", HeaderValue::from_static("false"));
        }
        response
    }
}
