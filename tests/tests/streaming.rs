//! Weights that a plan streams to a card: the same tokens, in less memory than the weights take.

use trefoil_devices_api::{DomainId, Phase};
use trefoil_engine::backends::{BackendOptions, Backends};
use trefoil_engine::model::{Lowered, ModelError, ModelOptions};
use trefoil_engine::records::CopyKind;
use trefoil_engine::runner::Runner;
use trefoil_scheduler::Plan;
use trefoil_telemetry::Bytes;
use trefoil_tests::devices::{GPU, gpu_options, with_gpu};
use trefoil_tests::running::{exact_options, greedy, lowered, model_file, random_tokens, runner};

const CHUNK: usize = 16;
/// Several chunks, the last of them short.
const PROMPT: usize = 2 * CHUNK + 5;
const TOKENS: usize = 12;

/// The GPU as a card.
fn card() -> Option<Backends> {
    with_gpu(true)?;
    Some(Backends::detect(BackendOptions { own_memory: true, ..gpu_options(true) }))
}

fn options(pins: &[&str]) -> ModelOptions {
    let pins = pins.iter().map(|pin| pin.parse().expect("a pin")).collect();
    ModelOptions { chunk: CHUNK, context: Some(64), pins, ..exact_options("cpu0") }
}

/// The plan of these pins with the weights of units in prefill streamed, by way of JSON.
fn plan(
    lowered: &Lowered,
    backends: &Backends,
    pins: &[&str],
    streams: impl Fn(&str) -> bool,
) -> Result<Plan, ModelError> {
    let mut plan = lowered.plan(backends, &options(pins)).expect("places");
    for bucket in plan.buckets.iter_mut().filter(|b| b.bucket.phase == Phase::Prefill) {
        let on_card = bucket.units.iter().filter(|unit| unit.device == GPU);
        let names = on_card.map(|unit| unit.unit.clone()).filter(|name| streams(name));
        bucket.streamed = names.collect();
        assert!(!bucket.streamed.is_empty());
    }
    let plan = Plan::from_json(&plan.to_json()).expect("what is written can be read");
    lowered.plan(backends, &ModelOptions { plan: Some(plan), ..options(&[]) })
}

fn made(lowered: &Lowered, backends: &Backends, plan: &Plan) -> Runner {
    lowered.runner(backends, plan, &options(&[])).expect("compiles")
}

/// Bytes that a card holds for a purpose.
fn held(backends: &Backends, what: &str) -> u64 {
    let gpu = backends.devices.iter().find(|device| device.info().name == GPU).expect("is here");
    let holders = backends.memory.holders(gpu.domains()[0].id);
    holders.iter().filter(|(name, _)| name == what).map(|(_, bytes)| bytes.0).sum()
}

#[test]
fn streamed_weights_give_the_same_greedy_tokens() {
    let Some(backends) = card() else { return };
    for name in ["smollm", "gemma3", "qwen3moe"] {
        let lowered = lowered(&model_file(name));
        let prompt = random_tokens(&lowered, PROMPT, 3);
        let want = greedy(&mut runner(&lowered, &backends, &options(&[])), &prompt, TOKENS);
        let all: &dyn Fn(&str) -> bool = &|name: &str| name.starts_with("blk.");
        let some: &dyn Fn(&str) -> bool =
            &|name: &str| name.ends_with("ffn") || name.ends_with("moe");
        let first: &dyn Fn(&str) -> bool = &|name: &str| name.starts_with("blk.0.");
        let mixed = match name {
            "qwen3moe" => "prefill:blk.*.moe=gpu0",
            _ => "prefill:blk.*.ffn=gpu0",
        };
        // Keys and values go with attention, to and fro.
        for (pins, streams) in [
            (&["prefill:*=gpu0"][..], all),
            (&["prefill:*=gpu0"][..], &|_: &str| true),
            (&["*=gpu0"][..], some),
            (&[mixed][..], some),
            (&["prefill:blk.0.*=gpu0", "prefill:blk.1.attn_out=gpu0"][..], first),
        ] {
            let plan = plan(&lowered, &backends, pins, streams).expect("is right");
            let mut runner = made(&lowered, &backends, &plan);
            assert_eq!(greedy(&mut runner, &prompt, TOKENS), want, "{name}, {pins:?}");
            // Again: what the buffers hold from before is not taken for what is wanted.
            assert_eq!(greedy(&mut runner, &prompt, TOKENS), want, "{name}, {pins:?}, again");
            drop(runner);
            assert_eq!(held(&backends, "weights"), 0, "all is given back");
        }
    }
}

