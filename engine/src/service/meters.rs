//! What a service counts: metrics, looked up once, the last requests, and measured steps.

use std::sync::Arc;
use std::time::Duration;

use trefoil_devices_api::Phase;
use trefoil_telemetry::{Counter, Histogram, HistogramVec, Metrics};

use super::ServiceError;
use super::history::{Course, Ended, History};
use crate::generate::Summary;
use crate::live::Live;
use crate::records::StepRecord;

/// Metrics of one model.
#[derive(Clone, Debug)]
pub struct Meters {
    queue: Histogram,
    first_token: Histogram,
    inter_token: Histogram,
    prefill: Histogram,
    decode: Histogram,
    duration: Histogram,
    prompt_tokens: Histogram,
    generated_tokens: Histogram,
    /// Computed, cached.
    prompt: [Counter; 2],
    generated: Counter,
    query: Counter,
    hit: Counter,
    preempted: Counter,
    /// Stop, length, cancelled, error.
    outcomes: [Counter; 4],
    timed_out: Counter,
    /// Prefill, decode.
    steps: [Steps; 2],
    /// Id of the model.
    id: String,
    segments: HistogramVec,
    live: Arc<Live>,
    history: Arc<History>,
}

#[derive(Clone, Debug)]
struct Steps {
    count: Counter,
    seconds: Histogram,
    sequences: Histogram,
    tokens: Histogram,
}

/// Segments of a bucket that have metrics of their own; `GET /v1/plan` tells of all.
pub const MOST_SEGMENTS: usize = 64;

const OUTCOMES: [&str; 4] = ["stop", "length", "cancelled", "error"];

impl Meters {
    /// Those of a model that is served under `id`.
    pub fn new(metrics: &Metrics, id: &str) -> Self {
        let one = [id];
        let steps = |phase: Phase| {
            let labels = [id, phase.name()];
            Steps {
                count: metrics.steps_total.with_label_values(&labels),
                seconds: metrics.step_duration_seconds.with_label_values(&labels),
                sequences: metrics.batch_sequences.with_label_values(&labels),
                tokens: metrics.batch_tokens.with_label_values(&labels),
            }
        };
        Self {
            queue: metrics.request_queue_seconds.with_label_values(&one),
            first_token: metrics.time_to_first_token_seconds.with_label_values(&one),
            inter_token: metrics.inter_token_seconds.with_label_values(&one),
            prefill: metrics.request_prefill_seconds.with_label_values(&one),
            decode: metrics.request_decode_seconds.with_label_values(&one),
            duration: metrics.request_duration_seconds.with_label_values(&one),
            prompt_tokens: metrics.request_prompt_tokens.with_label_values(&one),
            generated_tokens: metrics.request_generated_tokens.with_label_values(&one),
            prompt: ["computed", "cached"]
                .map(|source| metrics.prompt_tokens_total.with_label_values(&[id, source])),
            generated: metrics.generated_tokens_total.with_label_values(&one),
            query: metrics.prefix_cache_query_tokens_total.with_label_values(&one),
            hit: metrics.prefix_cache_hit_tokens_total.with_label_values(&one),
            preempted: metrics.preemptions_total.with_label_values(&[id, "kv_pages"]),
            outcomes: OUTCOMES.map(|name| metrics.requests_total.with_label_values(&[id, name])),
            timed_out: metrics.requests_rejected_total.with_label_values(&["queue_timeout"]),
            steps: [Phase::Prefill, Phase::Decode].map(steps),
            id: id.to_owned(),
            segments: metrics.segment_duration_seconds.clone(),
            live: Arc::default(),
            history: Arc::default(),
        }
    }

    /// Measured steps.
    pub fn live(&self) -> &Arc<Live> {
        &self.live
    }

    /// The last requests.
    pub fn history(&self) -> &Arc<History> {
        &self.history
    }

    /// Steps were recorded.
    pub(super) fn recorded(&self, steps: Vec<StepRecord>) {
        for step in &steps {
            for run in step.runs().into_iter().filter(|run| run.index < MOST_SEGMENTS) {
                let labels = [&*self.id, step.phase.name(), &run.index.to_string(), &*run.device];
                self.segments.with_label_values(&labels).observe(run.took.seconds());
            }
        }
        self.live.add(steps);
    }

    pub(super) fn started(&self, queued: Duration) {
        self.history.used();
        self.queue.observe(queued.as_secs_f64());
    }

    /// A prompt was looked for in the cache.
    pub(super) fn looked_up(&self, tokens: usize, found: usize) {
        self.query.inc_by(tokens as f64);
        self.hit.inc_by(found as f64);
    }

    /// A prompt was read, but for its first `cached` tokens.
    pub(super) fn prompt(&self, tokens: usize, cached: usize) {
        self.prompt[0].inc_by((tokens - cached) as f64);
        self.prompt[1].inc_by(cached as f64);
    }

    pub(super) fn step(&self, phase: Phase, sequences: usize, tokens: usize, took: Duration) {
        let steps = &self.steps[usize::from(phase == Phase::Decode)];
        steps.count.inc();
        steps.seconds.observe(took.as_secs_f64());
        steps.sequences.observe(sequences as f64);
        steps.tokens.observe(tokens as f64);
    }

    /// A token was chosen.
    pub(super) fn chosen(&self) {
        self.generated.inc();
    }

    /// A token was told this long after the last one.
    pub(super) fn token(&self, since: Duration) {
        self.inter_token.observe(since.as_secs_f64());
    }

    /// The first token was told this long after the request came.
    pub(super) fn first_token(&self, since: Duration) {
        self.first_token.observe(since.as_secs_f64());
    }

    pub(super) fn preempted(&self) {
        self.preempted.inc();
    }

    /// A reply ended.
    pub(super) fn done(&self, result: &Result<Summary, ServiceError>, course: Course) {
        let outcome = match result {
            Ok(summary) => summary.finish.name(),
            Err(ServiceError::QueueTimeout(_)) => "queue_timeout",
            Err(ServiceError::Cancelled) => "cancelled",
            Err(_) => "error",
        };
        self.history.push(Ended::now(outcome, course, result.as_ref().ok()));
        if matches!(result, Err(ServiceError::QueueTimeout(_))) {
            // It never ran.
            return self.timed_out.inc();
        }
        let at = OUTCOMES.iter().position(|name| *name == outcome).unwrap_or(OUTCOMES.len() - 1);
        self.outcomes[at].inc();
        let Ok(summary) = result else { return };
        self.prompt_tokens.observe(summary.prompt_tokens as f64);
        self.generated_tokens.observe(summary.generated_tokens as f64);
        self.prefill.observe(summary.prefill.as_secs_f64());
        self.decode.observe(summary.decode.as_secs_f64());
        self.duration.observe(course.total.as_secs_f64());
    }
}
