//! The parts of a chat answer that streams and plain answers share (API.md section 3.1).

use std::time::Duration;

use serde_json::{Value, json};
use trefoil_engine::generate::{Finish, Summary, TokenLogprobs};
use trefoil_engine::text::Tokenizer;

use super::state::ServedModel;

/// What is the same in every part of one answer.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) id: String,
    pub(crate) created: u64,
    pub(crate) model: String,
    pub(crate) fingerprint: String,
}

impl Head {
    /// An answer of `model`'s, now; its id begins with `prefix`.
    pub(crate) fn new(model: &ServedModel, prefix: &str) -> Self {
        Self {
            id: super::id::new(prefix),
            created: super::id::unix_time(),
            model: model.id.clone(),
            fingerprint: model.fingerprint.clone(),
        }
    }

    /// An object of this answer.
    pub(crate) fn object(&self, kind: &str, choices: Value) -> Value {
        json!({
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "service_tier": "default",
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        })
    }
}

/// `stop` or `length`.
pub(crate) fn finish_reason(finish: &Finish) -> &'static str {
    match finish {
        Finish::MaxTokens | Finish::ContextFull => "length",
        Finish::EndToken(_) | Finish::StopText(_) | Finish::Cancelled => "stop",
    }
}

fn stop_reason(finish: &Finish) -> Value {
    match finish {
        Finish::EndToken(id) => json!(id),
        Finish::StopText(text) => json!(text),
        _ => Value::Null,
    }
}

/// A token's log probabilities as clients read them.
pub(crate) fn logprobs(tokenizer: &Tokenizer, token: &TokenLogprobs) -> Value {
    let entry = |id: u32, logprob: f64| {
        let bytes = tokenizer.token_bytes(id);
        json!({
            "token": String::from_utf8_lossy(bytes),
            "logprob": logprob,
            "bytes": bytes,
        })
    };
    let mut value = entry(token.chosen.id, token.chosen.logprob);
    let top = token.top.iter().map(|other| entry(other.id, other.logprob));
    value["top_logprobs"] = Value::Array(top.collect());
    value
}

/// Token counts over all replies to each prompt, which counts once; `thought` of them are reasoning.
pub(crate) fn usage(prompts: &[Vec<Summary>], thought: usize) -> Value {
    let (prompt, cached) = read(prompts);
    let completion: usize = prompts.iter().flatten().map(|s| s.generated_tokens).sum();
    json!({
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": thought},
    })
}

/// Tokens of all prompts, and those of them that were there.
fn read(prompts: &[Vec<Summary>]) -> (usize, usize) {
    let first = || prompts.iter().filter_map(|replies| replies.first());
    (first().map(|s| s.prompt_tokens).sum(), first().map(|s| s.cached_tokens).sum())
}

/// Times in llama.cpp's layout. `prompt_n` are the tokens that were read, once for all replies to a
/// prompt; `cache_n` those that were there. Prompts are read one after another, so that their times add
/// up; replies are made side by side: the longest one's time counts.
pub(crate) fn timings(prompts: &[Vec<Summary>]) -> Value {
    let (prompt, cached) = read(prompts);
    let prompt = prompt - cached;
    let prefill: Duration = prompts.iter().filter_map(|p| p.first()).map(|s| s.prefill).sum();
    let replies = || prompts.iter().flatten();
    let generated: usize = replies().map(|s| s.generated_tokens).sum();
    let decode = replies().map(|s| s.decode).max().unwrap_or_default();
    let rate = |count: usize, time: Duration| count as f64 / time.as_secs_f64().max(1e-9);
    json!({
        "cache_n": cached,
        "prompt_n": prompt,
        "prompt_ms": prefill.as_secs_f64() * 1e3,
        "prompt_per_second": rate(prompt, prefill),
        "predicted_n": generated,
        "predicted_ms": decode.as_secs_f64() * 1e3,
        "predicted_per_second": rate(generated, decode),
    })
}

/// What ran where, and what a client needs to repeat the answer.
pub(crate) fn trefoil(
    model: &ServedModel,
    prompts: &[Vec<Summary>],
    queued: Duration,
    seed: i64,
) -> Value {
    let first = prompts.first().and_then(|replies| replies.first());
    json!({
        "plan_versions": [1],
        "prefill_devices": model.prefill_devices,
        "decode_devices": model.decode_devices,
        "queue_ms": queued.as_secs_f64() * 1e3,
        "seed": seed,
        "stop_reason": first.map_or(Value::Null, |s| stop_reason(&s.finish)),
    })
}
