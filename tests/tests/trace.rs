//! Traces and figures of a run, from its records.

use std::collections::BTreeMap;

use serde_json::Value;
use trefoil_devices_api::Phase;
use trefoil_engine::backends::{BackendOptions, Backends};
use trefoil_engine::model::ModelOptions;
use trefoil_engine::records::StepRecord;
use trefoil_engine::trace::{HOST_TRACK, chrome_trace};
use trefoil_engine::usage::Usage;
use trefoil_scheduler::{Plan, SegmentPrediction};
use trefoil_tests::devices::{GPU, gpu_options, with_gpu};
use trefoil_tests::running::{exact_options, greedy, lowered, model_file, random_tokens};

const CHUNK: usize = 16;
const PROMPT: usize = 3 * CHUNK + 4;
const TOKENS: usize = 5;

/// Records of a prompt and some tokens, with a plan that claims to know how long each segment takes.
fn recorded(backends: &Backends, pins: &[&str]) -> (Vec<StepRecord>, Plan) {
    let lowered = lowered(&model_file("smollm"));
    let pins = pins.iter().map(|pin| pin.parse().expect("a pin")).collect();
    let options = ModelOptions { pins, chunk: CHUNK, ..exact_options("cpu0") };
    let mut plan = lowered.plan(backends, &options).expect("places");
    for bucket in &mut plan.buckets {
        let segments = bucket.segments().into_iter().zip(1..).map(|(segment, number)| {
            let name = |unit: usize| bucket.units[unit].unit.clone();
            SegmentPrediction {
                first: name(segment.units[0].0),
                last: name(segment.units[segment.units.len() - 1].0),
                device: segment.device,
                seconds: f64::from(number),
                joules: 1.0,
            }
        });
        let segments: Vec<_> = segments.collect();
        bucket.predicted_seconds = Some(segments.iter().map(|segment| segment.seconds).sum());
        bucket.segments = segments;
    }
    let mut runner = lowered.runner(backends, &plan, &options).expect("compiles");
    runner.executor.record(true);
    greedy(&mut runner, &random_tokens(&lowered, PROMPT, 6), TOKENS);
    (runner.executor.take_records().0, plan)
}

/// Spans of a trace by the name of their track.
fn tracks(trace: &Value) -> BTreeMap<String, Vec<&Value>> {
    let events = trace["traceEvents"].as_array().expect("a list");
    let named = events.iter().filter(|event| event["name"] == "thread_name");
    let names: BTreeMap<u64, &str> = named
        .map(|event| {
            let name = event["args"]["name"].as_str().expect("text");
            (event["tid"].as_u64().expect("a number"), name)
        })
        .collect();
    let mut tracks: BTreeMap<String, Vec<&Value>> = BTreeMap::new();
    for event in events.iter().filter(|event| event["ph"] == "X") {
        let name = names[&event["tid"].as_u64().expect("a number")];
        tracks.entry(name.to_owned()).or_default().push(event);
    }
    tracks
}

fn number(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}

