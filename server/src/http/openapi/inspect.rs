//! Routes that tell what runs where: plans, policies, devices, figures.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::embeddings::ListObject;
use super::info::Which;
use super::shared::ErrorAnswer;

/// A plan; `docs/plan.schema.json` has the form of its parts.
#[derive(Serialize, ToSchema)]
pub(super) struct PlanAnswer {
    model: String,
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct PlanRequest {
    /// Id or alias of a model; the default one if absent.
    #[schema(min_length = 1, max_length = 256)]
    model: Option<String>,
    /// A policy's name, or keys of `[policy]` over the one in force.
    policy: Option<Value>,
    /// The request that is planned for.
    phase_shape: Option<Value>,
    /// Name of a shipped machine; this one if absent.
    profile: Option<String>,
}

/// An object with the fields that docs/http.md names.
#[derive(Serialize, ToSchema)]
pub(super) struct Told {
    #[serde(flatten)]
    fields: BTreeMap<String, Value>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct Devices {
    object: ListObject,
    data: Vec<DeviceAnswer>,
    /// Why others are not used, by name.
    refused: Value,
}

#[derive(Serialize, ToSchema)]
struct DeviceAnswer {
    /// `cpu0`, `gpu0`, `npu0`.
    id: String,
    product: String,
    driver: String,
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

/// The plan in force, and what its segments took.
#[utoipa::path(
    get,
    path = "/v1/plan",
    tag = "placement",
    operation_id = "plan",
    params(Which),
    responses(
        (status = 200, description = "The plan.", body = PlanAnswer),
        (status = 400, description = "The query is not understood.", body = ErrorAnswer),
        (status = 404, description = "No such model (`model_not_found`).", body = ErrorAnswer)
    )
)]
pub(super) fn plan() {}

/// The plan under another policy, for another request or machine; changes nothing.
#[utoipa::path(
    post,
    path = "/v1/plan",
    tag = "placement",
    operation_id = "what_if",
    request_body(
        content = PlanRequest,
        example = json!({"model": "default", "policy": "latency", "profile": "strix-point"})
    ),
    responses(
        (status = 200, description = "The plan.", body = PlanAnswer),
        (status = 409, description = "What devices cost is not known (`costs_unknown`).", body = ErrorAnswer),
        (status = 503, description = "The server is shutting down.", body = ErrorAnswer)
    )
)]
pub(super) fn what_if() {}

/// What the plan was made for.
#[utoipa::path(
    get,
    path = "/v1/policy",
    tag = "placement",
    operation_id = "policy",
    params(Which),
    responses(
        (status = 200, description = "The policy in force, names of others.", body = Told),
        (status = 400, description = "The query is not understood.", body = ErrorAnswer),
        (status = 404, description = "No such model (`model_not_found`).", body = ErrorAnswer)
    )
)]
pub(super) fn policy() {}

/// Devices with live readings.
#[utoipa::path(
    get,
    path = "/v1/devices",
    tag = "placement",
    operation_id = "devices",
    responses((status = 200, description = "All devices that may run models.", body = Devices))
)]
pub(super) fn devices() {}

/// The machine, with Lemonade's field names.
#[utoipa::path(
    get,
    path = "/v1/system-info",
    tag = "server",
    operation_id = "system_info",
    responses((status = 200, description = "The machine.", body = Told))
)]
pub(super) fn system_info() {}

/// Figures of the last request with Lemonade's field names, sums, load, recent requests.
#[utoipa::path(
    get,
    path = "/v1/stats",
    tag = "server",
    operation_id = "stats",
    responses((status = 200, description = "The figures.", body = Told))
)]
pub(super) fn stats() {}
