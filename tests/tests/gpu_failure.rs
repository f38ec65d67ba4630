//! What goes wrong on the GPU: too little memory in the middle of a load, a device that is lost.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use trefoil_devices_api::{
    Device, DeviceError, DomainId, Failure, LostReason, MemoryManager, Point, Points, Recovery,
    Submission, Timeline, Work,
};
use trefoil_devices_vulkan::{Instance, VulkanOptions};
use trefoil_engine::backends::{BackendOptions, Backends};
use trefoil_engine::executor::ExecuteError;
use trefoil_engine::generate::{Finish, GenerateError, Request, Summary};
use trefoil_engine::loaded::Loaded;
use trefoil_engine::model::{ModelError, ModelOptions};
use trefoil_engine::runner::{Outputs, RunError};
use trefoil_engine::service::{Order, Service, ServiceError, ServiceOptions, Update};
use trefoil_engine::text::sampling::SamplingParams;
use trefoil_scheduler::Pin;
use trefoil_telemetry::{Bytes, SystemClock};
use trefoil_tests::devices::{GPU, gpu_options, has_gpu};
use trefoil_tests::running::{demo, exact_options, feed, lowered, model_file, runner};

/// Longest wait for something that comes at once.
const SOON: Duration = Duration::from_secs(60);

fn device<'a>(backends: &'a Backends, name: &str) -> &'a Arc<dyn Device> {
    backends.devices.iter().find(|device| device.info().name == name).expect("is here")
}

/// Devices whose GPU is lost once the switch is on.
fn breakable() -> Option<(Backends, Arc<AtomicBool>)> {
    let fault: Arc<AtomicBool> = Arc::default();
    let options = BackendOptions { fault: Some(fault.clone()), ..gpu_options(false) };
    let backends = Backends::detect(options);
    has_gpu(&backends).then_some((backends, fault))
}

#[track_caller]
fn is_loss(failure: &Failure) {
    assert_eq!(failure.device, GPU);
    assert!(
        matches!(failure.error, DeviceError::Lost { reason: LostReason::Driver, .. }),
        "{failure}"
    );
    assert_eq!(failure.error.recovery(), Recovery::Replan);
    let text = failure.to_string();
    assert!(text.contains(GPU) && text.contains("load the model again"), "{text}");
}

fn barrier(waits: Option<Point>, signals: Point) -> Submission {
    Submission {
        waits: waits.into_iter().collect(),
        signals: Points::from_iter([signals]),
        work: Work::Barrier,
        label: "barrier".into(),
    }
}

#[test]
fn a_lost_device_fails_every_step_and_whoever_waits_for_it() {
    let Some((backends, fault)) = breakable() else { return };
    let lowered = lowered(&model_file("smollm"));
    let mut whole = runner(&lowered, &backends, &exact_options(GPU));
    let pin: Pin = format!("blk.1.ffn={GPU}").parse().expect("valid");
    let split = ModelOptions { pins: vec![pin], ..exact_options("cpu0") };
    let mut split = runner(&lowered, &backends, &split);
    for runner in [&mut whole, &mut split] {
        let mut sequence = runner.begin(64);
        feed(runner, &mut sequence, &[1, 2, 3]);
        runner.end(sequence);
    }
    fault.store(true, Ordering::Relaxed);
    for round in 0..3 {
        for runner in [&mut whole, &mut split] {
            let mut sequence = runner.begin(64);
            let error = runner.feed(&mut sequence, &[1, 2, 3], Outputs::Last, |_, _| ());
            match error.expect_err("the device is lost") {
                RunError::Execute(ExecuteError::Failed(failure)) => is_loss(&failure),
                other => panic!("round {round}: expected the failure, got {other}"),
            }
            assert!(sequence.is_empty(), "what failed is not part of the sequence");
            runner.end(sequence);
        }
        // The driver does not bring a device back.
        fault.store(false, Ordering::Relaxed);
    }
    // Work of another device that waits for the lost one hears of it.
    let timeline: Arc<Timeline> = Arc::default();
    let point = |value| Point { timeline: timeline.clone(), value };
    let far: Arc<Timeline> = Arc::default();
    let after = Point { timeline: far.clone(), value: 1 };
    device(&backends, "cpu0").submit(0, barrier(Some(point(1)), after)).expect("queues");
    device(&backends, GPU).submit(0, barrier(None, point(1))).expect("queues");
    is_loss(&far.wait_for(1, SOON).expect("an answer").expect_err("lost"));
    assert!(matches!(device(&backends, GPU).reset(), Err(DeviceError::Lost { .. })));
    // The others go on.
    let mut runner = runner(&lowered, &backends, &exact_options("cpu0"));
    let mut sequence = runner.begin(64);
    feed(&mut runner, &mut sequence, &[1, 2, 3]);
}

/// Asks a service and waits for the end of the answer.
fn ask(service: &Service, prompt: &[u32]) -> Result<Summary, ServiceError> {
    let mut sampling = SamplingParams::default();
    sampling.temperature = 0.0;
    let request = Request {
        prompt: prompt.to_vec(),
        sampling,
        max_tokens: Some(4),
        stop: Vec::new(),
        seed: 1,
        grammar: None,
        shown: [].into(),
    };
    let (sender, receiver) = mpsc::channel();
    let sink = Box::new(move |_, update| {
        if let Update::Done(result) = update {
            sender.send(result).expect("the test waits");
        }
        true
    });
    service.submit(Order::new(request), sink).expect("there is room");
    receiver.recv_timeout(SOON).expect("an answer")
}

