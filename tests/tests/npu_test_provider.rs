//! The provider that plays an NPU, driven through ONNX Runtime: what it takes, refuses, compiles ahead, and
//! how it fails when that is asked for. Needs ONNX Runtime in the workspace's `.venv`, or where
//! `TREFOIL_NPU_RUNTIME` says; `TREFOIL_EXPECT_NPU` makes its absence a failure.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use ort::compiler::ModelCompiler;
use ort::environment::Environment;
use ort::memory::DeviceType;
use ort::session::Session;
use ort::session::builder::SessionBuilder;
use ort::value::Tensor;
use trefoil_npu_test_provider::library;
use trefoil_tests::npu::runtime;
use trefoil_tests::numbers::nmse;
use trefoil_tests::onnx::Attribute::{Float, Int, Ints};
use trefoil_tests::onnx::{OnnxWriter, U8};

const ROWS: usize = 4;
const WIDTH: usize = 64;
const HIDDEN: usize = 96;

/// ONNX Runtime with the provider registered, once in a process.
fn environment() -> Option<&'static Environment> {
    static FOUND: OnceLock<Option<Environment>> = OnceLock::new();
    let start = || {
        let folder = runtime()?;
        let files = std::fs::read_dir(folder).expect("a folder").flatten();
        let name = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            name.starts_with("libonnxruntime.so") || name == "onnxruntime.dll"
        };
        let library_file = files.map(|entry| entry.path()).find(name).expect("its library");
        let builder = ort::init_from(library_file).expect("loads");
        let environment = builder.with_name("tests").with_telemetry(false).build().expect("starts");
        environment.register_ep_library("trefoiltest", library()).expect("registers");
        Some(environment)
    };
    FOUND.get_or_init(start).as_ref()
}

/// A gated network with a norm, quantised in part, of static shapes.
fn model(rows: Option<usize>, extra: Option<&str>) -> Vec<u8> {
    let mut out = OnnxWriter::new();
    match rows {
        Some(rows) => out.fixed(true, "x", &[rows, WIDTH]),
        None => out.open_rows("x", WIDTH),
    }
    let value = |seed: usize| ((seed * 7919 + 13) % 401) as f32 / 400.0 - 0.5;
    let values = |count: usize, from: usize| -> Vec<f32> {
        (0..count).map(|at| value(at + from) * 2.0).collect()
    };
    out.f32s("norm", &[WIDTH], &values(WIDTH, 1));
    let epsilon = [("epsilon", Float(1e-5)), ("axis", Int(-1))];
    out.node("SimplifiedLayerNormalization", &["x", "norm"], &["normed"], &epsilon);
    out.f32s("gate_w", &[WIDTH, HIDDEN], &values(WIDTH * HIDDEN, 2));
    out.op("MatMul", &["normed", "gate_w"], "gate");
    let codes: Vec<u8> = (0..HIDDEN * WIDTH / 2).map(|at| (at * 37 % 251) as u8).collect();
    out.tensor("codes", &[HIDDEN, WIDTH / 32, 16], U8, &codes);
    let scales: Vec<f32> = (0..HIDDEN * WIDTH / 32).map(|at| 0.05 + value(at) * 0.02).collect();
    out.f32s("scales", &[scales.len()], &scales);
    let sizes = [("N", HIDDEN), ("K", WIDTH), ("bits", 4), ("block_size", 32)]
        .map(|(n, v)| (n, Int(v as i64)));
    out.node("ms.MatMulNBits", &["normed", "codes", "scales"], &["up"], &sizes);
    out.op("Sigmoid", &["gate"], "sigmoid");
    out.op("Mul", &["gate", "sigmoid"], "silu");
    out.op("Mul", &["silu", "up"], "gated");
    out.f32s("down_w", &[HIDDEN, WIDTH], &values(WIDTH * HIDDEN, 3));
    out.op("MatMul", &["gated", "down_w"], "down_");
    // A norm written out, which changes nothing much.
    let last = [("axes", Ints(vec![-1])), ("keepdims", Int(1))];
    out.node("ReduceMean", &["down_"], &["mean"], &last);
    out.op("Sub", &["down_", "mean"], "centred");
    out.number("least", -20.0);
    out.op("Max", &["centred", "least"], "down");
    match extra {
        Some(op) => {
            out.op("Add", &["down", "x"], "sum");
            out.op(op, &["sum"], "y");
        }
        None => out.op("Add", &["down", "x"], "y"),
    }
    match rows {
        Some(rows) => out.fixed(false, "y", &[rows, WIDTH]),
        None => out.output("y"),
    }
    out.model()
}

