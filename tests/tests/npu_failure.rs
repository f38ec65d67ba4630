//! What goes wrong on the NPU: providers that are not there, compilations that take too long, memory,
//! results that are no numbers.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use trefoil_devices_api::{
    Bucket, CompileError, Device, DeviceError, DomainId, Job, MemoryManager, Phase, Recovery,
};
use trefoil_engine::backends::npu::{NpuDevice, NpuError, NpuOptions, NumericForm, Provider};
use trefoil_engine::executor::ExecuteError;
use trefoil_engine::model::Lowered;
use trefoil_engine::runner::{Outputs, RunError};
use trefoil_graph::ops::{Embed, Linear, Op};
use trefoil_graph::{GraphBuilder, LayerGraph, Segment, UnitId, UnitKind, Weight};
use trefoil_telemetry::{Bytes, Nanos, SystemClock};
use trefoil_tests::npu::{NPU, npu_options, with_npu};
use trefoil_tests::running::{demo, exact_options, runner};

fn open(options: &NpuOptions, memory: MemoryManager) -> Result<NpuDevice, NpuError> {
    NpuDevice::open(NPU, options, memory, Arc::new(SystemClock::default()))
}

fn plenty() -> MemoryManager {
    let memory = MemoryManager::default();
    memory.set_budget(DomainId::HOST, Bytes(4 << 30));
    memory
}

/// Why the stand-in's ONNX Runtime does not open with a provider.
fn refusal(provider: Provider) -> Option<NpuError> {
    let options = NpuOptions { provider, ..npu_options(NumericForm::F32)? };
    Some(open(&options, plenty()).expect_err("no such provider"))
}

