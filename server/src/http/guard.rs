//! What every request passes: request id, Host and Origin, key, content type, size.

use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::error::ApiError;
use super::routes::takes_body;
use super::state::{AppState, ServerOptions};
use crate::page;

const REQUEST_ID: &str = "x-request-id";

/// The id of a request: the client's if it is of the right form, else a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let usable = |value: &&HeaderValue| {
        let bytes = value.as_bytes();
        let allowed = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
        (1..=64).contains(&bytes.len()) && bytes.iter().all(allowed)
    };
    match headers.get(REQUEST_ID).filter(usable) {
        Some(given) => given.clone(),
        None => HeaderValue::from_str(&super::id::new("req_")).expect("ids are ASCII"),
    }
}

/// Host name of an authority, without port and brackets.
fn host_name(authority: &str) -> Option<String> {
    let authority: Authority = authority.parse().ok()?;
    Some(authority.host().trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase())
}

fn is_local(host: &str) -> bool {
    host == "localhost"
        || host.ends_with(".localhost")
        || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn check_host(
    headers: &HeaderMap,
    uri_host: Option<&str>,
    options: &ServerOptions,
) -> Result<(), ApiError> {
    let given = headers.get(header::HOST).and_then(|value| value.to_str().ok()).or(uri_host);
    let host = given.and_then(host_name);
    let allowed = host.as_deref().is_some_and(|host| {
        is_local(host)
            || options.allowed_hosts.iter().any(|other| other.eq_ignore_ascii_case(host))
            || options.host.eq_ignore_ascii_case(host)
    });
    if allowed {
        return Ok(());
    }
    let got = given.unwrap_or("none");
    let message = format!(
        "The Host header must be localhost or a loopback address, got {got:?}; add other names to \
         allowed_hosts."
    );
    Err(ApiError::new(StatusCode::FORBIDDEN, "host_not_allowed", message))
}

/// Is the origin one that pages may call from? `host` is that of the request, which was checked: pages
/// of this server may.
fn origin_allowed(origin: &str, host: Option<&str>, options: &ServerOptions) -> bool {
    let authority = origin.split_once("://").map(|(_, authority)| authority);
    let local = authority.and_then(host_name).is_some_and(|host| is_local(&host));
    let own =
        authority.zip(host).is_some_and(|(authority, host)| authority.eq_ignore_ascii_case(host));
    local || own || options.allowed_origins.iter().any(|other| other == origin)
}

fn check_origin(headers: &HeaderMap, options: &ServerOptions) -> Result<(), ApiError> {
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let host = headers.get(header::HOST).and_then(|value| value.to_str().ok());
    if origin.to_str().is_ok_and(|origin| origin_allowed(origin, host, options)) {
        return Ok(());
    }
    let message = format!(
        "Requests from pages of {origin:?} are not allowed; add the origin to allowed_origins."
    );
    Err(ApiError::new(StatusCode::FORBIDDEN, "origin_not_allowed", message))
}

/// Compares without telling by its duration how much was equal.
fn same_secret(a: &[u8], b: &[u8]) -> bool {
    // Fingerprints have one length whatever the secrets': nothing leaks but equality.
    blake3::hash(a) == blake3::hash(b)
}

/// The key that a page put among the subprotocols of a WebSocket, where it can set no other header.
fn protocol_key(headers: &HeaderMap) -> Option<Vec<u8>> {
    let lists = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
    let mut names = lists.filter_map(|list| list.to_str().ok()).flat_map(|list| list.split(','));
    let key = names.find_map(|name| name.trim().strip_prefix("trefoil.key."))?;
    URL_SAFE_NO_PAD.decode(key.trim_end_matches('=')).ok()
}

fn check_key(headers: &HeaderMap, path: &str, options: &ServerOptions) -> Result<(), ApiError> {
    let Some(key) = &options.api_key else { return Ok(()) };
    if matches!(path, "/health" | "/ready") || page::is_page(path) {
        return Ok(());
    }
    let given = headers.get(header::AUTHORIZATION).and_then(|value| {
        let (scheme, key) = value.as_bytes().split_at_checked(b"Bearer ".len())?;
        scheme.eq_ignore_ascii_case(b"Bearer ").then_some(key)
    });
    if given.is_some_and(|given| same_secret(given, key.as_bytes())) {
        return Ok(());
    }
    if path.ends_with("/v1/stream")
        && protocol_key(headers).is_some_and(|given| same_secret(&given, key.as_bytes()))
    {
        return Ok(());
    }
    let message = "A valid key is needed: send it as 'Authorization: Bearer KEY'.";
    Err(ApiError::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message))
}