#[test]
fn a_card_too_small_for_the_weights_reads_the_prompt_with_two_buffers() {
    let Some(backends) = card() else { return };
    let lowered = lowered(&model_file("smollm"));
    let pins = ["prefill:*=gpu0"];
    let streams = |name: &str| name.starts_with("blk.") || name == "embed" || name == "head";
    let want = {
        let prompt = random_tokens(&lowered, PROMPT, 9);
        greedy(&mut runner(&lowered, &backends, &options(&[])), &prompt, TOKENS)
    };
    // What everything but the weights takes, and what the plan says of them.
    let streamed = plan(&lowered, &backends, &pins, streams).expect("is right");
    let runner = made(&lowered, &backends, &streamed);
    let buffers = held(&backends, "weights");
    let pieces: Vec<_> = streamed
        .buckets
        .iter()
        .flat_map(|bucket| bucket.pieces(&lowered.graph))
        .filter(|piece| piece.streamed)
        .collect();
    assert!(pieces.len() > 3, "{}", pieces.len());
    let sizes =
        pieces.iter().map(|p| trefoil_devices_api::streamed_bytes(&lowered.graph, &p.segment));
    let (most, all) = sizes.fold((0, 0), |(most, all), size| (size.max(most), all + size));
    assert_eq!(buffers, 2 * most as u64, "two buffers of the largest piece");
    assert!((all as u64) > buffers);
    drop(runner);
    let gpu = backends.devices.iter().find(|device| device.info().name == GPU).expect("is here");
    let kept = lowered.runner(
        &backends,
        &lowered.plan(&backends, &options(&pins)).expect("places"),
        &options(&pins),
    );
    let kept = kept.expect("fits without a limit");
    let whole = backends.memory.used(gpu.domains()[0].id).0;
    let weights = held(&backends, "weights");
    drop(kept);
    // Room for the buffers and all else, but not for the weights.
    let limit = whole - weights + buffers + (weights - buffers) / 2;
    backends.memory.set_budget(gpu.domains()[0].id, Bytes(limit));
    let refused = lowered.runner(
        &backends,
        &lowered.plan(&backends, &options(&pins)).expect("places"),
        &options(&pins),
    );
    let error = refused.expect_err("the weights do not fit").to_string();
    assert!(error.contains("need") && error.contains("free"), "{error}");
    let plan = plan(&lowered, &backends, &pins, streams).expect("is right");
    let mut runner = made(&lowered, &backends, &plan);
    let prompt = random_tokens(&lowered, PROMPT, 9);
    assert_eq!(greedy(&mut runner, &prompt, TOKENS), want);
}

#[test]
fn copies_of_weights_go_beside_the_work_and_before_what_needs_them() {
    let Some(backends) = card() else { return };
    let lowered = lowered(&model_file("smollm"));
    // More pieces than buffers, so that every step copies.
    let plan = plan(&lowered, &backends, &["prefill:*=gpu0"], |_| true).expect("is right");
    let mut runner = made(&lowered, &backends, &plan);
    runner.executor.record(true);
    greedy(&mut runner, &random_tokens(&lowered, PROMPT, 1), 3);
    let (steps, _) = runner.executor.take_records();
    let prefill: Vec<_> = steps.iter().filter(|step| step.phase == Phase::Prefill).collect();
    assert_eq!(prefill.len(), 3);
    for step in prefill {
        let loads: Vec<_> = step.copies.iter().filter(|c| c.kind == CopyKind::Weights).collect();
        assert!(loads.len() >= 2, "{loads:?}");
        for load in &loads {
            assert_eq!(load.from, DomainId::HOST);
            let piece = load.label.rsplit(' ').next().expect("a name");
            let run = step.segments.iter().find(|s| s.label.ends_with(piece)).expect("runs");
            assert!(load.times.end <= run.times.start, "{}", load.label);
        }
        // The second copy did not wait for the first piece's run to end before it was asked for.
        let first = step.segments.iter().find(|s| s.label.contains("blk.0.")).expect("runs");
        assert!(loads[1].times.queued <= first.times.end, "asked for ahead");
    }
    let decode = steps.iter().filter(|step| step.phase == Phase::Decode);
    assert!(decode.flat_map(|step| &step.copies).all(|copy| copy.kind != CopyKind::Weights));
}

#[test]
fn what_cannot_be_streamed_is_refused_with_the_reason() {
    let backends = Backends::detect(BackendOptions { exact: true, ..BackendOptions::default() });
    let lowered = lowered(&model_file("smollm"));
    let with = |streamed: &[&str]| {
        let mut plan = lowered.plan(&backends, &options(&[])).expect("places");
        plan.buckets[0].streamed = streamed.iter().map(ToString::to_string).collect();
        lowered.plan(&backends, &ModelOptions { plan: Some(plan), ..options(&[]) })
    };
    let refused = |streamed: &[&str]| with(streamed).expect_err("wrong").to_string();
    assert!(refused(&["blk.99.ffn"]).contains("a unit of the model, got none of that name"));
    assert!(refused(&["blk.0.ffn", "blk.0.ffn"]).contains("each unit once, got it twice"));
    // The CPU reads the file's pages: the plan is right, the device is not.
    let plan = with(&["blk.0.ffn"]).expect("a plan");
    let error = lowered.runner(&backends, &plan, &options(&[])).expect_err("refused");
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    assert!(text.contains("memory of its own"), "{text}");
}
