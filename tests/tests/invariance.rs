//! What must not change a result: chunking, the devices of a plan, what else is in a step.

use trefoil_engine::backends::{BackendOptions, Backends};
use trefoil_engine::model::ModelOptions;
use trefoil_graph::{Rows, StepInputs};
use trefoil_kernels::cases::Random;
use trefoil_scheduler::Pin;
use trefoil_tests::numbers::nmse;
use trefoil_tests::running::{
    demo, exact_options as options, greedy, logits, lowered, model_file, random_tokens, runner,
};

const MODELS: &[&str] = &["smollm", "gemma3", "qwen3moe", "phi3-longrope"];

fn exact() -> Backends {
    Backends::detect(BackendOptions { exact: true, ..BackendOptions::default() })
}

#[test]
fn chunks_of_any_size_give_the_same_logits() {
    let backends = exact();
    for name in MODELS {
        let lowered = lowered(&model_file(name));
        let tokens = random_tokens(&lowered, 75, 5);
        for (device, bound) in [("ref0", 1e-10), ("cpu0", 1e-6)] {
            let whole = logits(&mut runner(&lowered, &backends, &options(device)), &tokens);
            for chunk in [1, 2, 7, 16, 33, 74] {
                let options = ModelOptions { chunk, ..options(device) };
                let parts = logits(&mut runner(&lowered, &backends, &options), &tokens);
                let error = nmse(&whole, &parts);
                assert!(error <= bound, "{name} on {device}, chunk {chunk}: NMSE {error:e}");
            }
        }
    }
}

#[test]
fn chunks_are_bitwise_equal_on_the_cpu_with_rounded_activations() {
    let backends = Backends::detect(BackendOptions::default());
    let lowered = demo();
    let tokens = random_tokens(&lowered, 40, 5);
    let whole = logits(&mut runner(&lowered, &backends, &options("cpu0")), &tokens);
    for chunk in [1, 5, 17] {
        let options = ModelOptions { chunk, ..options("cpu0") };
        let parts = logits(&mut runner(&lowered, &backends, &options), &tokens);
        assert!(whole == parts, "chunk {chunk} changes bits");
    }
}

#[test]
fn a_row_does_not_depend_on_what_else_is_in_the_step() {
    let backends = Backends::detect(BackendOptions::default());
    let lowered = demo();
    let mut runner = runner(&lowered, &backends, &options("cpu0"));
    let prompts: [&[u32]; 3] = [&[1, 337, 201, 635, 378], &[5, 6], &[100, 200, 300, 400, 7, 8, 9]];
    let alone: Vec<Vec<f32>> = prompts
        .iter()
        .map(|prompt| {
            let all = logits(&mut runner, prompt);
            all[all.len() - all.len() / prompt.len()..].to_vec()
        })
        .collect();
    let mut pages: Vec<Vec<u32>> = vec![Vec::new(); prompts.len()];
    for (prompt, pages) in prompts.iter().zip(&mut pages) {
        assert!(runner.executor.kv.grow(pages, prompt.len()));
    }
    let together = runner
        .executor
        .step(
            trefoil_devices_api::Phase::Prefill,
            |step: &mut StepInputs| {
                for (prompt, pages) in prompts.iter().zip(&pages) {
                    step.push_sequence(prompt, 0, pages, false, [prompt.len() as u32 - 1]);
                }
                assert_eq!(step.count(Rows::Outputs), prompts.len());
            },
            <[f32]>::to_vec,
        )
        .expect("runs");
    let width = together.len() / prompts.len();
    for (index, (alone, together)) in alone.iter().zip(together.chunks_exact(width)).enumerate() {
        assert!(alone == together, "sequence {index} changes in company");
    }
}

#[test]
fn forced_plans_give_the_same_greedy_tokens() {
    let backends = exact();
    let mut random = Random::new(11);
    for name in MODELS {
        let lowered = lowered(&model_file(name));
        let prompt = random_tokens(&lowered, 20, 5);
        let made =
            |options: &ModelOptions| greedy(&mut runner(&lowered, &backends, options), &prompt, 17);
        let want = made(&options("ref0"));
        let names: Vec<String> =
            lowered.graph.units().iter().map(trefoil_graph::Unit::name).collect();
        let alternating = names.iter().enumerate().map(|(index, unit)| (unit, index % 2 == 0));
        let mut plans = vec![alternating.collect::<Vec<_>>()];
        for _ in 0..12 {
            plans.push(names.iter().map(|unit| (unit, random.bits().is_multiple_of(2))).collect());
        }
        for plan in plans {
            let pins = plan.iter().map(|(unit, on_reference)| Pin {
                pattern: (*unit).clone(),
                device: if *on_reference { "ref0" } else { "cpu0" }.to_owned(),
                phase: None,
            });
            let options = ModelOptions { pins: pins.collect(), ..options("cpu0") };
            assert_eq!(made(&options), want, "{name}: {plan:?}");
        }
    }
}
