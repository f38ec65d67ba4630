//! A provider that plays a real NPU: compiles ahead, is slow, refuses and fails when it is asked to. What it
//! compiled is kept in a folder and loaded again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use trefoil_devices_api::{Bucket, CompileError, Device, DeviceError, Job, Phase};
use trefoil_engine::backends::npu::{NpuDevice, NpuOptions, NumericForm, Provider};
use trefoil_engine::backends::{BackendOptions, Backends, Npus};
use trefoil_engine::executor::ExecuteError;
use trefoil_engine::model::ModelOptions;
use trefoil_engine::runner::{Outputs, RunError};
use trefoil_graph::{LayerGraph, Segment, UnitId};
use trefoil_telemetry::{Nanos, SystemClock};
use trefoil_tests::npu::{NPU, npu_options, test_provider};
use trefoil_tests::numbers::nmse;
use trefoil_tests::running::{
    demo, exact_options, logits, lowered, model_file, random_tokens, runner,
};

fn options(faults: &[(&str, &str)], cache: Option<&Path>) -> Option<NpuOptions> {
    let library = test_provider()?;
    let faults = faults.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    Some(NpuOptions {
        provider: Provider::Plugin { name: "trefoiltest".to_owned(), library },
        provider_options: faults.collect::<BTreeMap<_, _>>(),
        cache: cache.map(Path::to_path_buf),
        ..npu_options(NumericForm::F32)?
    })
}

/// All devices; nobody names the NPU, which is a real one as far as anybody can tell.
fn detect(faults: &[(&str, &str)], cache: Option<&Path>) -> Option<Backends> {
    let npu = options(faults, cache)?;
    let options = BackendOptions { npu, npus: Npus::All, exact: true, ..BackendOptions::default() };
    Some(Backends::detect(options))
}

fn open(faults: &[(&str, &str)], cache: Option<&Path>) -> Option<NpuDevice> {
    let memory = trefoil_devices_api::MemoryManager::default();
    let most = trefoil_telemetry::Bytes(1 << 30);
    memory.set_budget(trefoil_devices_api::DomainId::HOST, most);
    let options = options(faults, cache)?;
    let opened = NpuDevice::open(NPU, &options, memory, Arc::new(SystemClock::default()));
    Some(opened.expect("opens"))
}

/// A network of the demo model.
fn network() -> (Arc<LayerGraph>, Segment) {
    let graph = demo().graph;
    let mut units = (0..graph.units().len()).map(UnitId);
    let unit = units.find(|&unit| graph.unit(unit).name() == "blk.0.ffn").expect("is there");
    let segment = graph.segment(&[unit]);
    (graph, segment)
}

const BUCKET: Bucket =
    Bucket { phase: Phase::Decode, min_tokens: 1, max_tokens: 1, max_outputs: 1 };

fn compile(npu: &NpuDevice, job: &Job) -> Result<Duration, CompileError> {
    let (graph, segment) = network();
    let begun = Instant::now();
    npu.compile(&graph, &segment, BUCKET, job).map(|_| begun.elapsed())
}

fn entries(cache: &Path) -> Vec<PathBuf> {
    let found = std::fs::read_dir(cache.join("npu")).into_iter().flatten().flatten();
    let files = found.map(|entry| entry.path());
    files.filter(|path| path.extension().is_some_and(|ending| ending == "compiled")).collect()
}

/// Which file it is: a new one of the same name is another.
#[cfg(unix)]
fn identity(path: &Path) -> u64 {
    std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).expect("is there"))
}

#[test]
#[cfg(unix)]
fn what_was_compiled_is_loaded_again_and_damage_is_mended() {
    let folder = tempfile::tempdir().expect("a folder");
    let slow = [("compile_ms", "700")];
    let times = || compile(&open(&slow, Some(folder.path()))?, &Job::default()).ok();
    let Some(first) = times() else { return };
    assert!(first >= Duration::from_millis(700), "compiled in {first:?}");
    let kept = entries(folder.path());
    assert_eq!(kept.len(), 1, "{kept:?}");
    let made = identity(&kept[0]);
    times().expect("loads");
    assert_eq!(identity(&kept[0]), made, "loaded, not compiled");
    let whole = std::fs::read(&kept[0]).expect("is there");
    let mut damaged = whole.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 0x40;
    for bytes in [&damaged[..], &whole[..middle], b""] {
        std::fs::write(&kept[0], bytes).expect("a file");
        let mended = times().expect("compiles");
        assert!(mended >= Duration::from_millis(700), "compiled anew: {mended:?}");
        assert_eq!(std::fs::read(&kept[0]).expect("is there").len(), whole.len());
    }
    // Other options are another device.
    let other = open(&[("compile_ms", "701")], Some(folder.path())).expect("opens");
    compile(&other, &Job::default()).expect("compiles");
    assert_eq!(entries(folder.path()).len(), 2);
}

