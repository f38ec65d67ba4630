//! Records of steps as a trace that can be looked at: a track per device, per link and for the host.

use serde_json::{Map, Value, json};
use trefoil_devices_api::DomainId;
use trefoil_scheduler::{Plan, SegmentPrediction};
use trefoil_telemetry::{ChromeTrace, Nanos};

use crate::calibrate::Predictor;
use crate::records::{CopyRecord, SegmentRecord, StepRecord, Times};

/// Track of what the host does between steps: sampling, text, waiting for whoever asks.
pub const HOST_TRACK: &str = "host between steps";

/// The trace of `records`, with what `plan` predicted beside what was measured. Times count from the
/// first submission.
///
/// Spans of segments are named after their units and have as arguments the step's `tokens`, `past`,
/// `sequences`, `outputs` and `bucket` (rows of a full step), `queue_wait_seconds`, `device_seconds`
/// where the processor has a clock of its own, and `predicted_seconds`: with a `predictor` at the step's
/// own tokens and past, else of a full step where the plan has it (`predicted_for` says `step` or
/// `bucket`).
pub fn chrome_trace(
    records: &[StepRecord],
    plan: &Plan,
    predictor: Option<Predictor<'_>>,
) -> ChromeTrace {
    let mut trace = ChromeTrace::new();
    let origin = records.iter().filter_map(StepRecord::queued).min().unwrap_or_default();
    for segment in records.iter().flat_map(|step| &step.segments) {
        trace.track(&segment.device);
    }
    for copy in records.iter().flat_map(|step| &step.copies) {
        trace.track(&link(copy));
    }
    for step in records {
        for segment in &step.segments {
            let name = segment.label.split_once(' ').map_or(&*segment.label, |(_, units)| units);
            let own = predictor.and_then(|predictor| predictor.segment(plan, step, segment));
            let full = || predicted(plan, step, segment).map(|full| (full.seconds, "bucket"));
            let known = own.map(|seconds| (seconds, "step")).or_else(full);
            let args = segment_args(step, segment, known);
            let track = (&*segment.device, name, step.phase.name());
            span(&mut trace, track, origin, &segment.times, args);
        }
        for copy in &step.copies {
            let mut args = step_args(step);
            args.insert("bytes".to_owned(), json!(copy.bytes));
            args.insert("device".to_owned(), json!(*copy.device));
            add_times(&mut args, &copy.times);
            let track = (&*link(copy), &*copy.label, "copy");
            span(&mut trace, track, origin, &copy.times, args);
        }
    }
    between_steps(&mut trace, records, origin);
    trace
}

/// Predicted cost of a segment in a full step, where the plan has it.
pub(crate) fn predicted<'a>(
    plan: &'a Plan,
    step: &StepRecord,
    segment: &SegmentRecord,
) -> Option<&'a SegmentPrediction> {
    let bucket = plan.buckets.iter().find(|bucket| bucket.bucket == step.bucket)?;
    let known = bucket.segments.get(segment.index)?;
    // Not of the parts of a segment that is cut.
    let units = segment.label.split_once(' ')?.1;
    let whole = units.split_once("..") == Some((known.first.as_str(), known.last.as_str()));
    (whole && known.device == *segment.device).then_some(known)
}

/// Track of a copy: its two domains, and who copies (two devices may at once).
fn link(copy: &CopyRecord) -> String {
    let CopyRecord { from, to, device, .. } = copy;
    let name = |domain: &DomainId| domain.to_string();
    format!("copies {} to {} by {device}", name(from), name(to))
}

fn step_args(step: &StepRecord) -> Map<String, Value> {
    let args = [
        ("tokens", step.tokens),
        ("past", step.past),
        ("sequences", step.sequences),
        ("outputs", step.outputs),
        ("bucket", step.bucket.max_tokens),
    ];
    args.into_iter().map(|(name, value)| (name.to_owned(), json!(value))).collect()
}

fn add_times(args: &mut Map<String, Value>, times: &Times) {
    args.insert("queue_wait_seconds".to_owned(), json!(times.queue_wait().seconds()));
    if let Some(device) = times.device_time {
        args.insert("device_seconds".to_owned(), json!(device.seconds()));
    }
}

fn segment_args(
    step: &StepRecord,
    segment: &SegmentRecord,
    predicted: Option<(f64, &str)>,
) -> Map<String, Value> {
    let mut args = step_args(step);
    add_times(&mut args, &segment.times);
    if let Some((seconds, of)) = predicted {
        args.insert("predicted_seconds".to_owned(), json!(seconds));
        args.insert("predicted_for".to_owned(), json!(of));
    }
    args
}

fn span(
    trace: &mut ChromeTrace,
    (track, name, category): (&str, &str, &str),
    origin: Nanos,
    times: &Times,
    args: Map<String, Value>,
) {
    let track = trace.track(track);
    let (start, took) = (times.start.since(origin).seconds(), times.span().seconds());
    trace.span(track, name, category, start, took, Value::Object(args));
}

/// What lies between the result of a step and the first submission of the next.
fn between_steps(trace: &mut ChromeTrace, records: &[StepRecord], origin: Nanos) {
    for pair in records.windows(2) {
        let (Some(end), Some(next)) = (pair[0].end(), pair[1].queued()) else { continue };
        if next <= end {
            continue; // submitted ahead
        }
        let name = if pair[0].outputs > 0 { "sampling and text" } else { "next chunk" };
        let args = json!({"after": pair[0].phase.name(), "outputs": pair[0].outputs});
        let track = trace.track(HOST_TRACK);
        let (start, took) = (end.since(origin).seconds(), next.since(end).seconds());
        trace.span(track, name, "host", start, took, args);
    }
}
