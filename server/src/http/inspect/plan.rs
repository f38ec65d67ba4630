//! GET /v1/plan.

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use serde_json::{Value, json};
use trefoil_devices_api::DomainId;
use trefoil_engine::live::Measured;
use trefoil_engine::usage::StepTimes;
use trefoil_graph::LayerGraph;
use trefoil_scheduler::{BucketPlan, Plan};

use super::OfModel;
use super::placement::Segment;
use crate::http::error::ApiError;
use crate::http::state::{AppState, ServedModel};

/// GET /v1/plan
pub(crate) async fn plan(
    State(state): State<Arc<AppState>>,
    of: Result<Query<OfModel>, QueryRejection>,
) -> Result<axum::Json<Value>, ApiError> {
    let model = super::find(&state, of)?;
    let measured = model.measured();
    let phases = model.plan.buckets.iter().map(|bucket| {
        let mut phase = describe(&model.lowered.graph, bucket);
        if let Some(measured) = &measured {
            add_measured(&mut phase, model, bucket, measured);
        }
        phase
    });
    let domains: Vec<(String, DomainId)> = state
        .devices
        .iter()
        .map(|device| (device.info().name.clone(), device.domains()[0].id))
        .collect();
    let mut document = document(&model.plan, phases.collect(), &domains);
    let more = json!({
        "model": model.id,
        "version": model.plan_version,
        "cause": "load",
        "objective": model.policy.policy.objective.name(),
        "created": model.created,
        "planning_seconds": model.planning.as_secs_f64(),
    });
    extend(&mut document, more);
    Ok(axum::Json(document))
}

/// Adds the fields of an object to another.
pub(super) fn extend(object: &mut Value, more: Value) {
    if let (Value::Object(object), Value::Object(more)) = (object, more) {
        object.extend(more);
    }
}

/// What every plan tells, in force or not; `domains` are where the devices' data goes.
pub(super) fn document(plan: &Plan, phases: Vec<Value>, domains: &[(String, DomainId)]) -> Value {
    let used: Vec<&str> = plan.buckets.iter().flat_map(BucketPlan::devices).collect();
    let memory = plan.memory.iter().map(|memory| {
        let here = domains
            .iter()
            .filter(|(name, domain)| *domain == memory.domain && used.contains(&name.as_str()));
        let devices: Vec<&str> = here.map(|(name, _)| name.as_str()).collect();
        let total = memory.weights.0 + memory.kv.0 + memory.activations.0 + memory.streaming.0;
        json!({
            "domain": memory.domain.to_string(),
            "devices": devices,
            "weights_bytes": memory.weights,
            "kv_bytes": memory.kv,
            "activations_bytes": memory.activations,
            "streaming_bytes": memory.streaming,
            "total_bytes": total,
        })
    });
    let prediction = plan.prediction.as_ref();
    let kv: Vec<String> = plan.kv.iter().map(DomainId::to_string).collect();
    let kv_decode = plan.kv_decode.as_ref();
    let kv_decode = kv_decode.map(|kv| kv.iter().map(DomainId::to_string).collect::<Vec<_>>());
    json!({
        "object": "plan",
        "policy": plan.policy,
        "profile": plan.profile,
        "context": plan.context,
        "phases": phases,
        "memory": memory.collect::<Vec<_>>(),
        "kv": {"prefill": kv, "decode": kv_decode.as_ref().unwrap_or(&kv)},
        "prediction": prediction.map(|prediction| json!({
            "prompt_tokens": prediction.prompt_tokens,
            "generated_tokens": prediction.generated_tokens,
            "totals": prediction.totals,
            "overlapped": prediction.overlapped,
            "score": prediction.score,
            "lower_bound": prediction.lower_bound,
            "gap": prediction.gap,
        })),
        "rejected": prediction.map_or(&[][..], |prediction| &prediction.alternatives),
        "pins": plan.pins,
        "reasons": plan.reasons,
    })
}

/// A bucket: its placement, unit by unit, its segments and copies.
pub(super) fn describe(graph: &LayerGraph, bucket: &BucketPlan) -> Value {
    let units = bucket.units.iter().zip(graph.units()).map(|(placed, unit)| {
        json!({
            "unit": placed.unit, "kind": unit.kind, "layer": unit.layer, "device": placed.device,
        })
    });
    let segments = Segment::all(graph, bucket).into_iter().map(|segment| {
        let predicted = bucket.segments.get(segment.index).map(|prediction| prediction.seconds);
        json!({
            "segment": segment.index,
            "device": segment.device,
            "first": segment.first,
            "last": segment.last,
            "layers": segment.layers.map(|(first, last)| [first, last]),
            "ops": segment.ops,
            "weight_bytes": segment.weight_bytes,
            "streamed_bytes": segment.streamed_bytes,
            "predicted_seconds": predicted,
            "measured": null,
        })
    });
    let transfers = bucket.transfers.iter().map(|transfer| {
        json!({
            "tensor": transfer.tensor,
            "from": transfer.from.to_string(),
            "to": transfer.to.to_string(),
            "bytes": transfer.bytes,
        })
    });
    json!({
        "phase": bucket.bucket.phase,
        "max_tokens": bucket.bucket.max_tokens,
        "steps_at_once": bucket.steps_at_once(),
        "predicted_seconds": bucket.predicted_seconds,
        "predicted_joules": bucket.predicted_joules,
        "units_per_device": bucket.units_per_device(),
        "units": units.collect::<Vec<_>>(),
        "segments": segments.collect::<Vec<_>>(),
        "splits": bucket.splits,
        "streamed": bucket.streamed,
        "transfers": transfers.collect::<Vec<_>>(),
        "measured": null,
    })
}

/// What a segment took in the last steps, beside what it should have.
pub(super) fn last_steps(
    model: &ServedModel,
    bucket: &BucketPlan,
    index: usize,
    measured: &Measured,
) -> Option<StepTimes> {
    let steps = measured.last_steps(bucket.bucket.phase);
    StepTimes::of(steps, &model.plan, bucket, index, model.predictor())
}

/// Adds what was measured to a bucket's description.
fn add_measured(phase: &mut Value, model: &ServedModel, bucket: &BucketPlan, measured: &Measured) {
    let mean = |sum: f64, count: u64| sum / count.max(1) as f64;
    if let Some(live) = measured.phase(bucket.bucket.phase) {
        phase["measured"] = json!({
            "steps": live.steps,
            "tokens": live.rows,
            "seconds": mean(live.seconds, live.steps),
        });
    }
    let segments = phase["segments"].as_array_mut().into_iter().flatten();
    for (index, segment) in segments.enumerate() {
        let devices = measured.segment(bucket.bucket, index).map(|live| {
            json!({
                "device": &*live.device, "steps": live.runs,
                "seconds": mean(live.seconds, live.runs),
            })
        });
        let devices: Vec<Value> = devices.collect();
        let Some(last) = last_steps(model, bucket, index, measured) else { continue };
        segment["measured"] = json!({
            "devices": devices,
            "last": {
                "steps": last.steps,
                "tokens": last.rows,
                "past": last.past,
                "seconds": last.seconds,
                "predicted_seconds": last.predicted_seconds,
                "error_ratio": last.error_ratio(),
            },
        });
    }
}
