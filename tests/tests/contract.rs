//! The device contract, on every device: fences, failure, memory, loss.

use std::sync::Arc;
use std::time::Duration;

use trefoil_devices_api::{
    AllocRequest, Bucket, Device, DeviceError, DomainId, Failure, Job, LostReason, MemoryManager,
    Phase, Point, Points, Purpose, Recovery, Submission, SubmissionId, Timeline, Work,
};
use trefoil_devices_sim::{SimDevice, SimSpec};
use trefoil_engine::backends::Backends;
use trefoil_engine::executor::{ExecuteError, Executor};
use trefoil_engine::host_access::{read_buffer, write_buffer};
use trefoil_engine::kv::KvPool;
use trefoil_engine::model::{Lowered, ModelOptions, open_file};
use trefoil_kernels::cases;
use trefoil_scheduler::{DeviceFacts, ModelRef, Pin, Request, place};
use trefoil_telemetry::{Bytes, Clock, Nanos, VirtualClock};
use trefoil_tests::devices::{gpu_options, has_gpu};

fn simulated(spec: SimSpec) -> (Arc<VirtualClock>, Arc<dyn Device>) {
    let memory = MemoryManager::default();
    memory.set_budget(DomainId::HOST, Bytes(1 << 30));
    let clock: Arc<VirtualClock> = Arc::default();
    (clock.clone(), Arc::new(SimDevice::new(spec, clock, memory)))
}

/// Every device that is here, and a simulated one.
fn devices() -> Vec<Arc<dyn Device>> {
    let found = Backends::detect(gpu_options(false));
    has_gpu(&found);
    let mut all = found.devices;
    all.push(simulated(SimSpec::new("sim0", 1e12, 1e11, Nanos(1000))).1);
    all
}

fn barrier(waits: Vec<Point>, signals: Vec<Point>) -> Submission {
    Submission {
        waits: waits.into(),
        signals: signals.into(),
        work: Work::Barrier,
        label: "barrier".into(),
    }
}

fn point(timeline: &Arc<Timeline>, value: u64) -> Point {
    Point { timeline: timeline.clone(), value }
}

#[test]
fn work_waits_for_its_fences_and_signals_its_own() {
    for device in devices() {
        let (gate, done): (Arc<Timeline>, Arc<Timeline>) = Default::default();
        let name = &device.info().name;
        if name.starts_with("sim") {
            gate.signal(1); // simulated work ends while it is submitted
        }
        device.submit(0, barrier(vec![point(&gate, 1)], vec![point(&done, 1)])).expect("queues");
        if !name.starts_with("sim") {
            assert!(done.wait_for(1, Duration::from_millis(30)).is_none(), "{name} did not wait");
            gate.signal(1);
        }
        done.wait(1).expect("reached");
        let mut completions = Vec::new();
        device.drain(&mut completions);
        assert_eq!(completions.len(), 1, "{name}");
        assert!(completions[0].queued <= completions[0].start);
        assert!(completions[0].start <= completions[0].end);
    }
}

#[test]
fn a_failure_reaches_what_waits_for_it_and_nothing_else() {
    for device in devices() {
        let (gate, done): (Arc<Timeline>, Arc<Timeline>) = Default::default();
        let error = DeviceError::Lost { reason: LostReason::Removed, epoch: 3 };
        let cause = Failure {
            origin: SubmissionId(9),
            device: "gpu9".to_owned(),
            label: "far away".to_owned(),
            error,
        };
        gate.fail(Arc::new(cause));
        device.submit(0, barrier(vec![point(&gate, 1)], vec![point(&done, 1)])).expect("queues");
        let failure = done.wait(1).expect_err("failed upstream");
        assert_eq!((failure.device.as_str(), failure.origin), ("gpu9", SubmissionId(9)));
        assert_eq!(failure.error.recovery(), Recovery::Replan);
        let after: Arc<Timeline> = Arc::default();
        device.submit(0, barrier(Vec::new(), vec![point(&after, 1)])).expect("queues");
        after.wait(1).expect("the queue goes on");
    }
}