fn check_content_type(request: &Request) -> Result<(), ApiError> {
    // Where a route takes no body, what is wrong is the method: the router says so.
    let route = request.extensions().get::<MatchedPath>();
    if request.method() != Method::POST || !route.is_some_and(|path| takes_body(path.as_str())) {
        return Ok(());
    }
    let given = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media = given.and_then(|given| given.split(';').next()).map(str::trim);
    if media.is_some_and(|media| media.eq_ignore_ascii_case("application/json")) {
        return Ok(());
    }
    let message = format!(
        "Expected the header 'Content-Type: application/json', got {}.",
        given.unwrap_or("none")
    );
    Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message))
}

/// Is it a browser's question whether it may call?
fn is_preflight(request: &Request) -> bool {
    request.method() == Method::OPTIONS && request.headers().contains_key(header::ORIGIN)
}

/// All checks that need no body, in the order in which their errors win.
fn check(request: &Request, state: &AppState) -> Result<(), ApiError> {
    let (headers, options) = (request.headers(), &state.options);
    check_host(headers, request.uri().host(), options)?;
    check_origin(headers, options)?;
    if is_preflight(request) {
        // Browsers send no key with it, and the answer tells nothing.
        return Ok(());
    }
    check_key(headers, request.uri().path(), options).inspect_err(|_| {
        state.metrics.requests_rejected_total.with_label_values(&["auth"]).inc();
    })?;
    check_content_type(request)
}

/// A method's name in metrics. Clients may invent methods; labels must stay few.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::OPTIONS => "OPTIONS",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}

/// Layer around all routes.
pub(crate) async fn guard(
    State(state): State<Arc<AppState>>,
    request: Request,
    next: Next,
) -> Response {
    let started = std::time::Instant::now();
    let id = request_id(request.headers());
    let method = request.method().clone();
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("other".to_owned(), |path| path.as_str().to_owned());
    let origin = request.headers().get(header::ORIGIN).cloned();
    let host = request.headers().get(header::HOST).cloned();
    let host = host.as_ref().and_then(|value| value.to_str().ok());
    let mut response = match check(&request, &state) {
        Err(error) => error.into_response(),
        Ok(()) if is_preflight(&request) => preflight(),
        Ok(()) => next.run(request).await,
    };
    let headers = response.headers_mut();
    headers.insert(REQUEST_ID, id.clone());
    if let Some(origin) = origin
        && origin.to_str().is_ok_and(|origin| origin_allowed(origin, host, &state.options))
    {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::VARY, HeaderValue::from_static("Origin"));
    }
    state.metrics.http(
        &route,
        method_label(&method),
        response.status().as_u16(),
        started.elapsed(),
    );
    tracing::info!(
        request = id.to_str().unwrap_or_default(),
        %method,
        route,
        status = response.status().as_u16(),
        ms = started.elapsed().as_millis() as u64,
        "request"
    );
    response
}

/// Answer to a browser's question whether it may call; the origin was checked.
fn preflight() -> Response {
    let headers = [
        (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST, OPTIONS"),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, "authorization, content-type, x-request-id"),
        (header::ACCESS_CONTROL_MAX_AGE, "600"),
    ];
    (StatusCode::NO_CONTENT, headers).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_that_rebind_are_refused() {
        let options =
            ServerOptions { allowed_hosts: vec!["box.lan".to_owned()], ..ServerOptions::default() };
        let check = |host: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_static(host));
            check_host(&headers, None, &options).is_ok()
        };
        for good in ["localhost:9378", "127.0.0.1", "[::1]:9378", "BOX.lan:1", "a.localhost"] {
            assert!(check(good), "{good}");
        }
        for bad in ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:9378", ""] {
            assert!(!check(bad), "{bad}");
        }
        assert!(check_host(&HeaderMap::new(), None, &options).is_err());
    }

    #[test]
    fn origins_are_local_or_named() {
        let options = ServerOptions {
            allowed_origins: vec!["https://app.example".to_owned()],
            ..ServerOptions::default()
        };
        for good in ["http://localhost:3000", "http://127.0.0.1", "https://app.example"] {
            assert!(origin_allowed(good, None, &options), "{good}");
        }
        for bad in
            ["https://evil.example", "null", "https://app.example.evil", "http://localhost.evil"]
        {
            assert!(!origin_allowed(bad, Some("box.lan:9378"), &options), "{bad}");
        }
        // The page of a server that others reach under a name calls it under that name.
        assert!(origin_allowed("http://box.lan:9378", Some("box.lan:9378"), &options));
        assert!(!origin_allowed("http://box.lan:80", Some("box.lan:9378"), &options));
    }
}
