//! Chunks of a prompt that are under way at once on several devices: the same bits, sooner.

use std::sync::Arc;

use trefoil_devices_api::{Device, DeviceError, DomainId, MemoryManager, Phase};
use trefoil_devices_sim::{SimDevice, SimSpec};
use trefoil_engine::backends::{BackendOptions, Backends};
use trefoil_engine::executor::{ExecuteError, Executor};
use trefoil_engine::kv::KvPool;
use trefoil_engine::model::{Lowered, ModelOptions};
use trefoil_engine::records::StepRecord;
use trefoil_engine::runner::{Outputs, RunError, Runner, Sequence};
use trefoil_scheduler::{DeviceFacts, Pin, Request, place};
use trefoil_telemetry::{Bytes, Clock, Nanos, VirtualClock};
use trefoil_tests::devices::{GPU, gpu_options, with_gpu};
use trefoil_tests::faulty::Faulty;
use trefoil_tests::running::{
    demo, exact_options, feed, greedy, logits_of_both_phases, lowered, model_file, random_tokens,
    runner,
};

const CHUNK: usize = 16;

fn options(pins: &[&str]) -> ModelOptions {
    let pins = pins.iter().map(|pin| pin.parse().expect("a pin")).collect();
    ModelOptions { pins, chunk: CHUNK, ..exact_options("cpu0") }
}

#[track_caller]
fn same_bits(one: &[f32], other: &[f32], what: &str) {
    assert_eq!(one.len(), other.len(), "{what}");
    let differ = one.iter().zip(other).position(|(a, b)| a.to_bits() != b.to_bits());
    assert_eq!(differ, None, "{what}: first difference");
}

/// Both ways give the same bits, and so does a second round.
fn check(backends: &Backends, lowered: &Lowered, pins: &[&str], at_once: usize) {
    // Several chunks, one that is not full, and with 161 a last one of a single row.
    for len in [7 * CHUNK + 5, 10 * CHUNK + 1] {
        let prompt = random_tokens(lowered, len, len as u64);
        let mut runner = runner(lowered, backends, &options(pins));
        assert_eq!(runner.executor.steps_at_once(), at_once, "{pins:?}");
        runner.executor.limit_steps_at_once(1);
        let want = logits_of_both_phases(&mut runner, &prompt);
        runner.executor.limit_steps_at_once(at_once);
        for round in 0..2 {
            let got = logits_of_both_phases(&mut runner, &prompt);
            same_bits(&want, &got, &format!("{pins:?}, {len} tokens, round {round}"));
        }
    }
}

const HALVES: &[&str] = &["blk.0.*=ref0", "embed=ref0"];
const INTERLEAVED: &[&str] = &["blk.*.attn=ref0"];

#[test]
fn chunks_at_once_give_the_same_bits_on_host_devices() {
    let backends = Backends::detect(BackendOptions { exact: true, ..BackendOptions::default() });
    for name in ["smollm", "gemma3", "qwen3moe"] {
        let lowered = lowered(&model_file(name));
        for pins in [HALVES, INTERLEAVED, &["head=ref0"], &["embed=ref0", "blk.1.attn_out=ref0"]] {
            check(&backends, &lowered, pins, 2);
        }
        check(&backends, &lowered, &[], 1);
        check(&backends, &lowered, &["decode:blk.*.attn=ref0"], 1);
    }
}

#[test]
fn chunks_at_once_give_the_same_bits_with_a_gpu_and_with_a_card() {
    if with_gpu(true).is_none() {
        return;
    }
    for own_memory in [false, true] {
        let backends = Backends::detect(BackendOptions { own_memory, ..gpu_options(true) });
        let lowered = lowered(&model_file("smollm"));
        check(&backends, &lowered, &["blk.0.*=gpu0"], 2);
        check(&backends, &lowered, &["blk.*.attn=gpu0"], 2);
        check(&backends, &lowered, &["prefill:blk.0.*=gpu0", "prefill:head=ref0"], 3);
    }
}

/// Steps of which a segment ran while another step's ran on another device.
fn overlaps(steps: &[StepRecord]) -> usize {
    let pairs = steps.iter().zip(&steps[1..]);
    let both = pairs.filter(|(one, next)| {
        one.segments.iter().any(|a| {
            next.segments.iter().any(|b| {
                a.device != b.device && a.times.start < b.times.end && b.times.start < a.times.end
            })
        })
    });
    both.count()
}