#[test]
fn copies_move_bytes_and_refuse_unequal_lengths() {
    for device in devices().into_iter().filter(|d| !d.info().name.starts_with("sim")) {
        let domain = device.domains()[0].id;
        let request = AllocRequest { domain, bytes: 128, purpose: Purpose::Activations };
        let (from, to) =
            (device.alloc(request).expect("fits"), device.alloc(request).expect("fits"));
        write_buffer(device.as_ref(), &from, &[7; 128]).expect("writes");
        write_buffer(device.as_ref(), &to, &[0; 128]).expect("writes");
        let done: Arc<Timeline> = Arc::default();
        let copy = |from_range: std::ops::Range<usize>, value| Submission {
            waits: Points::new(),
            signals: Points::from_iter([point(&done, value)]),
            work: Work::Copy {
                from: from.view(from_range).expect("inside"),
                to: to.view(64..128).expect("inside"),
            },
            label: "copy".into(),
        };
        device.submit(0, copy(0..64, 1)).expect("queues");
        done.wait(1).expect("copied");
        let bytes = read_buffer(device.as_ref(), &to, 128).expect("reads");
        assert_eq!(bytes[60..68], [0, 0, 0, 0, 7, 7, 7, 7]);
        device.submit(0, copy(0..63, 2)).expect("queues");
        assert!(matches!(done.wait(2).expect_err("unequal").error, DeviceError::BadRequest { .. }));
    }
}

#[test]
fn foreign_domains_queues_and_cancelled_jobs_are_refused() {
    let case = cases::all().into_iter().find(|case| case.op == "linear").expect("there is one");
    for device in devices() {
        let name = device.info().name.clone();
        assert!(device.submit(5, barrier(Vec::new(), Vec::new())).is_err(), "{name}: queue 5");
        let job = Job::default();
        job.cancel();
        let bucket = Bucket { phase: Phase::Prefill, min_tokens: 1, max_tokens: 8, max_outputs: 8 };
        let compiled = device.compile(&case.graph, &case.segment(), bucket, &job);
        assert!(compiled.is_err(), "{name}: a cancelled job");
    }
    let backends = Backends::detect(gpu_options(false));
    for device in &backends.devices {
        let domain = device.domains()[0].id;
        backends.memory.set_budget(domain, Bytes(backends.memory.used(domain).0 + 1000));
        let request = AllocRequest { domain, bytes: 1001, purpose: Purpose::Kv };
        let error = device.alloc(request).expect_err("over budget");
        assert!(matches!(error, DeviceError::OutOfMemory { need: Bytes(1001), .. }), "{error}");
    }
}

/// The demo model on simulated devices.
fn simulated_executor(specs: Vec<SimSpec>, pins: &[Pin]) -> (Arc<VirtualClock>, Executor) {
    let options = ModelOptions::default();
    let lowered = Lowered::new(open_file("demo").expect("opens"), options.lower).expect("lowers");
    let memory = MemoryManager::default();
    memory.set_budget(DomainId::HOST, Bytes(4 << 30));
    let clock: Arc<VirtualClock> = Arc::default();
    let devices: Vec<Arc<dyn Device>> = specs
        .into_iter()
        .map(|spec| Arc::new(SimDevice::new(spec, clock.clone(), memory.clone())) as _)
        .collect();
    let facts: Vec<DeviceFacts> = devices
        .iter()
        .map(|device| DeviceFacts {
            name: device.info().name.clone(),
            domain: DomainId::HOST,
            only_when_named: true,
        })
        .collect();
    let bucket = |phase, max_tokens| Bucket { phase, min_tokens: 1, max_tokens, max_outputs: 1 };
    let plan = place(&Request {
        model: ModelRef {
            fingerprint: lowered.fingerprint.clone(),
            architecture: "llama".to_owned(),
            name: None,
        },
        graph: &lowered.graph,
        devices: &facts,
        device: Some("sim0"),
        pins,
        buckets: &[bucket(Phase::Prefill, 64), bucket(Phase::Decode, 1)],
        context: 256,
        kv_element_bytes: 2,
    })
    .expect("places");
    let kv = KvPool::new(&memory, &[], lowered.graph.kv(), &plan.kv, options.kv_type, 16, 256)
        .expect("fits");
    (clock, Executor::new(&lowered.graph, &plan, &devices, &memory, kv).expect("compiles"))
}

