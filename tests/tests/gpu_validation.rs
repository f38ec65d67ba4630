//! The Vulkan device under the validation layer: it has nothing to say.

use trefoil_engine::backends::{BackendOptions, Backends};
use trefoil_engine::kv::KvType;
use trefoil_engine::model::ModelOptions;
use trefoil_engine::runner::{Outputs, Sequence};
use trefoil_engine::self_test::run_case;
use trefoil_graph::BlockType;
use trefoil_kernels::cases;
use trefoil_scheduler::Pin;
use trefoil_tests::devices::{GPU, gpu_expected, gpu_options, has_gpu};
use trefoil_tests::running::{
    demo, exact_options, greedy, lowered, model_file, random_tokens, runner,
};

/// Messages so far; nothing may have come.
#[track_caller]
fn silent(backends: &Backends, after: &str) {
    assert_eq!(backends.validation_messages(), Some(0), "{after}: the output has them");
}

#[test]
fn the_validation_layer_has_nothing_to_say() {
    trefoil_telemetry::start_logging("warn", trefoil_telemetry::LogFormat::Text, false);
    for exact in [true, false] {
        let mut backends = Backends::detect(BackendOptions {
            validate: true,
            keep_awake: Some(true),
            ..gpu_options(exact)
        });
        if !has_gpu(&backends) {
            return;
        }
        if backends.validation_messages().is_none() {
            assert!(!gpu_expected(), "the Vulkan validation layer must be installed here");
            println!("skipped: the Vulkan validation layer is not installed");
            return;
        }
        silent(&backends, "opening and self-test");
        models(&backends, exact);
        operations(&backends);
        // What was forgotten is named when the device goes.
        backends.devices.clear();
        silent(&backends, "closing the device");
    }
}

fn models(backends: &Backends, exact: bool) {
    let names = if exact { &["qwen3moe"][..] } else { &["gemma3", "bert"] };
    for name in names {
        let lowered = lowered(&model_file(name));
        let kv_type = if exact { KvType::F32 } else { KvType::F16 };
        let options = ModelOptions { kv_type, chunk: 16, ..exact_options(GPU) };
        let mut runner = runner(&lowered, backends, &options);
        let tokens = random_tokens(&lowered, 40, 1);
        if lowered.hyper.causal {
            greedy(&mut runner, &tokens, 3);
        } else {
            let mut sequence = runner.begin(64);
            runner.feed(&mut sequence, &tokens[..12], Outputs::All, |_, _| ()).expect("runs");
        }
        drop(runner);
        silent(backends, name);
    }
    // Several sequences at once, units on two devices.
    let lowered = demo();
    let pin: Pin = "blk.*.ffn=cpu0".parse().expect("valid");
    for pins in [Vec::new(), vec![pin]] {
        let options = ModelOptions { decode_batch: 3, pins, ..exact_options(GPU) };
        let mut runner = runner(&lowered, backends, &options);
        let mut sequences: Vec<Sequence> = Vec::new();
        for len in [2, 9, 20] {
            let mut sequence = runner.begin(64);
            let tokens = random_tokens(&lowered, len, len as u64);
            runner.feed(&mut sequence, &tokens, Outputs::Last, |_, _| ()).expect("runs");
            sequences.push(sequence);
        }
        let mut all: Vec<&mut Sequence> = sequences.iter_mut().collect();
        runner.decode(&mut all, &[1, 2, 3], |_, _| ()).expect("runs");
        drop(runner);
        silent(backends, "the demo model");
    }
}

/// Every kind of op, with formats of each family of kernels.
fn operations(backends: &Backends) {
    let device = backends.devices.iter().find(|device| device.info().name == GPU).expect("is here");
    let formats = vec![BlockType::Q4_K, BlockType::F16, BlockType::IQ3_S];
    for case in cases::with_formats(formats) {
        for half in [false, true] {
            if half && case.op != "attention" {
                continue;
            }
            if let Err(error) = run_case(device.as_ref(), &case, half) {
                panic!("{} {}: {error}", case.op, case.shape);
            }
        }
        let format = case.format.map_or("", BlockType::name);
        silent(backends, &format!("{} {format} {}", case.op, case.shape));
    }
}