#[test]
fn a_service_answers_with_the_loss_and_a_fresh_device_serves_again() {
    let Some((backends, fault)) = breakable() else { return };
    let options = ModelOptions { device: Some(GPU.to_owned()), ..ModelOptions::default() };
    let serve = |backends: &Backends| {
        let Loaded { runner, text, .. } =
            Loaded::open("demo", backends, &options, None).expect("loads");
        Service::start(runner, text, ServiceOptions::default()).expect("starts")
    };
    let service = serve(&backends);
    assert_eq!(ask(&service, &[1, 2, 3]).expect("works").generated_tokens, 4);
    fault.store(true, Ordering::Relaxed);
    for _ in 0..3 {
        let error = ask(&service, &[1, 2, 3]).expect_err("the device is lost");
        let ServiceError::Generate(error) = error else { panic!("expected the failure: {error}") };
        match &*error {
            GenerateError::Run(RunError::Execute(ExecuteError::Failed(failure))) => {
                is_loss(failure);
            }
            other => panic!("expected the failure, got {other}"),
        }
        assert_eq!(service.load().pages().used, 0, "the request's pages are free");
    }
    // What the message says: loaded again, on a device that is opened again.
    drop(service);
    let memory = backends.memory.clone();
    drop(backends);
    assert_eq!(memory.used(DomainId::HOST), Bytes(0), "{:?}", memory.holders(DomainId::HOST));
    let fresh = Backends::detect(gpu_options(false));
    let service = serve(&fresh);
    let summary = ask(&service, &[1, 2, 3]).expect("works again");
    assert!(matches!(summary.finish, Finish::MaxTokens), "{summary:?}");
}

#[test]
fn a_driver_that_lacks_something_is_named_with_what_it_lacks() {
    let Ok(instance) = Instance::open(false) else {
        println!("skipped: no Vulkan driver is here");
        return;
    };
    let Some(mut adapter) = instance.adapters().into_iter().next() else { return };
    adapter.missing = vec!["timelineSemaphore", "bufferDeviceAddress"];
    let (name, driver) = (adapter.name.clone(), adapter.driver.clone());
    let options = VulkanOptions {
        tuning: trefoil_devices_vulkan::Tuning::default(),
        name: GPU.to_owned(),
        domain: DomainId(1),
        exact: true,
        cache: None,
        memory_limit: None,
        max_part: None,
        keep_awake: None,
        fault: None,
    };
    let memory = MemoryManager::default();
    let made = trefoil_devices_vulkan::device(
        adapter,
        options,
        memory.clone(),
        Arc::new(SystemClock::default()),
    );
    let error = made.expect_err("it lacks what kernels need");
    assert!(matches!(error, DeviceError::BadRequest { .. }), "{error}");
    let text = error.to_string();
    for part in [&*name, &*driver, "timelineSemaphore, bufferDeviceAddress", "newer driver"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(memory.used(DomainId::HOST), Bytes(0));
}

/// Loads a model and runs two steps with `room` bytes of budget beside what is held.
fn load_within(backends: &Backends, domain: DomainId, room: u64) -> Result<(), DeviceError> {
    let used = backends.memory.used(domain).0;
    backends.memory.set_budget(domain, Bytes(used + room));
    let lowered = demo();
    let options = ModelOptions { context: Some(256), ..exact_options(GPU) };
    let plan = lowered.plan(backends, &options).expect("places");
    let mut runner = match lowered.runner(backends, &plan, &options) {
        Ok(runner) => runner,
        Err(ModelError::Device(error) | ModelError::Execute(ExecuteError::Device(error))) => {
            return Err(error);
        }
        Err(ModelError::Execute(ExecuteError::Compile { device, source, .. })) => {
            assert_eq!(device, GPU);
            match source {
                trefoil_devices_api::CompileError::Device(error) => return Err(error),
                other => panic!("{other}"),
            }
        }
        Err(other) => panic!("{other}"),
    };
    let mut sequence = runner.begin(64);
    for tokens in [&[1, 2, 3, 4, 5][..], &[6]] {
        match runner.feed(&mut sequence, tokens, Outputs::Last, |_, _| ()) {
            Ok(()) => {}
            Err(RunError::Execute(ExecuteError::Failed(failure))) => {
                assert_eq!(failure.device, GPU);
                return Err(failure.error.clone());
            }
            Err(other) => panic!("{other}"),
        }
    }
    Ok(())
}

#[test]
fn too_little_memory_in_the_middle_of_a_load_is_said_and_leaves_nothing() {
    let backends = Backends::detect(gpu_options(true));
    if !has_gpu(&backends) {
        return;
    }
    let domain = device(&backends, GPU).domains()[0].id;
    let held = || backends.memory.holders(domain);
    let before = held();
    let mut stages = Vec::new();
    let mut room = 0;
    loop {
        assert!(room < 256 << 20, "the model fits at last");
        match load_within(&backends, domain, room) {
            Ok(()) => break,
            Err(error @ DeviceError::OutOfMemory { .. }) => {
                let DeviceError::OutOfMemory { domain: named, need, have, holders } = &error else {
                    unreachable!("matched above");
                };
                assert_eq!(*named, domain);
                assert!(need.0 > have.0 && have.0 <= room, "{error}");
                let text = error.to_string();
                assert!(text.contains(&domain.to_string()), "{text}");
                if stages.last() != Some(holders) {
                    println!("room {}: {error}", Bytes(room));
                    stages.push(holders.clone());
                }
                // As much as it asked for: the next stage is reached.
                room += (need.0 - have.0).max(1);
            }
            Err(other) => panic!("with room for {room}: {other}"),
        }
        assert_eq!(held(), before, "with room for {room}");
    }
    assert!(stages.len() >= 3, "it failed at several stages: {stages:?}");
    assert!(stages.iter().any(|holders| holders.contains("KV cache")), "{stages:?}");
    println!("fits with {}", Bytes(room));
}
