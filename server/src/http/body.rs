//! What all routes that take a body do before and after the work: read it, name what was ignored.

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;

use super::error::ApiError;
use super::info::unknown_model;
use super::state::{AppState, ServedModel};

/// Reads a body within the limits of size and time.
pub(crate) async fn read_body(state: &AppState, body: Body) -> Result<Bytes, ApiError> {
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

/// The model of a name, or 404.
pub(crate) fn find<'a>(state: &'a AppState, name: &str) -> Result<&'a ServedModel, ApiError> {
    state.model(name).ok_or_else(|| unknown_model(state, name))
}

/// Names the fields of a request that were ignored in a header of its answer.
pub(crate) fn name_ignored(response: &mut Response, names: &[String]) {
    if let Some(ignored) = ignored_header(names) {
        response.headers_mut().insert("x-trefoil-ignored", ignored);
    }
}

/// The names of ignored fields as a header's value: escaped where a header could not hold them, and
/// cut where they are many.
fn ignored_header(names: &[String]) -> Option<HeaderValue> {
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
