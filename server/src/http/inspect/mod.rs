//! Routes that let people see what happens: plans, devices, policies, figures of what was served.

mod devices;
mod metrics;
mod placement;
mod plan;
mod stats;
mod what_if;

use std::sync::Arc;

use axum::extract::{Query, State};
use serde::Deserialize;
use serde_json::{Value, json};
use trefoil_scheduler::profile::shipped_names;

use super::error::ApiError;
use super::info::unknown_model;
use super::state::{AppState, ServedModel};
pub(crate) use devices::{devices, system_info};
pub(crate) use metrics::LastLook;
pub(crate) use plan::plan;
pub(crate) use stats::stats;
pub(crate) use what_if::what_if;

/// `?model=`
#[derive(Debug, Deserialize)]
pub(crate) struct OfModel {
    model: Option<String>,
}

impl OfModel {
    /// The model that is meant: the default one where none is named.
    fn find<'a>(&self, state: &'a AppState) -> Result<&'a ServedModel, ApiError> {
        let name = self.model.as_deref().unwrap_or("default");
        state.model(name).ok_or_else(|| unknown_model(state, name))
    }
}

/// GET /v1/policy: what the plan of a model was made for, and what others there are.
pub(crate) async fn policy(
    State(state): State<Arc<AppState>>,
    Query(of): Query<OfModel>,
) -> Result<axum::Json<Value>, ApiError> {
    let model = of.find(&state)?;
    let resolved = &model.policy;
    Ok(axum::Json(json!({
        "object": "policy",
        "model": model.id,
        "name": resolved.name,
        "objective": resolved.policy.objective.name(),
        "policy": resolved.policy,
        "origins": resolved.origins,
        "known": state.config.known_policies(),
        "profiles": shipped_names().collect::<Vec<_>>(),
    })))
}
