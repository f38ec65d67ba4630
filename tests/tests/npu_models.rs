//! Models of which the NPU's stand-in computes parts: any placement gives the same text.

use std::collections::BTreeSet;

use trefoil_devices_api::Phase;
use trefoil_engine::backends::npu::NumericForm;
use trefoil_engine::kv::KvType;
use trefoil_engine::model::{Lowered, ModelOptions};
use trefoil_engine::npu_fallback::NpuFallback;
use trefoil_engine::runner::Runner;
use trefoil_graph::ops::Pooling;
use trefoil_graph::{LowerOptions, ModelFile, PoolingChoice, UnitId, UnitKind};
use trefoil_scheduler::Pin;
use trefoil_tests::devices::{GPU, has_gpu};
use trefoil_tests::golden_models::{DECODERS, folders, golden_of, model_files};
use trefoil_tests::mutation::SplitMix64;
use trefoil_tests::npu::{NPU, detect, with_npu};
use trefoil_tests::numbers::{argmax, nmse};
use trefoil_tests::running::{
    demo, exact_options, feed, greedy, greedy_from, logits, lowered, model_file, random_tokens,
    runner,
};

/// Random placements, over all models.
const PLANS: u64 = 30;

fn pins(texts: &[&str]) -> Vec<Pin> {
    texts.iter().map(|text| text.parse().expect("a pin")).collect()
}

/// Everything else on cpu0, in f32.
fn with_pins(pins: Vec<Pin>) -> ModelOptions {
    ModelOptions { pins, ..exact_options("cpu0") }
}

/// Does the NPU take units of this kind?
fn is_for_npu(kind: UnitKind) -> bool {
    matches!(kind, UnitKind::AttnIn | UnitKind::AttnOut | UnitKind::Ffn | UnitKind::Head)
}

/// Placements that matter: networks, whole blocks without attention, single units, all that it takes.
fn placements(lowered: &Lowered) -> Vec<ModelOptions> {
    let on_npu = [
        &["blk.*.ffn=npu0"][..],
        &["blk.*.ffn=npu0", "blk.*.attn_out=npu0", "blk.*.attn_in=npu0"],
        &["blk.0.attn_in=npu0"],
        &["blk.0.attn_out=npu0", "blk.1.attn_in=npu0"],
        &["head=npu0"],
    ];
    // Mixtures have no plain networks to pin.
    let names = |pin: &Pin| {
        let mut units = (0..lowered.graph.units().len()).map(UnitId);
        units.any(|unit| pin.matches(&lowered.graph, unit))
    };
    let pinned = on_npu.iter().map(|texts| pins(texts).into_iter().filter(names).collect());
    pinned.map(with_pins).chain([exact_options(NPU)]).collect()
}

#[test]
fn golden_models_give_their_tokens_under_plans_with_the_npu() {
    let Some(backends) = with_npu() else { return };
    for folder in folders(DECODERS) {
        let file = model_files(&folder).remove(0);
        let lowered = lowered(&file);
        let want = golden_of(&folder, "");
        for options in placements(&lowered) {
            let mut runner = runner(&lowered, backends, &options);
            let mut sequence = runner.begin(512);
            let got = feed(&mut runner, &mut sequence, &want.ids);
            let error = nmse(&want.logits, &got);
            let about = format!("{}: {:?} {:?}", file.display(), options.device, options.pins);
            println!("{about}: NMSE {error:.1e}");
            assert!(error < 1e-9, "{about}: NMSE {error:e}");
            let first = argmax(&got[got.len() - got.len() / want.ids.len()..]);
            let tokens = greedy_from(&mut runner, &mut sequence, first, want.greedy.len());
            assert_eq!(tokens, want.greedy, "{about}");
        }
    }
}

#[test]
fn the_encoder_gives_its_embeddings_on_the_npu() {
    let Some(backends) = with_npu() else { return };
    for folder in folders(&["bert"]) {
        for file in model_files(&folder) {
            let file = ModelFile::open(&file).expect("opens");
            let lower = LowerOptions { pooling: PoolingChoice::Raw(Pooling::Mean) };
            let lowered = Lowered::new(file, lower).expect("lowers");
            let tokens: Vec<u32> = random_tokens(&lowered, 40, 3);
            let of = |device: &str| {
                let options = ModelOptions { lower, ..exact_options(device) };
                logits(&mut runner(&lowered, backends, &options), &tokens)
            };
            let error = nmse(&of("ref0"), &of(NPU));
            assert!(error < 1e-9, "NMSE {error:e}");
        }
    }
}

