//! GET /v1/stats: Lemonade's figures of the last request, sums, load, and the last requests.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use serde_json::{Value, json};
use trefoil_devices_api::Phase;
use trefoil_engine::service::{Ended, REMEMBERED, Sums};

use crate::http::state::{AppState, ServedModel};

fn seconds(time: Option<Duration>) -> Option<f64> {
    time.map(|time| time.as_secs_f64())
}

/// Tokens after the first, by the time that they took.
fn rate(ended: &Ended) -> Option<f64> {
    let time = ended.decode?.as_secs_f64();
    let tokens = ended.generated_tokens.checked_sub(1).filter(|&tokens| tokens > 0)?;
    (time > 0.0).then(|| tokens as f64 / time)
}

fn request(model: &ServedModel, ended: &Ended) -> Value {
    json!({
        "model": model.id,
        "ended": ended.at,
        "outcome": ended.outcome,
        "prompt_tokens": ended.prompt_tokens,
        "cached_tokens": ended.cached_tokens,
        "generated_tokens": ended.generated_tokens,
        "queue_seconds": seconds(ended.queued),
        "time_to_first_token": seconds(ended.first_token),
        "prefill_seconds": seconds(ended.prefill),
        "decode_seconds": seconds(ended.decode),
        "total_seconds": ended.total.as_secs_f64(),
        "tokens_per_second": rate(ended),
    })
}

/// What is under way with a model.
fn load(model: &ServedModel) -> Value {
    let Sums { requests, prompt_tokens, cached_tokens, generated_tokens } = model.history.sums();
    let measured = model.measured();
    let phases = measured.as_ref().map(|measured| {
        let phase = |phase| {
            measured.phase(phase).map(|live| {
                json!({
                    "steps": live.steps,
                    "tokens": live.rows,
                    "seconds": live.seconds,
                    "last_sequences": live.last_sequences,
                })
            })
        };
        json!({"prefill": phase(Phase::Prefill), "decode": phase(Phase::Decode)})
    });
    let service = model.service().map(|service| {
        let pages = service.load().pages();
        json!({
            "running": service.load().running(),
            "waiting": service.waiting(),
            "queue_capacity": service.capacity(),
            "max_sequences": model.sequences,
            "kv_pages": {"used": pages.used, "cached": pages.cached, "free": pages.free},
            "kv_page_tokens": model.page_tokens,
        })
    });
    json!({
        "model": model.id,
        "load": service,
        "steps": phases,
        "requests_total": requests,
        "prompt_tokens_total": prompt_tokens,
        "cached_tokens_total": cached_tokens,
        "generated_tokens_total": generated_tokens,
    })
}

/// GET /v1/stats
pub(crate) async fn stats(State(state): State<Arc<AppState>>) -> axum::Json<Value> {
    let all = state.models.iter();
    let mut recent: Vec<(&ServedModel, Ended)> = all
        .flat_map(|model| model.history.last().into_iter().map(move |ended| (model, ended)))
        .collect();
    recent.sort_by(|(_, a), (_, b)| b.at.total_cmp(&a.at));
    recent.truncate(REMEMBERED);
    let last = recent.first().map(|(_, ended)| ended);
    let mut sums = Sums::default();
    for own in state.models.iter().map(|model| model.history.sums()) {
        sums.requests += own.requests;
        sums.prompt_tokens += own.prompt_tokens;
        sums.cached_tokens += own.cached_tokens;
        sums.generated_tokens += own.generated_tokens;
    }
    axum::Json(json!({
        "time_to_first_token": last.and_then(|last| seconds(last.first_token)),
        "tokens_per_second": last.and_then(rate),
        "input_tokens": last.map(|last| last.prompt_tokens - last.cached_tokens),
        "output_tokens": last.map(|last| last.generated_tokens),
        "prompt_tokens": last.map(|last| last.prompt_tokens),
        "cache_tokens": last.map(|last| last.cached_tokens),
        "requests_total": sums.requests,
        "input_tokens_total": sums.prompt_tokens - sums.cached_tokens,
        "output_tokens_total": sums.generated_tokens,
        "prompt_tokens_total": sums.prompt_tokens,
        "cache_tokens_total": sums.cached_tokens,
        "trefoil": {
            "uptime_seconds": state.started.elapsed().as_secs_f64(),
            "models": state.models.iter().map(load).collect::<Vec<_>>(),
            "recent": recent.iter().map(|(model, ended)| request(model, ended)).collect::<Vec<_>>(),
        },
    }))
}
