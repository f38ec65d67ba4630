//! Routes that let people see what happens: plans, devices, policies, figures of what was served.

mod devices;
mod metrics;
mod placement;
mod plan;
mod stats;
mod what_if;

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
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

/// The model that a query means: the default one where none is named.
fn find(
    state: &AppState,
    query: Result<Query<OfModel>, QueryRejection>,
) -> Result<&ServedModel, ApiError> {
    let Query(OfModel { model }) = query.map_err(|error| {
        let message = format!("'model': expected one name, got {}.", error.body_text());
        ApiError::field("invalid_value", "model", message)
    })?;
    let name = model.as_deref().unwrap_or("default");
    state.model(name).ok_or_else(|| unknown_model(state, name))
}

/// Where a value is from, without the folders of its file: clients need not know them.
fn source(origin: &str) -> &str {
    let file = origin.split(" [").next().unwrap_or(origin);
    let folders = file.rfind(['/', '\\']).map_or(0, |at| at + 1);
    &origin[folders..]
}

/// GET /v1/policy: what the plan of a model was made for, and what others there are.
pub(crate) async fn policy(
    State(state): State<Arc<AppState>>,
    of: Result<Query<OfModel>, QueryRejection>,
) -> Result<axum::Json<Value>, ApiError> {
    let model = find(&state, of)?;
    let resolved = &model.policy;
    let origins: BTreeMap<&str, &str> =
        resolved.origins.iter().map(|(key, origin)| (*key, source(origin))).collect();
    Ok(axum::Json(json!({
        "object": "policy",
        "model": model.id,
        "name": resolved.name,
        "objective": resolved.policy.objective.name(),
        "policy": resolved.policy,
        "origins": origins,
        "known": state.config.known_policies(),
        "profiles": shipped_names().collect::<Vec<_>>(),
    })))
}

#[cfg(test)]
mod tests {
    use super::source;

    #[test]
    fn sources_are_told_without_folders() {
        assert_eq!(
            source("/home/me/.config/trefoil/trefoil.toml [policy]"),
            "trefoil.toml [policy]"
        );
        assert_eq!(
            source("C:\\Users\\me\\trefoil.toml [policies.a/b]"),
            "trefoil.toml [policies.a/b]"
        );
        for plain in ["default", "name [policy]", "TREFOIL__POLICY__OBJECTIVE"] {
            assert_eq!(source(plain), plain);
        }
    }
}
