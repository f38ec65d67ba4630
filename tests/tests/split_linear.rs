//! One product computed by several devices: the same result, at the same time.

use trefoil_devices_api::{DomainId, Phase};
use trefoil_engine::backends::{BackendOptions, Backends};
use trefoil_engine::model::{Lowered, ModelError, ModelOptions};
use trefoil_engine::runner::Runner;
use trefoil_graph::ops::Op;
use trefoil_scheduler::{LinearSplit, Plan, Share};
use trefoil_tests::devices::{GPU, gpu_options, with_gpu};
use trefoil_tests::running::{
    exact_options, greedy, logits_of_both_phases, lowered, model_file, random_tokens, runner,
};

const CHUNK: usize = 16;
const PROMPT: usize = 2 * CHUNK + 5;

fn options() -> ModelOptions {
    ModelOptions { chunk: CHUNK, ..exact_options("cpu0") }
}

/// Rows of a product's matrix.
fn rows(lowered: &Lowered, op: &str) -> usize {
    let node = lowered.graph.nodes().find(|&node| lowered.graph.node(node).name == op);
    match &lowered.graph.node(node.expect("is in the model")).op {
        Op::Linear(linear) => linear.weight.rows,
        other => panic!("{op} is a {}", other.kind()),
    }
}

/// A split whose first shares have these rows; the last device takes the rest.
fn split(lowered: &Lowered, op: &str, first: &[(&str, usize)], last: &str) -> LinearSplit {
    let rest = rows(lowered, op) - first.iter().map(|(_, rows)| rows).sum::<usize>();
    let last = [(last, rest)];
    let shares = first.iter().chain(&last);
    let shares = shares.map(|&(device, rows)| Share { device: device.to_owned(), rows });
    LinearSplit { op: op.to_owned(), shares: shares.collect() }
}

/// The usual plan with these splits in all buckets, by way of JSON.
fn plan(
    lowered: &Lowered,
    backends: &Backends,
    splits: &[LinearSplit],
) -> Result<Plan, ModelError> {
    let mut plan = lowered.plan(backends, &options()).expect("places");
    plan.buckets.iter_mut().for_each(|bucket| bucket.splits = splits.to_vec());
    let plan = Plan::from_json(&plan.to_json()).expect("what is written can be read");
    lowered.plan(backends, &ModelOptions { plan: Some(plan), ..options() })
}

fn split_runner(lowered: &Lowered, backends: &Backends, splits: &[LinearSplit]) -> Runner {
    let plan = plan(lowered, backends, splits).expect("is right");
    lowered.runner(backends, &plan, &options()).expect("compiles")
}

#[test]
fn parts_on_one_device_make_the_same_bits() {
    let backends = Backends::detect(BackendOptions { exact: true, ..BackendOptions::default() });
    for name in ["smollm", "gemma3", "llama"] {
        let lowered = lowered(&model_file(name));
        let prompt = random_tokens(&lowered, PROMPT, 4);
        let want = logits_of_both_phases(&mut runner(&lowered, &backends, &options()), &prompt);
        let of = |op, first: &[(&str, usize)]| split(&lowered, op, first, "cpu0");
        let cases = [
            vec![of("output", &[("cpu0", 1)])],
            vec![of("blk.0.ffn_down", &[("cpu0", 17)])],
            vec![of("blk.0.attn_q", &[("cpu0", 8), ("cpu0", 3)])],
            vec![
                of("blk.1.ffn_up", &[("cpu0", 20)]),
                of("blk.1.attn_output", &[("cpu0", 5)]),
                of("output", &[("cpu0", 100)]),
            ],
        ];
        for splits in cases {
            let got =
                logits_of_both_phases(&mut split_runner(&lowered, &backends, &splits), &prompt);
            let same = want.iter().zip(&got).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same && want.len() == got.len(), "{name}: {splits:?}");
        }
    }
}

#[test]
fn shares_of_two_devices_give_the_same_greedy_tokens() {
    let mut found = vec![(
        "ref0",
        Backends::detect(BackendOptions { exact: true, ..BackendOptions::default() }),
    )];
    if with_gpu(true).is_some() {
        found.push((GPU, Backends::detect(gpu_options(true))));
        let card = BackendOptions { own_memory: true, ..gpu_options(true) };
        found.push((GPU, Backends::detect(card)));
    }
    let lowered = lowered(&model_file("smollm"));
    let prompt = random_tokens(&lowered, PROMPT, 12);
    for (other, backends) in &found {
        let want = greedy(&mut runner(&lowered, backends, &options()), &prompt, 12);
        let cases = [
            vec![split(&lowered, "output", &[("cpu0", 60)], other)],
            vec![split(&lowered, "output", &[(other, 60)], "cpu0")],
            vec![
                split(&lowered, "blk.0.ffn_down", &[(other, 7)], other),
                split(&lowered, "blk.1.ffn_gate", &[("cpu0", 33)], other),
            ],
        ];
        for splits in cases {
            let mut runner = split_runner(&lowered, backends, &splits);
            assert_eq!(greedy(&mut runner, &prompt, 12), want, "{splits:?}");
        }
        // A unit on the other device, which shares its product with this one.
        let pins = vec![format!("blk.1.ffn={other}").parse().expect("a pin")];
        let options = ModelOptions { pins, ..options() };
        let mut plan = lowered.plan(backends, &options).expect("places");
        let split = split(&lowered, "blk.1.ffn_down", &[("cpu0", 19)], other);
        plan.buckets.iter_mut().for_each(|bucket| bucket.splits = vec![split.clone()]);
        let mut runner = lowered.runner(backends, &plan, &options).expect("compiles");
        assert_eq!(greedy(&mut runner, &prompt, 12), want, "{split:?}");
    }
}

