//! POST /v1/plan: the plan under another policy, for another request, on another machine. Nothing
//! changes by it.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use trefoil_devices_api::DomainId;
use trefoil_engine::model::ModelError;
use trefoil_engine::what_if::WhatIf;
use trefoil_scheduler::Plan;
use trefoil_scheduler::planner::Workload;
use trefoil_scheduler::policy::{Keys, Resolved};
use trefoil_scheduler::profile::{Profile, shipped, shipped_names};

use super::plan::{describe, document, extend};
use crate::http::body::{find, name_ignored, read_body};
use crate::http::error::ApiError;
use crate::http::fields::Fields;
use crate::http::state::{AppState, ServedModel};

/// Longest prompt and reply that are planned for.
const MOST_TOKENS: i64 = 1 << 20;

/// A checked body.
#[derive(Debug)]
struct Question {
    model: String,
    /// A policy's name, or keys over the one in force.
    policy: Option<PolicyForm>,
    /// Name of a shipped profile; this machine if absent.
    profile: Option<String>,
    workload: Workload,
    ignored: Vec<String>,
}

/// Most pins, and most names in lists of devices and limits: each is held against every part.
const MOST_NAMES: usize = 256;

/// Refuses lists that would take planning too long.
fn check_sizes(keys: &Keys) -> Result<(), ApiError> {
    let list = |names: &Option<Vec<String>>| names.as_ref().map_or(0, Vec::len);
    let sizes = [
        ("pins", keys.pins.as_ref().map_or(0, Vec::len)),
        ("allow_devices", list(&keys.allow_devices)),
        ("deny_devices", list(&keys.deny_devices)),
        ("max_device_memory", keys.max_device_memory.as_ref().map_or(0, BTreeMap::len)),
    ];
    match sizes.into_iter().find(|(_, size)| *size > MOST_NAMES) {
        None => Ok(()),
        Some((key, size)) => {
            let message =
                format!("'policy': expected at most {MOST_NAMES} entries of {key}, got {size}.");
            Err(ApiError::field("invalid_value", "policy", message))
        }
    }
}

#[derive(Debug)]
enum PolicyForm {
    Name(String),
    Keys(Box<Keys>),
}

impl Question {
    fn read(body: &[u8], strict: bool) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let model = fields.string("model")?.unwrap_or_else(|| "default".to_owned());
        let policy = match fields.take("policy") {
            None => None,
            Some(Value::String(name)) => Some(PolicyForm::Name(name)),
            Some(keys @ Value::Object(_)) => {
                let keys = serde_json::from_value(keys).map_err(|error| {
                    ApiError::field("invalid_value", "policy", format!("'policy': {error}."))
                })?;
                check_sizes(&keys)?;
                Some(PolicyForm::Keys(Box::new(keys)))
            }
            Some(_) => {
                let message = "'policy': expected a policy's name, or an object of its keys.";
                return Err(ApiError::field("invalid_type", "policy", message));
            }
        };
        let profile = fields.string("profile")?;
        let mut workload = Workload::default();
        let mut ignored = Vec::new();
        if let Some(mut shape) = fields.object("phase_shape")? {
            let count = |tokens: Option<i64>, usual| tokens.map_or(usual, |n| n.unsigned_abs());
            workload.prompt = count(shape.integer("prompt_tokens", 1..=MOST_TOKENS)?, 512);
            workload.generate = count(shape.integer("generated_tokens", 1..=MOST_TOKENS)?, 128);
            ignored = shape.unknown();
        }
        ignored.extend(fields.unknown());
        if strict && let Some(first) = ignored.first() {
            let message = format!("The field '{first}' is not known; leave it out.");
            return Err(ApiError::field("unknown_parameter", first, message));
        }
        Ok(Self { model, policy, profile, workload, ignored })
    }

    /// The policy that is asked about.
    fn policy(&self, state: &AppState, model: &ServedModel) -> Result<Resolved, ApiError> {
        let resolved = match &self.policy {
            None => Ok(model.policy.clone()),
            Some(PolicyForm::Name(name)) => state.config.policy(Some(name)),
            Some(PolicyForm::Keys(keys)) => model.policy.with(keys, "the request"),
        };
        resolved.map_err(|error| ApiError::field("invalid_value", "policy", error.to_string()))
    }
}

