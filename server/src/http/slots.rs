//! What clients of llama.cpp's server ask for: /props and /slots.

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use serde_json::{Value, json};
use trefoil_engine::service::Service;
use trefoil_engine::text::sampling::SamplingParams;

use super::body::find;
use super::error::ApiError;
use super::replies::not_generative;
use super::state::{AppState, ServedModel};

/// `?model=`; without it the default one is meant.
#[derive(Debug, serde::Deserialize)]
pub(crate) struct Which {
    model: Option<String>,
}

/// The query of a request, if it can be read.
type Asked = Result<Query<Which>, QueryRejection>;

/// The model that is meant, with what makes its replies.
fn service(state: &AppState, asked: Asked) -> Result<(&ServedModel, &Service), ApiError> {
    let Query(which) = asked.map_err(|error| {
        let message = format!("'model': expected one name in the query: {}.", error.body_text());
        ApiError::field("invalid_value", "model", message)
    })?;
    let model = find(state, which.model.as_deref().unwrap_or("default"))?;
    Ok((model, model.service().ok_or_else(|| not_generative(model))?))
}

/// Sampling where a request does not say otherwise.
fn settings(params: &SamplingParams) -> Value {
    json!({
        "temperature": params.temperature,
        "top_k": params.top_k,
        "top_p": params.top_p,
        "min_p": params.min_p,
        "typical_p": params.typical_p,
        "repeat_penalty": params.repeat_penalty,
        "repeat_last_n": params.repeat_last_n,
        "frequency_penalty": params.frequency_penalty,
        "presence_penalty": params.presence_penalty,
        "max_tokens": -1,
        "stop": [],
    })
}

/// GET /props
pub(crate) async fn props(
    State(state): State<Arc<AppState>>,
    asked: Asked,
) -> Result<axum::Json<Value>, ApiError> {
    let (model, service) = service(&state, asked)?;
    let text = &model.text;
    Ok(axum::Json(json!({
        "default_generation_settings": {
            "n_ctx": model.context,
            "params": settings(&text.sampling.params()),
        },
        "total_slots": service.sequences(),
        "model_alias": model.id,
        "chat_template": text.template.source(),
        "bos_token": text.tokenizer.bos().map(|id| text.tokenizer.token_text(id)),
        "eos_token": text.tokenizer.eos().map(|id| text.tokenizer.token_text(id)),
        "modalities": {"vision": false, "audio": false},
        "build_info": concat!("trefoil ", env!("CARGO_PKG_VERSION")),
    })))
}

/// GET /slots: a place for each sequence that can run, those that do first.
pub(crate) async fn slots(
    State(state): State<Arc<AppState>>,
    asked: Asked,
) -> Result<axum::Json<Value>, ApiError> {
    let (model, service) = service(&state, asked)?;
    let decoded = service.load().decoded();
    let slot = |id: usize| {
        json!({
            "id": id,
            "is_processing": id < decoded.len(),
            "n_ctx": model.context,
            "n_decoded": decoded.get(id).copied().unwrap_or(0),
        })
    };
    Ok(axum::Json((0..service.sequences()).map(slot).collect()))
}