#[test]
fn records_show_two_devices_at_work_at_once() {
    let backends = Backends::detect(BackendOptions::default());
    let lowered = demo();
    let prompt = random_tokens(&lowered, 6 * CHUNK, 2);
    let mut runner = runner(&lowered, &backends, &options(&["blk.3.*=ref0"]));
    let mut records = |limit: usize| {
        runner.executor.limit_steps_at_once(limit);
        runner.executor.record(true);
        let mut sequence = runner.begin(512);
        runner.feed(&mut sequence, &prompt, Outputs::Last, |_, _| ()).expect("runs");
        runner.end(sequence);
        let (steps, dropped) = runner.executor.take_records();
        assert_eq!((steps.len(), dropped), (6, 0));
        for (number, step) in steps.iter().enumerate() {
            assert_eq!((step.tokens, step.past), (CHUNK, number * CHUNK));
            assert_eq!(step.outputs, usize::from(number == 5));
            assert_eq!((step.phase, step.segments.len()), (Phase::Prefill, 3));
            assert_eq!(step.segments[1].label.as_ref(), "prefill blk.3.attn_in..blk.3.ffn");
            let devices: Vec<&str> = step.segments.iter().map(|s| &*s.device).collect();
            assert_eq!(devices, ["cpu0", "ref0", "cpu0"]);
            for (index, segment) in step.segments.iter().enumerate() {
                let times = segment.times;
                assert_eq!(segment.index, index);
                assert!(times.queued <= times.start && times.start < times.end, "{times:?}");
            }
            assert!(step.segments[0].times.end <= step.segments[1].times.start, "in order");
            assert!(step.segments[1].times.end <= step.segments[2].times.start, "in order");
        }
        steps
    };
    assert_eq!(overlaps(&records(1)), 0, "one after the other");
    let steps = records(2);
    assert!(overlaps(&steps) >= 3, "{} of 5 pairs overlap", overlaps(&steps));
    // Off means off.
    runner.executor.record(false);
    let mut sequence = runner.begin(512);
    feed(&mut runner, &mut sequence, &[1]);
    assert!(runner.executor.take_records().0.is_empty());
}

/// A runner of a model on simulated devices.
fn simulated(
    specs: Vec<SimSpec>,
    pins: &[&str],
) -> (Arc<VirtualClock>, Vec<Arc<dyn Device>>, Runner) {
    let lowered = demo();
    let memory = MemoryManager::default();
    memory.set_budget(DomainId::HOST, Bytes(4 << 30));
    let clock: Arc<VirtualClock> = Arc::default();
    let make = |spec| Arc::new(SimDevice::new(spec, clock.clone(), memory.clone())) as _;
    let devices: Vec<Arc<dyn Device>> = specs.into_iter().map(make).collect();
    let facts = devices.iter().map(|device| DeviceFacts {
        name: device.info().name.clone(),
        domain: DomainId::HOST,
        only_when_named: true,
    });
    let facts: Vec<DeviceFacts> = facts.collect();
    let pins: Vec<Pin> = pins.iter().map(|pin| pin.parse().expect("a pin")).collect();
    let options = ModelOptions { chunk: CHUNK, ..ModelOptions::default() };
    let plan = place(&Request {
        model: lowered.model_ref(),
        graph: &lowered.graph,
        devices: &facts,
        device: Some("sim0"),
        pins: &pins,
        buckets: &lowered.buckets(&options),
        context: 512,
        kv_element_bytes: 2,
    })
    .expect("places");
    let kv = KvPool::new(&memory, &[], lowered.graph.kv(), &plan.kv, options.kv_type, 16, 512);
    let kv = kv.expect("fits");
    let executor = Executor::new(&lowered.graph, &plan, &devices, &memory, kv).expect("compiles");
    let runner = Runner::new(executor, &lowered.hyper, lowered.vocabulary(), CHUNK, 512);
    (clock, devices, runner)
}