fn one_step(executor: &mut Executor) -> Result<usize, ExecuteError> {
    executor.step(Phase::Decode, |step| step.push_sequence(&[1], 0, &[0], false, [0]), <[f32]>::len)
}

#[test]
fn a_plan_on_simulated_devices_takes_the_declared_time() {
    let launch = Nanos(1_000_000);
    let fast = || SimSpec::new("sim0", 1e15, 1e15, launch);
    let (clock, mut executor) = simulated_executor(vec![fast()], &[]);
    assert_eq!(one_step(&mut executor).expect("runs"), 8192);
    let one_segment = clock.now();
    assert!(one_segment.0 >= launch.0 && one_segment.0 < 2 * launch.0, "{one_segment}");

    let other = SimSpec::new("sim1", 1e15, 1e15, launch);
    let pin: Pin = "blk.3.ffn=sim1".parse().expect("valid");
    let (clock, mut executor) = simulated_executor(vec![fast(), other], &[pin]);
    one_step(&mut executor).expect("runs");
    // Before, on and after the pinned unit: three segments.
    let three = clock.now();
    assert!(three.0 >= 3 * launch.0 && three.0 < 4 * launch.0, "{three}");

    // 15 MB of weights at 1 GB/s take 15 ms and more.
    let slow = SimSpec::new("sim0", 1e15, 1e9, Nanos(0));
    let (clock, mut executor) = simulated_executor(vec![slow], &[]);
    one_step(&mut executor).expect("runs");
    let seconds = clock.now().seconds();
    assert!((0.010..0.020).contains(&seconds), "{seconds}");
}

#[test]
fn a_lost_device_fails_the_step_and_says_which() {
    let fine = SimSpec::new("sim0", 1e12, 1e11, Nanos(10));
    let lost = SimSpec { lost_at: Some(1), ..SimSpec::new("sim1", 1e12, 1e11, Nanos(10)) };
    let pin: Pin = "blk.5.ffn=sim1".parse().expect("valid");
    let (_, mut executor) = simulated_executor(vec![fine, lost], &[pin]);
    match one_step(&mut executor).expect_err("lost") {
        ExecuteError::Failed(failure) => {
            assert_eq!(failure.device, "sim1");
            assert_eq!(failure.error.recovery(), Recovery::Replan);
        }
        other => panic!("expected the failure, got {other}"),
    }
    // The next step is refused by the lost device at once, not hung.
    assert!(matches!(one_step(&mut executor), Err(ExecuteError::Device(DeviceError::Lost { .. }))));
}

#[test]
fn an_op_that_a_device_refuses_is_named_when_a_plan_is_compiled() {
    let refusing =
        SimSpec { refuses: vec!["attention"], ..SimSpec::new("sim0", 1e12, 1e11, Nanos(1)) };
    let memory = MemoryManager::default();
    memory.set_budget(DomainId::HOST, Bytes(1 << 30));
    let device = SimDevice::new(refusing, Arc::default(), memory);
    let case = cases::all().into_iter().find(|case| case.op == "attention").expect("there is one");
    let bucket = Bucket { phase: Phase::Prefill, min_tokens: 1, max_tokens: 8, max_outputs: 8 };
    let error = device
        .compile(&case.graph, &case.segment(), bucket, &Job::default())
        .expect_err("refused")
        .to_string();
    assert!(error.contains("attention") && error.contains("sim0"), "{error}");
}
