//! Routes that tell: models, health, metrics, settings.

use serde::Serialize;
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use super::embeddings::ListObject;
use super::shared::ErrorAnswer;

#[derive(Serialize, ToSchema)]
pub(super) struct Models {
    object: ListObject,
    /// By id.
    data: Vec<Model>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct Model {
    id: String,
    object: ModelObject,
    /// Seconds since 1970.
    created: u64,
    owned_by: String,
    trefoil: ModelFacts,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ModelObject {
    Model,
}

#[derive(Serialize, ToSchema)]
struct ModelFacts {
    state: ModelState,
    /// `gguf`, `safetensors` or `onnx`.
    format: String,
    quantization: String,
    parameters: u64,
    context_length: u64,
    max_context_length: u64,
    size_bytes: u64,
    capabilities: Vec<String>,
    plan_version: u64,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ModelState {
    Unloaded,
    Loading,
    Loaded,
    Failed,
}

#[derive(Serialize, ToSchema)]
pub(super) struct Health {
    status: String,
    version: String,
    uptime_seconds: f64,
    model_loaded: String,
    all_models_loaded: Vec<LoadedModel>,
}

#[derive(Serialize, ToSchema)]
struct LoadedModel {
    model_name: String,
    r#type: String,
    /// Kinds of devices, with spaces between.
    device: String,
    /// Seconds since 1970.
    last_use: u64,
}

#[derive(Serialize, ToSchema)]
pub(super) struct Ready {
    status: String,
}

#[derive(Serialize, ToSchema)]
pub(super) struct Props {
    default_generation_settings: GenerationSettings,
    /// Sequences that run together.
    total_slots: u64,
    model_alias: String,
    chat_template: String,
    #[schema(required)]
    bos_token: Option<String>,
    #[schema(required)]
    eos_token: Option<String>,
    modalities: Modalities,
    build_info: String,
}

#[derive(Serialize, ToSchema)]
struct GenerationSettings {
    n_ctx: u64,
    /// Sampling where a request does not say otherwise.
    params: std::collections::BTreeMap<String, Value>,
}

#[derive(Serialize, ToSchema)]
struct Modalities {
    vision: bool,
    audio: bool,
}

/// A place for a sequence.
#[derive(Serialize, ToSchema)]
pub(super) struct Slot {
    id: u64,
    is_processing: bool,
    n_ctx: u64,
    n_decoded: u64,
}

#[derive(Serialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Which {
    /// Id or alias of a model that makes replies; the default one if absent.
    model: Option<String>,
}

/// The models that are served.
#[utoipa::path(
    get,
    path = "/v1/models",
    tag = "models",
    operation_id = "list_models",
    responses((status = 200, description = "All models.", body = Models))
)]
pub(super) fn models() {}

/// One of the models.
#[utoipa::path(
    get,
    path = "/v1/models/{id}",
    tag = "models",
    operation_id = "retrieve_model",
    params(("id" = String, Path, description = "Id, alias or `default`; may hold / and :.")),
    responses(
        (status = 200, description = "The model.", body = Model),
        (status = 404, description = "No such model (`model_not_found`).", body = ErrorAnswer)
    )
)]
pub(super) fn model() {}

/// Is the server alive?
#[utoipa::path(
    get,
    path = "/health",
    tag = "server",
    operation_id = "health",
    responses((status = 200, description = "It is.", body = Health))
)]
pub(super) fn health() {}

/// Can requests be sent?
#[utoipa::path(
    get,
    path = "/ready",
    tag = "server",
    operation_id = "ready",
    responses((status = 200, description = "All models are loaded.", body = Ready))
)]
pub(super) fn ready() {}

/// Figures for Prometheus, unless `server.metrics` is false.
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "server",
    operation_id = "metrics",
    responses((
        status = 200,
        description = "Prometheus text, version 0.0.4.",
        content((String = "text/plain"))
    ))
)]
pub(super) fn metrics() {}

/// Opens a WebSocket over which many streamed answers go.
///
/// A client sends text frames `{"id","op","body"}`: `op` is `chat.completions` or `completions` with the
/// body of that route, or `cancel`. The server sends `{"id","event","data"}`: `chunk` with an object of a
/// stream, then `done`, `cancelled`, or `error` with `status` and `error`. The subprotocol is `trefoil.v1`;
/// `trefoil.key.KEY` beside it carries the key in base64url.
#[utoipa::path(
    get,
    path = "/v1/stream",
    tag = "generation",
    operation_id = "stream",
    responses(
        (status = 101, description = "The connection is a WebSocket now."),
        (status = 400, description = "The request opens no WebSocket.", body = ErrorAnswer)
    )
)]
pub(super) fn stream() {}

/// Settings of a model, with the names of llama.cpp's server.
#[utoipa::path(
    get,
    path = "/props",
    tag = "models",
    operation_id = "props",
    params(Which),
    responses(
        (status = 200, description = "The settings.", body = Props),
        (status = 400, description = "The model makes no replies.", body = ErrorAnswer),
        (status = 404, description = "No such model (`model_not_found`).", body = ErrorAnswer)
    )
)]
pub(super) fn props() {}

/// Places of a model's sequences, with the names of llama.cpp's server.
#[utoipa::path(
    get,
    path = "/slots",
    tag = "models",
    operation_id = "slots",
    params(Which),
    responses(
        (status = 200, description = "Those that are taken come first.", body = Vec<Slot>),
        (status = 400, description = "The model makes no replies.", body = ErrorAnswer),
        (status = 404, description = "No such model (`model_not_found`).", body = ErrorAnswer)
    )
)]
pub(super) fn slots() {}

/// This document.
#[utoipa::path(
    get,
    path = "/openapi.json",
    tag = "server",
    operation_id = "openapi",
    responses((status = 200, description = "OpenAPI 3.1.", body = std::collections::BTreeMap<String, Value>))
)]
pub(super) fn openapi() {}