/// Simulated seconds of a prompt of `chunks` chunks.
fn prompt_seconds(pins: &[&str], devices: usize, chunks: usize, limit: usize) -> f64 {
    // Only the start counts: every segment takes 1 ms.
    let spec = |n| SimSpec::new(&format!("sim{n}"), 1e18, 1e18, Nanos(1_000_000));
    let (clock, _, mut runner) = simulated((0..devices).map(spec).collect(), pins);
    runner.executor.limit_steps_at_once(limit);
    let mut sequence = runner.begin(512);
    let prompt = vec![1; chunks * CHUNK];
    runner.feed(&mut sequence, &prompt, Outputs::Last, |_, _| ()).expect("runs");
    assert_eq!(sequence.len(), prompt.len());
    clock.now().seconds()
}

#[test]
fn simulated_devices_work_side_by_side() {
    let close = |got: f64, want: f64| {
        assert!((got - want).abs() < 0.01 * want, "{got} s, expected {want} s");
    };
    // Two segments on two devices: n + 1 milliseconds instead of 2 n.
    let two = &["blk.4.*=sim1", "blk.5.*=sim1", "blk.6.*=sim1", "blk.7.*=sim1", "head=sim1"];
    close(prompt_seconds(two, 2, 12, 1), 0.024);
    close(prompt_seconds(two, 2, 12, 2), 0.013);
    // Segments that go back and forth: pairs of chunks in turns, 2 chunks in s + 1.
    let turns = &["blk.2.*=sim1", "blk.5.*=sim1", "head=sim1"];
    close(prompt_seconds(turns, 2, 12, 1), 0.072);
    close(prompt_seconds(turns, 2, 12, 2), 0.037);
    // Back on the first device at the end: its queue stays free for the next chunk.
    let back = &["blk.2.*=sim1"];
    close(prompt_seconds(back, 2, 12, 1), 0.036);
    let seconds = prompt_seconds(back, 2, 12, 2);
    assert!(seconds < 0.026, "{seconds} s");
    // Three devices, three chunks at once.
    let three = &["blk.0.*=sim1", "blk.1.*=sim1", "blk.2.*=sim1", "embed=sim1", "head=sim2"];
    close(prompt_seconds(three, 3, 12, 1), 0.036);
    close(prompt_seconds(three, 3, 12, 3), 0.014);
    // One device: as before.
    close(prompt_seconds(&[], 1, 12, 3), 0.012);
}

#[test]
fn a_device_lost_in_the_middle_of_a_prompt_is_said_once() {
    let spec = |n| SimSpec::new(&format!("sim{n}"), 1e12, 1e11, Nanos(1000));
    // Its third chunk.
    let lost = SimSpec { lost_at: Some(3), ..spec(1) };
    let (_, devices, mut runner) = simulated(vec![spec(0), lost], &["head=sim1"]);
    let mut sequence = runner.begin(512);
    let prompt = vec![1; 8 * CHUNK];
    let error = runner.feed(&mut sequence, &prompt, Outputs::Last, |_, _| ());
    match error.expect_err("lost") {
        RunError::Execute(ExecuteError::Failed(failure)) => assert_eq!(failure.device, "sim1"),
        RunError::Execute(ExecuteError::Device(DeviceError::Lost { .. })) => {}
        other => panic!("expected the loss, got {other}"),
    }
    assert_eq!(sequence.len() % CHUNK, 0, "whole chunks only");
    assert!(sequence.len() <= 2 * CHUNK, "{} tokens", sequence.len());
    devices[1].reset().expect("comes back");
    let rest = prompt[sequence.len()..].to_vec();
    runner.feed(&mut sequence, &rest, Outputs::Last, |_, _| ()).expect("runs again");
    assert_eq!(sequence.len(), prompt.len());
}