/// POST /v1/plan
pub(crate) async fn what_if(
    State(state): State<Arc<AppState>>,
    body: Body,
) -> Result<Response, ApiError> {
    let body = read_body(&state, body).await?;
    let question = Question::read(&body, state.options.strict_fields)?;
    let ignored = question.ignored.clone();
    // Planning takes a processor for a while: one at a time.
    let turn = state.planning.clone().acquire_owned().await;
    let turn = turn.map_err(|_| ApiError::shutting_down())?;
    let answer = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        answer(&state, &question)
    });
    let answer = answer.await.map_err(|_| ApiError::internal("Planning ended with a panic."))??;
    let mut response = axum::Json(answer).into_response();
    name_ignored(&mut response, &ignored);
    Ok(response)
}

fn answer(state: &AppState, question: &Question) -> Result<Value, ApiError> {
    let model = find(state, &question.model)?;
    let policy = question.policy(state, model)?;
    let begin = std::time::Instant::now();
    let (plan, domains) = match &question.profile {
        None => here(state, model, question, policy.clone())?,
        Some(name) => {
            let profile = shipped(name).map_err(|_| {
                let known: Vec<&str> = shipped_names().collect();
                let message =
                    format!("'profile': expected one of {}, got {name:?}.", known.join(", "));
                ApiError::field("invalid_value", "profile", message)
            })?;
            let policy = for_machine(policy.clone(), &profile);
            let plan = model.what_if(&policy, question.workload).on(&profile);
            (plan.map_err(refused)?, profile.device_domains().collect())
        }
    };
    let took = begin.elapsed().as_secs_f64();
    let phases = plan.buckets.iter().map(|bucket| describe(&model.lowered.graph, bucket));
    let mut document = document(&plan, phases.collect(), &domains);
    let more = json!({
        "model": model.id,
        "version": null,
        "cause": "what_if",
        "objective": policy.policy.objective.name(),
        "created": null,
        "planning_seconds": took,
    });
    extend(&mut document, more);
    Ok(document)
}

/// A plan for this machine.
fn here(
    state: &AppState,
    model: &ServedModel,
    question: &Question,
    policy: Resolved,
) -> Result<(Plan, Vec<(String, DomainId)>), ApiError> {
    let Some(costs) = &model.costs else {
        let message = format!(
            "What this machine's devices take for '{}' is not known: run `trefoil calibrate` with the \
             model and start the server again, or name a 'profile'.",
            model.id
        );
        let error = ApiError::new(StatusCode::CONFLICT, "costs_unknown", message);
        return Err(ApiError { hopeless: true, ..error });
    };
    let policy = for_machine(policy, &costs.profile);
    let plan = model.what_if(&policy, question.workload).here(costs).map_err(refused)?;
    let domains = state.devices.iter();
    let domains = domains.map(|device| (device.info().name.clone(), device.domains()[0].id));
    Ok((plan, domains.collect()))
}

/// The policy without names of devices and memories that the machine does not have, as far as files
/// give them: they are about machines that do.
fn for_machine(mut policy: Resolved, profile: &Profile) -> Resolved {
    let from_request = |key: &'static str| policy.origin(key) == "the request";
    let (allow, deny) = (from_request("allow_devices"), from_request("deny_devices"));
    let limits = from_request("max_device_memory");
    let here = |pattern: &String| pattern.contains(['*', '?']) || profile.device(pattern).is_some();
    let values = &mut policy.policy;
    if !allow && values.allow_devices.iter().any(here) {
        values.allow_devices.retain(here);
    }
    if !deny {
        values.deny_devices.retain(here);
    }
    if !limits {
        let domain = |name: &String| profile.domains.iter().any(|domain| domain.name == *name);
        values.max_device_memory.retain(|name, _| profile.device(name).is_some() || domain(name));
    }
    policy
}

impl ServedModel {
    fn what_if<'a>(&'a self, policy: &'a Resolved, workload: Workload) -> WhatIf<'a> {
        let (lowered, plan) = (&self.lowered, &self.plan);
        WhatIf { lowered, plan, kv_element_bytes: self.kv_element_bytes, policy, workload }
    }
}

/// A policy that fits nothing is the request's fault.
fn refused(error: ModelError) -> ApiError {
    ApiError::field("invalid_value", "policy", format!("There is no such plan: {error}."))
}