#[test]
fn a_model_runs_on_what_was_compiled_and_on_what_was_loaded() {
    let folder = tempfile::tempdir().expect("a folder");
    let lowered = lowered(&model_file("smollm"));
    let prompt = random_tokens(&lowered, 40, 13);
    let mut want = Vec::new();
    for round in 0..2 {
        let Some(backends) = detect(&[], Some(folder.path())) else { return };
        assert!(backends.npu.is_some(), "an NPU need not be named: {:?}", backends.refused);
        let pins = ["blk.*.ffn=npu0", "blk.*.attn_out=npu0", "head=npu0"];
        let pins = pins.iter().map(|pin| pin.parse().expect("a pin")).collect();
        let options = ModelOptions { pins, ..exact_options("cpu0") };
        let got = logits(&mut runner(&lowered, &backends, &options), &prompt);
        if round == 0 {
            want = logits(&mut runner(&lowered, &backends, &exact_options("cpu0")), &prompt);
            assert!(!entries(folder.path()).is_empty(), "kept");
        }
        let error = nmse(&want, &got);
        assert!(error < 1e-9, "round {round}: NMSE {error:e}");
    }
}

#[test]
fn a_slow_compilation_is_given_up_in_time() {
    let Some(npu) = open(&[("compile_ms", "20000")], None) else { return };
    let mut job = Job::default();
    job.limit = Some(Nanos(300_000_000));
    let begun = Instant::now();
    let error = compile(&npu, &job).expect_err("too slow");
    assert!(matches!(error, CompileError::Stopped { .. }), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(10), "given up after {:?}", begun.elapsed());
    let job = Job::default();
    let watched = job.clone();
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        watched.cancel();
    });
    let error = compile(&npu, &job).expect_err("cancelled");
    assert!(error.to_string().contains("cancelled"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(15));
}

#[test]
fn what_it_refuses_is_said_remembered_and_shown_later() {
    let folder = tempfile::tempdir().expect("a folder");
    let faults = [("refuse", "Sigmoid")];
    let Some(npu) = open(&faults, Some(folder.path())) else { return };
    let error = compile(&npu, &Job::default()).expect_err("refused");
    let CompileError::Refused { what, reason } = error else { panic!("{error}") };
    assert!(what.contains("gate Silu"), "{what}");
    assert!(reason.contains("fallback to CPU EP has been explicitly disabled"), "{reason}");
    let begun = Instant::now();
    compile(&npu, &Job::default()).expect_err("refused again");
    println!("remembered: {:?}", begun.elapsed());
    let later = open(&faults, Some(folder.path())).expect("opens");
    assert_eq!(later.refused(), npu.refused());
    assert_eq!(later.refused()[0].segment, what);
}

#[test]
fn its_own_errors_reach_the_user() {
    for (place, said) in [("create", "failure asked for in create"), ("compile", "in compile")] {
        let Some(npu) = open(&[("fail", place)], None) else { return };
        let error = compile(&npu, &Job::default()).expect_err("fails");
        assert!(error.to_string().contains(said), "{error}");
    }
    let Some(npu) = open(&[("fail", "capability")], None) else { return };
    let error = compile(&npu, &Job::default()).expect_err("claims nothing");
    assert!(matches!(error, CompileError::Refused { .. }), "{error}");
}

#[test]
fn a_device_that_fails_its_self_test_is_not_offered() {
    let Some(backends) = detect(&[("fail", "run")], None) else { return };
    assert!(backends.npu.is_none());
    let reason = backends.refusal(NPU).expect("a reason");
    assert!(
        reason.contains("self-test") && reason.contains("failure asked for in run"),
        "{reason}"
    );
}

#[test]
fn a_device_that_is_lost_fails_the_step_with_its_own_words() {
    let Some(backends) = detect(&[("fail_after_runs", "3")], None) else { return };
    assert!(backends.npu.is_some(), "{:?}", backends.refused);
    let lowered = demo();
    let pins = vec!["blk.0.ffn=npu0".parse().expect("a pin")];
    let options = ModelOptions { pins, ..exact_options("cpu0") };
    let mut runner = runner(&lowered, &backends, &options);
    let mut sequence = runner.begin(64);
    let failed = (0..10)
        .find_map(|token| runner.feed(&mut sequence, &[token], Outputs::Last, |_, _| {}).err());
    let Some(RunError::Execute(ExecuteError::Failed(failure))) = failed else {
        panic!("{failed:?}")
    };
    assert_eq!(failure.device, NPU);
    assert!(matches!(failure.error, DeviceError::Driver { .. }), "{failure}");
    assert!(failure.to_string().contains("device lost"), "{failure}");
}