#[test]
fn a_failure_in_the_middle_leaves_a_clean_state() {
    let lowered = lowered(&model_file("smollm"));
    let mut backends =
        Backends::detect(BackendOptions { exact: true, ..BackendOptions::default() });
    let at = backends.devices.iter().position(|d| d.info().name == "ref0").expect("is here");
    let faulty = Arc::new(Faulty::new(backends.devices[at].clone()));
    backends.devices[at] = faulty.clone();
    let prompt = random_tokens(&lowered, 9 * CHUNK + 3, 8);
    // The first segment, one in the middle, and the last: behind it nothing waits.
    for pins in [HALVES, INTERLEAVED, &["head=ref0"]] {
        let mut runner = runner(&lowered, &backends, &options(pins));
        let want = logits_of_both_phases(&mut runner, &prompt);
        for fails_at in [1, 2, 3, 5, 8] {
            faulty.fail(fails_at, |_| true);
            let mut sequence: Sequence = runner.begin(512);
            let mut got: Vec<f32> = Vec::new();
            let result =
                runner.feed(&mut sequence, &prompt, Outputs::All, |_, row| got.extend(row));
            match result.expect_err("one submission failed") {
                RunError::Execute(ExecuteError::Failed(failure)) => {
                    assert_eq!(failure.device, "ref0", "{failure}");
                }
                other => panic!("expected the failure, got {other}"),
            }
            // What was told is right, and the sequence goes on from there.
            let width = want.len() / (prompt.len() + 4);
            assert_eq!(got.len(), sequence.len() * width);
            let rest = prompt[sequence.len()..].to_vec();
            got.extend(feed(&mut runner, &mut sequence, &rest));
            same_bits(&want[..got.len()], &got, &format!("{pins:?}, failed at {fails_at}"));
            assert_eq!(got.len(), prompt.len() * width);
            runner.end(sequence);
            assert_eq!(runner.executor.kv.free_pages(), runner.executor.kv.total_pages());
        }
    }
}

#[test]
fn a_cancelled_prompt_ends_between_chunks() {
    let backends = Backends::detect(BackendOptions::default());
    let lowered = lowered(&model_file("smollm"));
    let mut runner = runner(&lowered, &backends, &options(HALVES));
    let prompt = random_tokens(&lowered, 8 * CHUNK, 4);
    let want = greedy(&mut runner, &prompt, 6);
    let mut sequence = runner.begin(512);
    let asked = std::cell::Cell::new(0);
    let go_on = || {
        asked.set(asked.get() + 1);
        asked.get() <= 3
    };
    let result = runner.feed_while(&mut sequence, &prompt, Outputs::Last, go_on, |_, _| ());
    assert!(matches!(result, Err(RunError::Cancelled)));
    assert_eq!(sequence.len(), 3 * CHUNK, "what was submitted is done");
    runner.end(sequence);
    assert_eq!(greedy(&mut runner, &prompt, 6), want);
}

#[test]
fn memory_of_all_steps_at_once_is_in_the_plan() {
    let backends = Backends::detect(BackendOptions::default());
    let lowered = lowered(&model_file("smollm"));
    let held = || {
        let holders = backends.memory.holders(DomainId::HOST);
        let found = holders.into_iter().find(|(name, _)| name == "activations");
        found.map_or(0, |(_, bytes)| bytes.0)
    };
    for (pins, steps) in [(HALVES, 2), (INTERLEAVED, 2), (&[][..], 1)] {
        let options = options(pins);
        let plan = lowered.plan(&backends, &options).expect("places");
        let runner = lowered.runner(&backends, &plan, &options).expect("compiles");
        assert_eq!(runner.executor.steps_at_once(), steps);
        let planned = plan.memory.iter().find(|memory| memory.domain == DomainId::HOST);
        assert_eq!(planned.expect("listed").activations.0, held(), "{pins:?}");
        drop(runner);
        assert_eq!(held(), 0);
    }
}

#[test]
fn a_gpu_says_its_own_time() {
    let Some(backends) = with_gpu(true) else { return };
    let lowered = lowered(&model_file("smollm"));
    let mut runner = runner(&lowered, backends, &options(&["blk.0.*=gpu0"]));
    runner.executor.record(true);
    greedy(&mut runner, &random_tokens(&lowered, 20, 1), 4);
    let (steps, _) = runner.executor.take_records();
    let all: Vec<_> = steps.iter().flat_map(|step| &step.segments).collect();
    assert!(all.iter().any(|segment| &*segment.device == GPU));
    for segment in all {
        let times = segment.times;
        match times.device_time {
            Some(time) => {
                assert_eq!(&*segment.device, GPU, "only it has a clock");
                assert!(time <= times.span() && times.took() == time, "{times:?}");
            }
            None => assert_eq!(times.took(), times.span()),
        }
    }
}
