//! One model over two devices: any placement gives the same text.

use trefoil_devices_api::{DomainId, Phase};
use trefoil_engine::backends::{BackendOptions, Backends};
use trefoil_engine::model::{Lowered, ModelOptions};
use trefoil_scheduler::Pin;
use trefoil_tests::devices::{GPU, gpu_options, with_gpu};
use trefoil_tests::mutation::SplitMix64;
use trefoil_tests::running::{
    demo, exact_options, greedy, lowered, model_file, random_tokens, runner,
};

/// Placements per run, over all models.
const PLANS: u64 = 50;
const TOKENS: usize = 16;

/// Each unit on one of the two devices in each phase, as often on one as on the other or mostly on
/// one; next to each other more often than not.
fn random_pins(lowered: &Lowered, seed: u64) -> Vec<Pin> {
    let mut random = SplitMix64::new(seed);
    let mut pins = Vec::new();
    for phase in [Phase::Prefill, Phase::Decode] {
        let share = 1 + random.below(9);
        let stays = random.below(4);
        let mut on_gpu = random.below(10) < share;
        for unit in lowered.graph.units() {
            if random.below(4) >= stays {
                on_gpu = random.below(10) < share;
            }
            let device = if on_gpu { GPU } else { "cpu0" }.to_owned();
            pins.push(Pin { pattern: unit.name(), device, phase: Some(phase) });
        }
    }
    pins
}

/// `PPP|DDD`: `g` or `c` for each unit of prefill and decode.
fn letters(pins: &[Pin]) -> String {
    let letter = |pin: &Pin| if pin.device == GPU { 'g' } else { 'c' };
    let (prefill, decode) = pins.split_at(pins.len() / 2);
    let text = |pins: &[Pin]| pins.iter().map(letter).collect::<String>();
    format!("{}|{}", text(prefill), text(decode))
}

fn tokens_of(backends: &Backends, lowered: &Lowered, options: &ModelOptions) -> Vec<u32> {
    let prompt = random_tokens(lowered, 20, 5);
    greedy(&mut runner(lowered, backends, options), &prompt, TOKENS)
}

#[test]
fn random_placements_over_cpu_and_gpu_give_the_same_greedy_tokens() {
    let Some(backends) = with_gpu(true) else { return };
    let gpu = backends.devices.iter().find(|device| device.info().name == GPU).expect("is here");
    let shared = gpu.domains()[0].id == DomainId::HOST;
    let mut models = vec![demo()];
    models.extend(["smollm", "gemma3", "qwen3moe"].map(|name| lowered(&model_file(name))));
    let wants: Vec<Vec<u32>> =
        models.iter().map(|lowered| tokens_of(backends, lowered, &exact_options("cpu0"))).collect();
    for seed in 0..PLANS {
        let which = seed as usize % models.len();
        let (lowered, want) = (&models[which], &wants[which]);
        let mut pins = random_pins(lowered, seed);
        if !shared {
            // Keys and values lie in RAM, which a card does not address.
            for pin in pins.iter_mut().filter(|pin| pin.pattern.ends_with(".attn")) {
                pin.device = "cpu0".to_owned();
            }
        }
        let name = lowered.hyper.name.as_deref().unwrap_or_default().to_owned();
        let line = format!("{name}, seed {seed}: {}", letters(&pins));
        println!("{line}");
        let options = ModelOptions { pins, ..exact_options("cpu0") };
        assert_eq!(&tokens_of(backends, lowered, &options), want, "{line}");
    }
}

#[test]
fn the_demo_model_answers_on_the_gpu_as_on_the_cpu() {
    let Some(backends) = with_gpu(true) else { return };
    let lowered = demo();
    let text = std::fs::read_to_string(trefoil_tests::golden::data().join("demo.json"));
    let document: serde_json::Value =
        serde_json::from_str(&text.expect("the repository carries it")).expect("JSON");
    let replies = document["replies"].as_array().expect("replies");
    let ids = |value: &serde_json::Value| -> Vec<u32> {
        let list = value.as_array().expect("a list").iter();
        list.map(|id| u32::try_from(id.as_u64().expect("an id")).expect("32 bits")).collect()
    };
    let options =
        |device: &str| ModelOptions { device: Some(device.to_owned()), ..ModelOptions::default() };
    let mut cpu = runner(&lowered, backends, &options("cpu0"));
    let mut gpu = runner(&lowered, backends, &options(GPU));
    // One of 60 tokens, and the start of the longest.
    let chosen = || replies.iter().filter(|reply| ids(&reply["ids_out"]).len() >= 60);
    assert!(chosen().count() >= 2);
    for reply in chosen().take(2) {
        let prompt = ids(&reply["ids_in"]);
        let want = ids(&reply["ids_out"])[..60].to_vec();
        assert_eq!(greedy(&mut cpu, &prompt, 60), want, "cpu0: {}", reply["prompt"]);
        assert_eq!(greedy(&mut gpu, &prompt, 60), want, "{GPU}: {}", reply["prompt"]);
    }
}

/// The same GPU as a card: weights are uploaded, tensors copied, KV pages where attention runs.
#[test]
fn a_card_with_memory_of_its_own_gives_the_same_greedy_tokens() {
    if with_gpu(true).is_none() {
        return;
    }
    let backends = Backends::detect(BackendOptions { own_memory: true, ..gpu_options(true) });
    let gpu = backends.devices.iter().find(|device| device.info().name == GPU).expect("is here");
    let own = gpu.domains()[0].id;
    assert_ne!(own, DomainId::HOST, "memory of its own");
    let lowered = lowered(&model_file("qwen3moe"));
    let want = tokens_of(&backends, &lowered, &exact_options("cpu0"));
    let pins: [&[&str]; 6] = [
        &["*=gpu0"],
        &["blk.0.*=gpu0"],
        &["blk.*.attn=gpu0", "head=gpu0"],
        &["blk.*.moe=gpu0"],
        &["embed=gpu0", "blk.1.attn_in=gpu0", "blk.1.attn_out=gpu0"],
        &["prefill:blk.1.moe=gpu0", "decode:head=gpu0", "blk.0.attn=gpu0"],
    ];
    for pins in pins {
        let pins = pins.iter().map(|pin| pin.parse().expect("a pin")).collect();
        let options = ModelOptions { pins, ..exact_options("cpu0") };
        assert_eq!(tokens_of(&backends, &lowered, &options), want, "{:?}", options.pins);
        assert_eq!(backends.memory.used(own).0, scratch_of(&backends, own), "all is given back");
    }
}

/// What stays held while the device lives: its scratch.
fn scratch_of(backends: &Backends, domain: DomainId) -> u64 {
    let holders = backends.memory.holders(domain);
    holders.iter().filter(|(name, _)| name == "scratch").map(|(_, bytes)| bytes.0).sum()
}