/// Each unit that the NPU takes on it or on cpu0, in each phase.
fn random_pins(lowered: &Lowered, seed: u64) -> Vec<Pin> {
    let mut random = SplitMix64::new(seed);
    let mut pins = Vec::new();
    for phase in [Phase::Prefill, Phase::Decode] {
        let share = 1 + random.below(9);
        for unit in lowered.graph.units() {
            if is_for_npu(unit.kind) && random.below(10) < share {
                let (pattern, device) = (unit.name(), NPU.to_owned());
                pins.push(Pin { pattern, device, phase: Some(phase) });
            }
        }
    }
    pins
}

#[test]
fn random_placements_over_cpu_and_npu_give_the_same_greedy_tokens() {
    let Some(backends) = with_npu() else { return };
    let mut models = vec![demo()];
    models.extend(["smollm", "gemma3", "qwen3moe"].map(|name| lowered(&model_file(name))));
    let tokens = |lowered: &Lowered, options: &ModelOptions| {
        greedy(&mut runner(lowered, backends, options), &random_tokens(lowered, 20, 5), 16)
    };
    let wants: Vec<Vec<u32>> =
        models.iter().map(|lowered| tokens(lowered, &exact_options("cpu0"))).collect();
    for seed in 0..PLANS {
        let which = seed as usize % models.len();
        let options = with_pins(random_pins(&models[which], seed));
        assert_eq!(tokens(&models[which], &options), wants[which], "{seed}: {:?}", options.pins);
    }
}

#[test]
fn prompts_of_any_length_and_any_chunks_agree_with_the_cpu() {
    let Some(backends) = with_npu() else { return };
    let lowered = demo();
    let most = lowered.hyper.context.min(620);
    assert!(most >= 300, "the demo model's context is {most}");
    let prompt = random_tokens(&lowered, most - 1, 11);
    let options =
        |device: &str, chunk| ModelOptions { chunk, context: Some(most), ..exact_options(device) };
    let logits = |runner: &mut Runner, prompt: &[u32]| {
        let mut sequence = runner.begin(most);
        let all = feed(runner, &mut sequence, prompt);
        runner.end(sequence);
        all
    };
    let mut cpu = runner(&lowered, backends, &options("cpu0", 512));
    let want = logits(&mut cpu, &prompt);
    let width = want.len() / prompt.len();
    for chunk in [512, 100, 16, 7] {
        let mut npu = runner(&lowered, backends, &options(NPU, chunk));
        for count in [1, 2, 3, 15, 16, 17, 63, 64, 65, 129, 255, 256, 257, 300, most - 1] {
            let got = logits(&mut npu, &prompt[..count]);
            let error = nmse(&want[..count * width], &got);
            assert!(error < 1e-9, "{count} tokens in chunks of {chunk}: NMSE {error:e}");
        }
    }
}

#[test]
fn the_npu_reads_the_prompt_and_the_cpu_generates_and_the_other_way_round() {
    let Some(backends) = with_npu() else { return };
    let lowered = demo();
    let prompt = random_tokens(&lowered, 90, 4);
    let tokens =
        |options: &ModelOptions| greedy(&mut runner(&lowered, backends, options), &prompt, 24);
    let want = tokens(&exact_options("cpu0"));
    for phase in ["prefill", "decode"] {
        let all = ["blk.*.attn_in", "blk.*.attn_out", "blk.*.ffn", "head"];
        let texts: Vec<String> = all.iter().map(|unit| format!("{phase}:{unit}=npu0")).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let options = with_pins(pins(&texts));
        let plan = lowered.plan(backends, &options).expect("places");
        for bucket in &plan.buckets {
            let used = bucket.devices().contains(NPU);
            assert_eq!(used, bucket.bucket.phase.name() == phase, "{phase}: {bucket:?}");
        }
        assert_eq!(tokens(&options), want, "{phase} on the NPU");
    }
}

#[test]
fn three_devices_share_one_plan() {
    let Some(backends) = detect(NumericForm::F32, true) else { return };
    if !has_gpu(&backends) {
        return;
    }
    for lowered in [demo(), lowered(&model_file("gemma3"))] {
        let prompt = random_tokens(&lowered, 40, 6);
        let tokens =
            |options: &ModelOptions| greedy(&mut runner(&lowered, &backends, options), &prompt, 12);
        let want = tokens(&exact_options("cpu0"));
        let texts = ["blk.*.ffn=npu0", "blk.0.attn_in=npu0", "blk.1.attn_out=gpu0", "head=gpu0"];
        let options = with_pins(pins(&texts));
        let plan = lowered.plan(&backends, &options).expect("places");
        let used: BTreeSet<&str> = plan.buckets.iter().flat_map(|b| b.devices()).collect();
        assert_eq!(used, BTreeSet::from(["cpu0", GPU, NPU]));
        assert_eq!(tokens(&options), want);
    }
}

