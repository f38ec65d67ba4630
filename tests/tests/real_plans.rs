//! A real model under forced plans: whatever the placement, the same tokens and nearly the same logits.
//! Runs where `TREFOIL_REAL_MODELS` names the folder that `tests/real/fetch.sh` fills.

use std::path::PathBuf;

use trefoil_devices_api::{DomainId, Phase};
use trefoil_engine::backends::Backends;
use trefoil_engine::model::{Lowered, ModelOptions};
use trefoil_scheduler::Pin;
use trefoil_tests::devices::{GPU, with_gpu};
use trefoil_tests::mutation::SplitMix64;
use trefoil_tests::numbers::{argmax, nmse};
use trefoil_tests::running::{exact_options, feed, lowered, runner};

/// Placements.
const PLANS: u64 = 12;
const TOKENS: usize = 24;
/// Largest error of all logits together.
const MOST_ERROR: f64 = 1e-4;

/// Tokens of a prompt: any do.
const PROMPT: [u32; 8] = [1, 504, 3575, 282, 4649, 314, 7042, 28];

/// Runs of units on one device each, in each phase on others; the slow ones get few.
fn random_pins(lowered: &Lowered, devices: &[(&str, usize)], seed: u64) -> Vec<Pin> {
    let mut random = SplitMix64::new(seed);
    let total: usize = devices.iter().map(|(_, share)| share).sum();
    let pick = |random: &mut SplitMix64| {
        let mut at = random.below(total);
        let found = devices.iter().find(|(_, share)| {
            let here = at < *share;
            at = at.saturating_sub(*share);
            here
        });
        found.expect("the shares fill the total").0
    };
    let mut pins = Vec::new();
    for phase in [Phase::Prefill, Phase::Decode] {
        let stays = 4 + random.below(12);
        let mut device = pick(&mut random);
        for unit in lowered.graph.units() {
            if random.below(stays) == 0 {
                device = pick(&mut random);
            }
            pins.push(Pin { pattern: unit.name(), device: device.to_owned(), phase: Some(phase) });
        }
    }
    pins
}

/// Greedy tokens, and the logits that they were chosen by.
fn generated(
    lowered: &Lowered,
    backends: &Backends,
    options: &ModelOptions,
) -> (Vec<u32>, Vec<f32>) {
    let mut runner = runner(lowered, backends, options);
    let mut sequence = runner.begin(64);
    let prompt = feed(&mut runner, &mut sequence, &PROMPT);
    let mut logits = prompt[prompt.len() - lowered.vocabulary()..].to_vec();
    let mut tokens = vec![argmax(&logits)];
    while tokens.len() < TOKENS {
        let row = feed(&mut runner, &mut sequence, &tokens[tokens.len() - 1..]);
        tokens.push(argmax(&row));
        logits.extend(row);
    }
    runner.end(sequence);
    (tokens, logits)
}

#[test]
fn smollm2_under_forced_plans_gives_the_same_tokens() {
    let Some(models) = std::env::var_os("TREFOIL_REAL_MODELS") else { return };
    let Some(backends) = with_gpu(true) else { return };
    let lowered = lowered(&PathBuf::from(models).join("SmolLM2-135M-Instruct.Q4_1.gguf"));
    let gpu = backends.devices.iter().find(|device| device.info().name == GPU).expect("is here");
    let shared = gpu.domains()[0].id == DomainId::HOST;
    let base = || ModelOptions { context: Some(64), ..exact_options("cpu0") };
    let (tokens, logits) = generated(&lowered, backends, &base());
    assert_eq!(tokens.len() * lowered.vocabulary(), logits.len());
    let mut worst = 0.0f64;
    for seed in 0..PLANS {
        let mut pins = random_pins(&lowered, &[("cpu0", 20), (GPU, 6)], seed);
        if seed % 6 == 0 {
            // The reference takes a second for what others do at once: it gets one block of two plans.
            let block = format!("blk.{}.", seed + 3);
            for pin in pins.iter_mut().filter(|pin| pin.pattern.starts_with(&block)) {
                pin.device = "ref0".to_owned();
            }
        }
        if !shared {
            // Keys and values lie in RAM, which a card does not address.
            for pin in pins.iter_mut().filter(|pin| pin.pattern.ends_with(".attn")) {
                pin.device = "cpu0".to_owned();
            }
        }
        let of = |device: &str| pins.iter().filter(|pin| pin.device == device).count();
        let line = format!(
            "seed {seed}: {} units on cpu0, {} on {GPU}, {} on ref0",
            of("cpu0"),
            of(GPU),
            of("ref0")
        );
        let start = std::time::Instant::now();
        let (got, got_logits) =
            generated(&lowered, backends, &ModelOptions { pins: pins.clone(), ..base() });
        let error = nmse(&logits, &got_logits);
        assert_eq!(of("ref0") > 0, seed % 6 == 0, "{line}");
        println!("{line}: NMSE {error:.1e}, {:.1?}", start.elapsed());
        assert_eq!(got, tokens, "{line}");
        assert!(error <= MOST_ERROR, "{line}: NMSE {error:e}");
        worst = worst.max(error);
    }
    assert!(worst > 0.0, "some plan computes otherwise than the CPU does");
}