/// A session on the test NPU alone, with options of the provider.
fn builder(options: &[(&str, &str)]) -> Option<SessionBuilder> {
    let environment = environment()?;
    let npus =
        environment.devices().filter(|device| device.hardware_device().ty() == DeviceType::NPU);
    let options: Vec<(String, String)> = options
        .iter()
        .map(|(name, value)| (format!("trefoiltest.{name}"), (*value).to_owned()))
        .collect();
    let builder = Session::builder(environment).expect("options");
    let builder = builder.with_intra_threads(1).expect("a number");
    let builder = builder.with_devices(npus, Some(&options)).expect("a device");
    Some(builder.with_disable_cpu_fallback().expect("an option"))
}

/// The message of a session that does not come about.
#[track_caller]
fn refused(options: &[(&str, &str)], model: &[u8]) -> Option<String> {
    let result = builder(options)?.commit_from_memory(model);
    Some(result.expect_err("refused").message().to_owned())
}

fn input(rows: usize) -> Vec<f32> {
    (0..rows * WIDTH).map(|at| ((at * 31 % 97) as f32 - 48.0) / 30.0).collect()
}

fn run(session: &mut Session, rows: usize) -> Result<Vec<f32>, String> {
    let tensor = Tensor::from_array(([rows, WIDTH], input(rows))).expect("a tensor");
    let outputs =
        session.run(ort::inputs!["x" => tensor]).map_err(|error| error.message().to_owned())?;
    let (_, values) = outputs["y"].try_extract_tensor::<f32>().expect("numbers");
    Ok(values.to_vec())
}

/// What ONNX Runtime's own kernels compute.
fn reference(model: &[u8], rows: usize) -> Vec<f32> {
    let mut builder = Session::builder(environment().expect("is here")).expect("options");
    let mut session = builder.commit_from_memory(model).expect("a session");
    run(&mut session, rows).expect("runs")
}

#[test]
fn it_computes_what_it_takes() {
    let model = model(Some(ROWS), None);
    let Some(mut builder) = builder(&[]) else { return };
    let mut session = builder.commit_from_memory(&model).expect("all of it is taken");
    let got = run(&mut session, ROWS).expect("runs");
    let error = nmse(&reference(&model, ROWS), &got);
    println!("NMSE {error:.1e}");
    assert!(error < 1e-10, "{error:e}");
    // Most of the result is the network's, not the residual that is added to it.
    assert!(nmse(&got, &input(ROWS)) > 0.5);
    let device = environment()
        .expect("is here")
        .devices()
        .find(|d| d.ep().is_ok_and(|n| n == "trefoiltest"));
    let device = device.expect("it is listed").hardware_device();
    assert_eq!((device.ty(), device.id()), (DeviceType::NPU, 0x17f0));
}

#[test]
fn what_it_does_not_take_is_refused_and_not_run_elsewhere() {
    let fallback = "fallback to CPU EP has been explicitly disabled";
    for (options, model) in [
        (&[][..], model(None, None)),
        (&[], model(Some(ROWS), Some("Sin"))),
        (&[("refuse", "MatMul")], model(Some(ROWS), None)),
        (&[("refuse", "*")], model(Some(ROWS), None)),
        (&[("fail", "capability")], model(Some(ROWS), None)),
    ] {
        let Some(message) = refused(options, &model) else { return };
        assert!(message.contains(fallback), "{options:?}: {message}");
    }
}

#[test]
fn several_groups_run_with_another_provider_between() {
    let model = model(Some(ROWS), Some("Sin"));
    let Some(environment) = environment() else { return };
    let npus =
        environment.devices().filter(|device| device.hardware_device().ty() == DeviceType::NPU);
    let options = [("trefoiltest.refuse".to_owned(), "Sigmoid".to_owned())];
    let builder = Session::builder(environment).expect("options");
    let mut builder = builder.with_devices(npus, Some(&options)).expect("a device");
    let mut session = builder.commit_from_memory(&model).expect("the rest runs on the CPU");
    let error = nmse(&reference(&model, ROWS), &run(&mut session, ROWS).expect("runs"));
    assert!(error < 1e-10, "{error:e}");
}