#[test]
fn what_the_npu_does_not_take_goes_where_the_options_say_and_the_plan_tells() {
    let Some(backends) = with_npu() else { return };
    let lowered = lowered(&model_file("qwen3moe"));
    let options = exact_options(NPU);
    let plan = lowered.plan(backends, &options).expect("places");
    let told = plan.reasons.iter().any(|reason| {
        ["npu0 does not take", "embed", "blk.*.attn", "blk.*.moe", "cpu0"]
            .iter()
            .all(|part| reason.contains(part))
    });
    assert!(told, "{:?}", plan.reasons);
    let options = ModelOptions { npu_fallback: NpuFallback::Error, ..options };
    let plan = lowered.plan(backends, &options).expect("places");
    let error = lowered.runner(backends, &plan, &options).expect_err("attention is refused");
    let text = error.to_string();
    assert!(text.contains("npu0") && text.contains("looking up tokens"), "{text}");
}

/// Mean over rows of `sum p ln (p / q)` of two rows of logits each.
fn divergence(want: &[f32], got: &[f32], width: usize) -> f64 {
    let shares = |row: &[f32]| -> Vec<f64> {
        let most = row.iter().fold(f32::NEG_INFINITY, |most, &x| most.max(x));
        let raised: Vec<f64> = row.iter().map(|&x| f64::from(x - most).exp()).collect();
        let total: f64 = raised.iter().sum();
        raised.iter().map(|x| (x / total).ln()).collect()
    };
    let rows = want.chunks_exact(width).zip(got.chunks_exact(width));
    let each = rows.map(|(want, got)| {
        let pairs = shares(want).into_iter().zip(shares(got));
        pairs.map(|(p, q)| p.exp() * (p - q)).sum::<f64>()
    });
    each.sum::<f64>() / (want.len() / width) as f64
}

fn check_divergence(form: NumericForm, most: f64) {
    let Some(backends) = detect(form, false) else { return };
    let lowered = demo();
    let prompt = random_tokens(&lowered, 120, 9);
    let of =
        |device: &str| logits(&mut runner(&lowered, &backends, &exact_options(device)), &prompt);
    let (want, got) = (of("cpu0"), of(NPU));
    let divergence = divergence(&want, &got, want.len() / prompt.len());
    let error = nmse(&want, &got);
    println!("{form}: mean KL divergence {divergence:.1e}, NMSE {error:.1e} on the demo model");
    assert!(divergence < most, "{form}: {divergence:e}, allowed {most:e}");
    assert!(divergence > 0.0, "{form} rounds");
}

#[test]
fn halves_stay_close_to_exact_logits() {
    check_divergence(NumericForm::F16, 1e-5);
}

#[test]
fn the_files_own_codes_give_the_same_greedy_tokens() {
    let Some(backends) = detect(NumericForm::Codes, false) else { return };
    let lowered = demo();
    let prompt = random_tokens(&lowered, 70, 12);
    let on = |device: &str| runner(&lowered, &backends, &exact_options(device));
    let error = nmse(&logits(&mut on("cpu0"), &prompt), &logits(&mut on(NPU), &prompt));
    println!("codes: NMSE {error:.1e} on the demo model");
    assert!(error < 1e-9, "NMSE {error:e}");
    assert_eq!(greedy(&mut on(NPU), &prompt, 24), greedy(&mut on("cpu0"), &prompt, 24));
}

#[test]
fn four_bits_stay_as_close_as_the_documentation_says() {
    check_divergence(NumericForm::Int4, 0.5);
}

#[test]
fn keys_and_values_in_halves_work_beside_the_npu() {
    let Some(backends) = with_npu() else { return };
    let lowered = demo();
    let prompt = random_tokens(&lowered, 60, 2);
    let tokens = |device: &str| {
        let options = ModelOptions { kv_type: KvType::F16, ..exact_options(device) };
        greedy(&mut runner(&lowered, backends, &options), &prompt, 16)
    };
    assert_eq!(tokens(NPU), tokens("cpu0"));
}