#[test]
fn a_trace_has_a_track_per_device_link_and_host() {
    if with_gpu(true).is_none() {
        return;
    }
    let backends = Backends::detect(BackendOptions { own_memory: true, ..gpu_options(true) });
    let (records, plan) = recorded(&backends, &["prefill:blk.0.*=gpu0", "decode:blk.1.ffn=gpu0"]);
    let mut text = Vec::new();
    chrome_trace(&records, &plan, None).write(&mut text).expect("memory takes all");
    let trace: Value = serde_json::from_slice(&text).expect("JSON");
    let tracks = tracks(&trace);
    let up = format!("copies ram to vram0 by {GPU}");
    let down = format!("copies vram0 to ram by {GPU}");
    let expected = [&up, &down, "cpu0", GPU, HOST_TRACK];
    assert_eq!(tracks.keys().collect::<Vec<_>>(), expected);
    for (name, spans) in &tracks {
        let mut spans = spans.clone();
        spans.sort_by(|a, b| number(&a["ts"]).total_cmp(&number(&b["ts"])));
        let mut ends = 0.0;
        for span in spans {
            assert!(number(&span["ts"]) + 0.002 >= ends, "{name}: spans overlap: {span}");
            ends = number(&span["ts"]) + number(&span["dur"]);
        }
    }
    let steps = 4 + TOKENS - 1;
    assert_eq!(tracks[GPU].len(), steps, "one segment of each step");
    let first = &tracks[GPU][0];
    assert_eq!(
        (&first["name"], &first["cat"]),
        (&"blk.0.attn_in..blk.0.ffn".into(), &"prefill".into())
    );
    assert_eq!(first["args"]["tokens"], CHUNK);
    assert_eq!((&first["args"]["past"], &first["args"]["bucket"]), (&0.into(), &CHUNK.into()));
    assert_eq!(first["args"]["predicted_seconds"], 2.0, "its second segment");
    let last = tracks[GPU].last().expect("not empty");
    assert_eq!((&last["name"], &last["cat"]), (&"blk.1.ffn..blk.1.ffn".into(), &"decode".into()));
    assert_eq!(last["args"]["past"], PROMPT + TOKENS - 2);
    for span in &tracks[GPU] {
        // The software driver has a clock, and so have GPUs.
        let inside = number(&span["args"]["device_seconds"]);
        assert!(inside > 0.0 && inside * 1e6 <= number(&span["dur"]) + 0.002, "{span}");
    }
    // The layer's pages come back to RAM behind the prompt.
    let pages = tracks[&down].iter().filter(|span| {
        span["name"].as_str().is_some_and(|name| name.starts_with("KV pages of layer 0"))
    });
    assert_eq!(pages.count(), 1);
    let sampling = tracks[HOST_TRACK].iter().filter(|span| span["name"] == "sampling and text");
    assert_eq!(sampling.count(), TOKENS - 1);
}

#[test]
fn usage_tells_busy_shares_and_measured_beside_predicted() {
    let backends = Backends::detect(BackendOptions { exact: true, ..BackendOptions::default() });
    let (records, plan) = recorded(&backends, &["blk.0.ffn=ref0"]);
    let usage = Usage::of(&records, &plan);
    let names: Vec<&str> = usage.busy.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["cpu0", "ref0"]);
    for (name, share) in &usage.busy {
        assert!(*share > 0.0 && *share <= 1.0, "{name} {share}");
    }
    let [prefill, decode] = usage.phases[..] else { panic!("two phases: {usage:?}") };
    assert_eq!((prefill.phase, decode.phase), (Phase::Prefill, Phase::Decode));
    // Three full chunks; the fourth has other work to do.
    assert_eq!((prefill.steps, prefill.rows, prefill.full_rows), (3, CHUNK as f64, CHUNK));
    assert_eq!((decode.steps, decode.rows, decode.full_rows), (TOKENS - 1, 1.0, 1));
    let wants = plan.buckets.iter().map(|bucket| bucket.predicted_seconds);
    assert_eq!(
        [prefill.predicted_seconds, decode.predicted_seconds][..],
        wants.collect::<Vec<_>>()
    );
    let measured: f64 = records
        .iter()
        .filter(|r| r.phase == Phase::Decode)
        .map(|record| record.end().expect("ran").since(record.start().expect("ran")).seconds())
        .sum();
    assert!((decode.seconds - measured / 4.0).abs() < 1e-9);
    let text = usage.to_string();
    assert!(text.starts_with("busy cpu0 ") && text.contains("decode step of 1 row "), "{text}");
    assert!(text.contains(", predicted 6000.00 ms (measured "), "{text}");
    let nothing = Usage::of(&[], &plan);
    assert!(nothing.busy.is_empty() && nothing.phases.is_empty());
}
