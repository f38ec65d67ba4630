//! Routes that tell: models, health, readiness, metrics.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use trefoil_devices_api::DeviceKind;

use super::error::ApiError;
use super::state::{AppState, ServedModel};

fn describe(model: &ServedModel) -> Value {
    json!({
        "id": model.id,
        "object": "model",
        "created": model.created,
        "owned_by": "trefoil",
        "trefoil": {
            "state": "loaded",
            "format": model.format,
            "quantization": model.quantization,
            "parameters": model.parameters,
            "context_length": model.context,
            "max_context_length": model.max_context,
            "size_bytes": model.bytes,
            "capabilities": if model.generative { vec!["chat"] } else { vec!["embeddings"] },
            "plan_version": model.plan_version,
        },
    })
}

/// GET /v1/models
pub(crate) async fn models(State(state): State<Arc<AppState>>) -> axum::Json<Value> {
    let data: Vec<Value> = state.models.iter().map(describe).collect();
    axum::Json(json!({"object": "list", "data": data}))
}

/// GET /v1/models/{id}
pub(crate) async fn model(
    State(state): State<Arc<AppState>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<axum::Json<Value>, ApiError> {
    // Percent signs may spell what is no text.
    let Ok(Path(id)) = id else { return Err(unknown_model(&state, "\u{fffd}")) };
    match state.model(&id) {
        Some(model) => Ok(axum::Json(describe(model))),
        None => Err(unknown_model(&state, &id)),
    }
}

/// 404 with the names most like the one asked for.
pub(crate) fn unknown_model(state: &AppState, id: &str) -> ApiError {
    let mut near: Vec<&str> = state.models.iter().map(|model| model.id.as_str()).collect();
    let closest = trefoil_scheduler::nearest(id, near.iter().copied());
    near.sort_by_key(|name| (Some(*name) != closest, *name));
    near.truncate(5);
    let message = format!("The model '{id}' is not here; here are: {}.", near.join(", "));
    let error = ApiError::new(StatusCode::NOT_FOUND, "model_not_found", message);
    ApiError { param: Some("model".to_owned()), ..error }
}

/// Sorts of devices, as Lemonade's clients read them: `gpu npu`.
fn kinds(state: &AppState, devices: &[String]) -> String {
    let kind = |name: &String| {
        let found = state.devices.iter().find(|device| device.info().name == *name);
        found.map_or_else(
            || name.clone(),
            |device| match device.info().kind {
                DeviceKind::Cpu => "cpu".to_owned(),
                DeviceKind::Gpu => "gpu".to_owned(),
                DeviceKind::Npu => "npu".to_owned(),
                DeviceKind::Reference | DeviceKind::Simulated => name.clone(),
            },
        )
    };
    let kinds: std::collections::BTreeSet<String> = devices.iter().map(kind).collect();
    kinds.into_iter().collect::<Vec<_>>().join(" ")
}

/// GET /health
pub(crate) async fn health(State(state): State<Arc<AppState>>) -> axum::Json<Value> {
    let loaded: Vec<Value> = state
        .models
        .iter()
        .map(|model| {
            let mut devices = model.prefill_devices.clone();
            devices.extend(model.decode_devices.iter().cloned());
            json!({
                "model_name": model.id,
                "type": if model.generative { "llm" } else { "embedding" },
                "device": kinds(&state, &devices),
                "last_use": model.history.last_use().unwrap_or(model.created as f64) as u64,
            })
        })
        .collect();
    axum::Json(json!({
        "status": "ok",
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_seconds": state.started.elapsed().as_secs_f64(),
        "model_loaded": state.default_model,
        "all_models_loaded": loaded,
    }))
}

/// GET /ready: models are loaded before the server listens.
pub(crate) async fn ready() -> axum::Json<Value> {
    axum::Json(json!({"status": "ready"}))
}

/// GET /metrics
pub(crate) async fn metrics(State(state): State<Arc<AppState>>) -> Response {
    state.refresh_metrics();
    let content_type = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (content_type, state.metrics.render()).into_response()
}
