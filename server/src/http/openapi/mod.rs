//! The API as an OpenAPI document: GET /openapi.json.
//!
//! Types in here say what goes over the wire and are made for nothing else: requests are read field by
//! field (`fields.rs`) and answers are put together as JSON, so that errors can name fields. Tests hold
//! the document against the table of routes and against real answers.
#![allow(dead_code, reason = "the document is made of the types' forms, no value of them is")]

mod chat;
mod completions;
mod embeddings;
mod info;
mod inspect;
mod responses;
mod shared;
mod tokens;

use std::sync::OnceLock;

use axum::http::header;
use axum::response::{IntoResponse, Response};
use utoipa::OpenApi;
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Components, Content, Ref, ResponseBuilder};

/// Every route with a function in this folder that documents it.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "trefoil",
        description = "Language models over every processor of one machine. Routes under /v1 are also \
                       there under /api/v1; /health, /tokenize, /detokenize and /apply-template are also \
                       there under /v1 and /api/v1. Fields of a request that are not known are ignored \
                       and named in the header x-trefoil-ignored; null is the same as absent.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    paths(
        chat::create,
        completions::create,
        responses::create,
        inspect::plan,
        inspect::what_if,
        inspect::policy,
        inspect::devices,
        inspect::system_info,
        inspect::stats,
        embeddings::create,
        info::stream,
        info::models,
        info::model,
        info::health,
        info::ready,
        info::metrics,
        info::props,
        info::slots,
        info::openapi,
        tokens::tokenize,
        tokens::detokenize,
        tokens::apply_template
    ),
    components(schemas(chat::ChatCompletionChunk, shared::ErrorAnswer))
)]
struct Document;

/// What every route may answer beside what it documents itself, by status.
const ANYWHERE: [(&str, &str); 3] = [
    ("401", "The key is missing or wrong (`invalid_api_key`)."),
    ("403", "Host or origin are not allowed (`host_not_allowed`, `origin_not_allowed`)."),
    ("500", "A fault of the server or of a device (`internal_error`, `device_error`)."),
];

/// What every route with a body may answer too.
const WITH_BODY: [(&str, &str); 5] = [
    ("400", "The body is not what the route takes; `param` names the field."),
    ("404", "No such model (`model_not_found`)."),
    ("408", "The body was not in in time (`request_timeout`)."),
    ("413", "The body is too large (`request_too_large`)."),
    ("415", "The body is not application/json (`unsupported_media_type`)."),
];

/// What routes that queue work may answer too.
const QUEUED: [(&str, &str); 3] = [
    ("429", "No place in the queue (`queue_full`, `queue_timeout`); see Retry-After."),
    ("503", "The server is shutting down (`shutting_down`)."),
    ("504", "It took longer than requests may (`deadline_exceeded`)."),
];

/// Tag of routes that queue work.
const GENERATION: &str = "generation";

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut item.get, &mut item.post].into_iter().flatten()
}

fn add_errors(operation: &mut Operation, errors: &[(&str, &str)]) {
    for (status, description) in errors {
        let content = Content::new(Some(Ref::from_schema_name("ErrorAnswer")));
        let response = ResponseBuilder::new()
            .description(*description)
            .content("application/json", content)
            .build();
        let responses = &mut operation.responses.responses;
        responses.entry((*status).to_owned()).or_insert(response.into());
    }
}

/// The document.
fn document() -> utoipa::openapi::OpenApi {
    let mut document = Document::openapi();
    for item in document.paths.paths.values_mut() {
        for operation in operations(item) {
            add_errors(operation, &ANYWHERE);
            if operation.request_body.is_some() {
                add_errors(operation, &WITH_BODY);
            }
            if operation.tags.iter().flatten().any(|tag| tag == GENERATION) {
                add_errors(operation, &QUEUED);
            }
        }
    }
    let key = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
    document.components.get_or_insert_with(Components::new).add_security_scheme("key", key);
    // Without a configured key none is needed.
    let none = SecurityRequirement::default();
    document.security = Some(vec![none, SecurityRequirement::new::<_, _, &str>("key", [])]);
    document
}

/// GET /openapi.json
pub(crate) async fn serve() -> Response {
    static TEXT: OnceLock<String> = OnceLock::new();
    let text = TEXT.get_or_init(|| document().to_json().unwrap_or_default());
    ([(header::CONTENT_TYPE, "application/json")], text.as_str()).into_response()
}

#[cfg(test)]
mod tests;