#[test]
fn a_provider_that_onnx_runtime_does_not_have() {
    for (provider, name) in [
        (Provider::Vitisai, "VitisAIExecutionProvider"),
        (Provider::Openvino, "OpenVINOExecutionProvider"),
        (Provider::Qnn, "QNNExecutionProvider"),
    ] {
        let Some(error) = refusal(provider) else { return };
        assert!(matches!(error, NpuError::NoProvider { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(name) && text.contains("npu.runtime_path"), "{text}");
    }
    if std::env::var_os("RYZENAI_EP_PATH").is_none() {
        let Some(error) = refusal(Provider::Auto) else { return };
        assert!(matches!(error, NpuError::NothingFound { .. }), "{error}");
        assert!(error.to_string().contains("npu.provider"), "{error}");
        let Some(error) = refusal(Provider::Ryzenai(None)) else { return };
        assert!(error.to_string().contains("RYZENAI_EP_PATH"), "{error}");
    }
}

#[test]
fn a_provider_library_that_is_missing_or_none() {
    let folder = tempfile::tempdir().expect("a folder");
    let none = folder.path().join("libprovider.so");
    std::fs::write(&none, b"not a library").expect("a file");
    for (library, said) in [(PathBuf::from("/nonexistent/lib.so"), "no such file"), (none, "")] {
        let plugin = Provider::Plugin { name: "someprovider".to_owned(), library };
        let Some(error) = refusal(plugin) else { return };
        assert!(matches!(error, NpuError::ProviderLibrary { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains("someprovider") && text.contains(said), "{text}");
    }
    for name in [String::new(), "x".repeat(200), "a\0b".to_owned()] {
        let plugin = Provider::Plugin { name, library: PathBuf::from("lib.so") };
        let Some(error) = refusal(plugin) else { return };
        assert!(matches!(error, NpuError::Option { .. }), "{error}");
    }
}

/// A product with a square matrix of this value.
fn product(width: usize, value: f32) -> (Arc<LayerGraph>, Segment) {
    let mut graph = GraphBuilder::default();
    graph.begin_unit(UnitKind::Embed, None);
    let table = Weight::from_f32("t", 1, width, &vec![0.0; width]);
    let embed = Embed { table, scale: 1.0, positions: None, types: None };
    let input = graph.push("t", embed, &[]).expect("fits");
    graph.begin_unit(UnitKind::Ffn, Some(0));
    let weight = Weight::from_f32("w", width, width, &vec![value; width * width]);
    let output = graph.push("w", Linear { weight, bias: None }, &[input]).expect("fits");
    let graph = Arc::new(graph.finish(output));
    let segment = graph.segment(&[UnitId(1)]);
    (graph, segment)
}

const BUCKET: Bucket =
    Bucket { phase: Phase::Decode, min_tokens: 1, max_tokens: 1, max_outputs: 1 };

#[test]
fn a_compilation_over_its_limit_is_stopped() {
    let Some(options) = npu_options(NumericForm::F32) else { return };
    let npu = open(&options, plenty()).expect("opens");
    let (graph, segment) = product(4096, 0.5);
    let mut job = Job::default();
    job.limit = Some(Nanos(1));
    let begun = Instant::now();
    let error = npu.compile(&graph, &segment, BUCKET, &job).expect_err("too slow");
    assert!(matches!(error, CompileError::Stopped { .. }), "{error}");
    assert!(error.to_string().contains("npu.compile_timeout"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(60));
    let job = Job::default();
    job.cancel();
    let error = npu.compile(&graph, &segment, BUCKET, &job).expect_err("cancelled");
    assert!(error.to_string().contains("cancelled"), "{error}");
    // What was stopped is no refusal: with time it compiles.
    let program = npu.compile(&graph, &segment, BUCKET, &Job::default()).expect("compiles");
    let weights = 4096 * 4096 * 4;
    assert!(program.scratch().0 > weights, "its copy of the weights is counted");
    assert!(npu.refused().is_empty());
}

#[test]
fn weights_over_the_budget_are_refused_and_given_back() {
    let Some(options) = npu_options(NumericForm::F32) else { return };
    let memory = MemoryManager::default();
    memory.set_budget(DomainId::HOST, Bytes(5 << 20));
    let npu = open(&options, memory.clone()).expect("opens");
    let (graph, segment) = product(1024, 0.5);
    let first = npu.compile(&graph, &segment, BUCKET, &Job::default()).expect("4 MiB fit");
    let (other, cut) = product(1024, 0.25);
    let error = npu.compile(&other, &cut, BUCKET, &Job::default()).expect_err("8 MiB do not");
    let CompileError::Device(error) = error else { panic!("{error}") };
    assert!(matches!(error, DeviceError::OutOfMemory { .. }), "{error}");
    assert!(error.to_string().contains("weights"), "{error}");
    // The same weights again are one copy.
    let again = npu.compile(&graph, &segment, BUCKET, &Job::default()).expect("no more memory");
    drop((first, again));
    assert_eq!(memory.used(DomainId::HOST), Bytes(0));
}

#[test]
fn results_that_are_no_numbers_fail_the_step_with_their_place() {
    let Some(backends) = with_npu() else { return };
    let lowered = with_huge_head(demo());
    let mut broken = runner(&lowered, backends, &exact_options(NPU));
    let mut sequence = broken.begin(64);
    let error = broken.feed(&mut sequence, &[1, 2, 3], Outputs::Last, |_, _| {});
    let RunError::Execute(ExecuteError::Failed(failure)) = error.expect_err("infinite") else {
        panic!("another error")
    };
    assert!(matches!(failure.error, DeviceError::NotFinite { row: 0, .. }), "{failure}");
    assert_eq!(failure.error.recovery(), Recovery::Replan);
    let text = failure.to_string();
    assert!(text.contains("npu0") && text.contains("output"), "{text}");
}

/// The model with a last matrix of the largest values that there are.
fn with_huge_head(mut lowered: Lowered) -> Lowered {
    let graph = &lowered.graph;
    let mut copy = GraphBuilder::default();
    let mut nodes = std::collections::HashMap::new();
    for &layer in graph.kv() {
        copy.kv_layer(layer);
    }
    for unit in graph.units() {
        copy.begin_unit(unit.kind, unit.layer);
        for &node in &unit.nodes {
            let own = graph.node(node);
            let inputs: Vec<_> = graph.inputs(node).iter().map(|input| nodes[input]).collect();
            let mut op = own.op.clone();
            if let (true, Op::Linear(linear)) = (own.name == "output", &mut op) {
                let (rows, cols) = (linear.weight.rows, linear.weight.cols);
                linear.weight = Weight::from_f32("huge", rows, cols, &vec![f32::MAX; rows * cols]);
            }
            nodes.insert(node, copy.push(own.name.clone(), op, &inputs).expect("fits as before"));
        }
    }
    lowered.graph = Arc::new(copy.finish(nodes[&graph.output()]));
    lowered
}
