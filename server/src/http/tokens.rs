//! Text to tokens and back: /tokenize, /detokenize, /apply-template.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use trefoil_engine::text::{DecodeOptions, EncodeOptions, Tokenizer};

use super::body::{find, name_ignored, read_body};
use super::chat;
use super::chat_request::ChatRequest;
use super::error::ApiError;
use super::fields::Fields;
use super::replies::not_generative;
use super::request_fields;
use super::state::{AppState, ServedModel};
use super::text_inputs::{check_ids, ids};

/// The model that a body names; without a name the default one.
fn named<'a>(state: &'a AppState, fields: &mut Fields) -> Result<&'a ServedModel, ApiError> {
    find(state, fields.string("model")?.as_deref().unwrap_or("default"))
}

/// An object as the answer, with a header that names fields that were ignored.
fn answered(object: Value, ignored: &[String]) -> Response {
    let mut response = axum::Json(object).into_response();
    name_ignored(&mut response, ignored);
    response
}

/// A token with its text; with its bytes where they are no text.
fn piece(tokenizer: &Tokenizer, id: u32) -> Value {
    let bytes = tokenizer.token_bytes(id);
    let piece = std::str::from_utf8(bytes).map_or_else(|_| json!(bytes), |text| json!(text));
    json!({"id": id, "piece": piece})
}

/// What is split, with the fields that were ignored.
struct Split<'a> {
    model: &'a ServedModel,
    ids: Vec<u32>,
    ignored: Vec<String>,
}

/// The tokens of a text: `content` as it is, or `prompt` with what the model puts around texts.
fn split_text<'a>(state: &'a AppState, mut fields: Fields) -> Result<Split<'a>, ApiError> {
    let model = named(state, &mut fields)?;
    let content = fields.string("content")?;
    let prompt = fields.string("prompt")?;
    let around_content = fields.bool("add_special")?.unwrap_or(false);
    let around_prompt = fields.bool("add_special_tokens")?.unwrap_or(true);
    let parse_special = fields.bool("parse_special")?.unwrap_or(true);
    let (text, add_special) = match (content, prompt) {
        (Some(text), None) => (text, around_content),
        (None, Some(text)) => (text, around_prompt),
        (Some(_), Some(_)) => {
            let expected = "one of content, prompt and messages";
            return Err(fields.invalid("prompt", expected, "content too"));
        }
        (None, None) => return Err(fields.missing("content")),
    };
    let ignored = request_fields::rest(&mut fields, &[], &[], state.options.strict_fields)?;
    let ids = model.text.tokenizer.encode(&text, EncodeOptions { add_special, parse_special });
    Ok(Split { model, ids, ignored })
}

/// The tokens that a chat is read as.
fn split_chat<'a>(state: &'a AppState, body: &[u8]) -> Result<Split<'a>, ApiError> {
    let request = chat_body(state, body)?;
    let model = find(state, &request.model)?;
    let ids = chat::prompt(model, &request)?.1;
    Ok(Split { model, ids, ignored: request.ignored })
}

/// A chat's body, in which the model may be left out.
fn chat_body(state: &AppState, body: &[u8]) -> Result<ChatRequest, ApiError> {
    let mut fields = Fields::parse(body)?;
    fields.take("with_pieces");
    fields.bool("add_special_tokens")?;
    if fields.bool("add_generation_prompt")? == Some(false) {
        let message = "'add_generation_prompt': only true is supported; leave it out.";
        return Err(ApiError::field("unsupported_value", "add_generation_prompt", message));
    }
    let mut body = fields.rest();
    body.entry("model").or_insert(json!("default"));
    let (body, options) = (Value::Object(body).to_string(), &state.options);
    ChatRequest::read(body.as_bytes(), options.max_n, options.strict_fields)
}

/// POST /tokenize
pub(crate) async fn tokenize(
    State(state): State<Arc<AppState>>,
    body: Body,
) -> Result<Response, ApiError> {
    let body = read_body(&state, body).await?;
    let mut fields = Fields::parse(&body)?;
    let with_pieces = fields.bool("with_pieces")?.unwrap_or(false);
    let Split { model, ids, ignored } = match fields.has("messages") {
        true => split_chat(&state, &body)?,
        false => split_text(&state, fields)?,
    };
    let tokens = match with_pieces {
        true => ids.iter().map(|&id| piece(&model.text.tokenizer, id)).collect(),
        false => json!(ids),
    };
    let object = json!({"tokens": tokens, "count": ids.len(), "max_model_len": model.context});
    Ok(answered(object, &ignored))
}

/// POST /detokenize
pub(crate) async fn detokenize(
    State(state): State<Arc<AppState>>,
    body: Body,
) -> Result<Response, ApiError> {
    let body = read_body(&state, body).await?;
    let mut fields = Fields::parse(&body)?;
    let model = named(&state, &mut fields)?;
    let list = fields.array("tokens")?.ok_or_else(|| fields.missing("tokens"))?;
    let Some(tokens) = ids(&list) else {
        let message = "'tokens': expected an array of token ids.";
        return Err(ApiError::field("invalid_type", "tokens", message));
    };
    check_ids(model, "tokens", &tokens)?;
    let ignored = request_fields::rest(&mut fields, &[], &[], state.options.strict_fields)?;
    let text = model.text.tokenizer.decode(&tokens, DecodeOptions { special: true });
    Ok(answered(json!({"content": text, "prompt": text}), &ignored))
}

/// POST /apply-template
pub(crate) async fn apply_template(
    State(state): State<Arc<AppState>>,
    body: Body,
) -> Result<Response, ApiError> {
    let body = read_body(&state, body).await?;
    let request = chat_body(&state, &body)?;
    let model = find(&state, &request.model)?;
    if !model.generative {
        return Err(not_generative(model));
    }
    let (prompt, tokens) = chat::prompt(model, &request)?;
    Ok(answered(json!({"prompt": prompt, "tokens": tokens}), &request.ignored))
}