#[test]
fn failures_that_are_asked_for_are_said() {
    let model = model(Some(ROWS), None);
    for place in ["create", "compile"] {
        let Some(message) = refused(&[("fail", place)], &model) else { return };
        assert!(message.contains(&format!("failure asked for in {place}")), "{message}");
    }
    let Some(message) = refused(&[("fail", "never")], &model) else { return };
    assert!(message.contains("expected create, capability, compile or run"), "{message}");
    let mut session = builder(&[("fail_after_runs", "2")])
        .expect("is here")
        .commit_from_memory(&model)
        .expect("a session");
    for _ in 0..2 {
        run(&mut session, ROWS).expect("runs");
    }
    for _ in 0..2 {
        let message = run(&mut session, ROWS).expect_err("no more");
        assert!(message.contains("trefoiltest: device lost"), "{message}");
    }
}

#[test]
fn it_can_be_slow() {
    let model = model(Some(ROWS), None);
    let Some(mut builder) = builder(&[("compile_ms", "300"), ("run_ms", "200")]) else { return };
    let start = Instant::now();
    let mut session = builder.commit_from_memory(&model).expect("a session");
    assert!(start.elapsed() >= Duration::from_millis(300));
    let start = Instant::now();
    run(&mut session, ROWS).expect("runs");
    assert!(start.elapsed() >= Duration::from_millis(200));
}

#[test]
fn what_it_compiled_is_kept_and_damage_is_found() {
    let model = model(Some(ROWS), None);
    let Some(builder_now) = builder(&[]) else { return };
    let compiler = ModelCompiler::new(builder_now).expect("a compiler");
    let compiler = compiler.with_model_from_memory(&model).expect("a model");
    let compiled = compiler.with_embed_ep_context().expect("an option");
    let compiled = compiled.compile_to_buffer().expect("compiles");
    let context = compiled.as_slice().to_vec();
    let text = String::from_utf8_lossy(&context).into_owned();
    assert!(text.contains("EPContext") && text.contains("trefoiltest-1 "), "a context model");
    // Nothing is compiled again: an op that it would refuse now runs.
    let mut session = builder(&[("refuse", "MatMul")])
        .expect("is here")
        .commit_from_memory(&context)
        .expect("what was compiled loads");
    let error = nmse(&reference(&model, ROWS), &run(&mut session, ROWS).expect("runs"));
    assert!(error < 1e-10, "{error:e}");
    // One digit of a weight.
    let mut damaged = context;
    let at = damaged.windows(8).position(|part| part == b"constant").expect("its weights");
    let digit =
        damaged[at..].iter().position(|byte| (b'1'..=b'8').contains(byte)).expect("one") + at;
    damaged[digit] += 1;
    let message = refused(&[], &damaged).expect("is here");
    assert!(message.contains("the compiled model is damaged: its checksum"), "{message}");
}

/// Run in a process of its own, which it ends.
#[test]
fn crash_if_asked() {
    let Ok(place) = std::env::var("TREFOIL_TEST_ABORT") else { return };
    let mut builder = builder(&[("abort", place.as_str())]).expect("is here");
    let mut session = builder.commit_from_memory(&model(Some(ROWS), None)).expect("a session");
    let _ = run(&mut session, ROWS);
    println!("still here");
}

#[test]
fn a_crash_ends_the_process() {
    if environment().is_none() {
        return;
    }
    for place in ["compile", "run"] {
        let program = std::env::current_exe().expect("the system tells");
        let mut command = Command::new(program);
        command.args(["--exact", "crash_if_asked", "--nocapture"]).env("TREFOIL_TEST_ABORT", place);
        let output = command.output().expect("starts");
        assert!(!output.status.success(), "{place}");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(!said.contains("still here") && !said.contains("test result"), "{place}: {said}");
        #[cfg(unix)]
        {
            use std::os::unix::process::ExitStatusExt;
            assert_eq!(output.status.signal(), Some(6), "{place}: by an abort");
        }
    }
}