#[test]
fn shares_are_computed_at_the_same_time_and_joined() {
    let backends = Backends::detect(BackendOptions { exact: true, ..BackendOptions::default() });
    let lowered = lowered(&model_file("smollm"));
    let splits = [split(&lowered, "output", &[("cpu0", 60)], "ref0")];
    let mut runner = split_runner(&lowered, &backends, &splits);
    runner.executor.record(true);
    greedy(&mut runner, &random_tokens(&lowered, PROMPT, 1), 6);
    let (steps, _) = runner.executor.take_records();
    for step in &steps {
        let labels: Vec<&str> = step.segments.iter().map(|segment| &*segment.label).collect();
        let phase = step.phase.name();
        assert_eq!(labels.len(), 3, "before, and two shares: {labels:?}");
        assert_eq!(labels[1], format!("{phase} output rows 0..60"));
        let [before, one, other] = [0, 1, 2].map(|at| step.segments[at].times);
        assert_eq!((&*step.segments[1].device, &*step.segments[2].device), ("cpu0", "ref0"));
        assert!(before.end <= one.start && before.end <= other.start, "both after what they read");
        let joins: Vec<_> = step.copies.iter().filter(|c| c.label.contains("join")).collect();
        assert_eq!(joins.len(), 2);
        let ends = one.end.max(other.end);
        assert!(joins.iter().all(|join| join.times.start >= ends), "after both parts");
    }
    // Neither waits for the other: the second begins before the first ends, most of the time.
    let decodes = steps.iter().filter(|step| step.phase == Phase::Decode);
    let queued = decodes.filter(|step| {
        let (one, other) = (step.segments[1].times, step.segments[2].times);
        other.start < one.end || one.start < other.end
    });
    assert!(queued.count() > 0);
}

#[test]
fn memory_of_parts_is_in_the_plan() {
    let backends = Backends::detect(BackendOptions::default());
    let lowered = lowered(&model_file("smollm"));
    let held = || {
        let holders = backends.memory.holders(DomainId::HOST);
        let found = holders.into_iter().find(|(name, _)| name == "activations");
        found.map_or(0, |(_, bytes)| bytes.0)
    };
    let splits = [split(&lowered, "blk.0.ffn_down", &[("cpu0", 20)], "ref0")];
    let plan = plan(&lowered, &backends, &splits).expect("is right");
    let _runner = lowered.runner(&backends, &plan, &options()).expect("compiles");
    let shape = plan.buckets[0].bucket;
    let pieces = plan.buckets[0].pieces(&lowered.graph);
    assert_eq!(pieces.len(), 3);
    let outputs = pieces.iter().flat_map(|piece| &piece.segment.outputs);
    let whole: usize = outputs.map(|&node| shape.tensor_bytes(&lowered.graph, node)).sum();
    let parts = rows(&lowered, "blk.0.ffn_down") * CHUNK * 4;
    assert_eq!(held() as usize, whole + parts);
}

#[test]
fn splits_that_cannot_be_are_refused_with_the_reason() {
    let backends = Backends::detect(BackendOptions::default());
    let lowered = lowered(&model_file("smollm"));
    let refuse = |splits: &[LinearSplit]| {
        let error = plan(&lowered, &backends, splits).expect_err("wrong");
        error.to_string()
    };
    let right = split(&lowered, "output", &[("cpu0", 60)], "ref0");
    let all = rows(&lowered, "output");
    let with = |op: &str, shares: &[(&str, usize)]| LinearSplit {
        op: op.to_owned(),
        shares: shares.iter().map(|&(d, rows)| Share { device: d.to_owned(), rows }).collect(),
    };
    for (split, want) in [
        (with("output", &[("cpu0", 1), ("ref0", 2)]), format!("{all} together, got 1 + 2")),
        (with("output", &[("cpu0", 0), ("ref0", all)]), "at least 1 row".to_owned()),
        (with("output", &[("cpu0", usize::MAX), ("ref0", all)]), format!("{all} together")),
        (with("output", &[]), format!("{all} together")),
        (with("output", &[("cpu0", 1), ("npu7", all - 1)]), "\"npu7\" is not here".to_owned()),
        (with("blk.0.attn", &[("cpu0", 1)]), "product with one matrix".to_owned()),
        (with("output_norm", &[("cpu0", 1)]), "op of kind".to_owned()),
        (with("nothing", &[("cpu0", 1)]), "no op of that name".to_owned()),
    ] {
        let text = refuse(&[split]);
        assert!(text.contains(&want), "{text}: expected {want}");
    }
    let text = refuse(&[right.clone(), right]);
    assert!(text.contains("one split of an op, got two"), "{text}");
}
