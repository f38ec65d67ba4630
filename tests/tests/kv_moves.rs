//! KV pages that move between memories at the change of phase: the text is the same as without.

use std::sync::Arc;

use trefoil_devices_api::{DomainId, Phase, Work};
use trefoil_devices_vulkan::{Instance, Tuning, VulkanOptions};
use trefoil_engine::backends::{BackendOptions, Backends};
use trefoil_engine::model::{Lowered, ModelOptions};
use trefoil_engine::records::CopyKind;
use trefoil_engine::runner::{Outputs, Runner, Sequence};
use trefoil_telemetry::SystemClock;
use trefoil_tests::devices::{GPU, gpu_options, with_gpu};
use trefoil_tests::faulty::Faulty;
use trefoil_tests::numbers::argmax;
use trefoil_tests::running::{
    demo, exact_options, feed, greedy, greedy_from, lowered, model_file, random_tokens, runner,
};

const PAGE: usize = 16;
/// Prompts of three pages, the last one not full, in three chunks.
const PROMPT: usize = 2 * PAGE + 5;
const TOKENS: usize = 14;

/// The GPU as a card: attention on it has its pages in its own memory.
fn card() -> Option<Backends> {
    with_gpu(true)?;
    let backends = Backends::detect(BackendOptions { own_memory: true, ..gpu_options(true) });
    let gpu = backends.devices.iter().find(|device| device.info().name == GPU).expect("is here");
    assert_ne!(gpu.domains()[0].id, DomainId::HOST);
    Some(backends)
}

fn options(pins: &[&str]) -> ModelOptions {
    let pins = pins.iter().map(|pin| pin.parse().expect("a pin")).collect();
    ModelOptions { pins, chunk: PAGE, decode_batch: 2, ..exact_options("cpu0") }
}

/// A runner whose plan moves the pages of these layers.
fn moving(lowered: &Lowered, backends: &Backends, pins: &[&str], layers: &[usize]) -> Runner {
    let options = options(pins);
    let plan = lowered.plan(backends, &options).expect("places");
    let later = plan.kv_decode.as_ref().expect("pages move");
    let moved = (0..later.len()).filter(|&layer| plan.kv[layer] != later[layer]);
    assert_eq!(moved.collect::<Vec<_>>(), layers, "{pins:?}");
    assert!(plan.reasons.iter().any(|reason| reason.contains("KV pages move")));
    lowered.runner(backends, &plan, &options).expect("compiles")
}

/// Feeds a prompt as a generation does: only the last row's output is wanted. The token after it.
fn read(runner: &mut Runner, sequence: &mut Sequence, tokens: &[u32]) -> u32 {
    let mut next = None;
    runner.feed(sequence, tokens, Outputs::Last, |_, row| next = Some(argmax(row))).expect("runs");
    next.expect("one row was wanted")
}

#[test]
fn plans_with_moves_give_the_same_greedy_tokens() {
    let Some(backends) = card() else { return };
    let mut models = vec![demo()];
    let names = ["smollm", "gemma3", "qwen3moe", "llama", "phi3-longrope"];
    models.extend(names.map(|name| lowered(&model_file(name))));
    for lowered in &models {
        let layers: Vec<usize> = (0..lowered.graph.kv().len()).collect();
        let last = layers.len() - 1;
        let name = lowered.hyper.name.as_deref().unwrap_or_default();
        let prompt = random_tokens(lowered, PROMPT, 11);
        let want = greedy(&mut runner(lowered, &backends, &options(&[])), &prompt, TOKENS);
        let last_attn = format!("prefill:blk.{last}.attn={GPU}");
        let cases: [(&[&str], &[usize]); 5] = [
            (&["decode:blk.*.attn=gpu0"], &layers),
            (&["prefill:*=gpu0"], &layers),
            (&["decode:*=gpu0"], &layers),
            (&["decode:blk.0.attn=gpu0"], &[0]),
            (&[last_attn.as_str(), "blk.0.attn_out=gpu0"], &[last]),
        ];
        for (pins, moved) in cases {
            let mut runner = moving(lowered, &backends, pins, moved);
            assert_eq!(greedy(&mut runner, &prompt, TOKENS), want, "{name}: {pins:?}");
        }
    }
}

#[test]
fn only_pages_in_use_move_and_once() {
    let Some(backends) = card() else { return };
    let lowered = lowered(&model_file("smollm"));
    let layers: Vec<usize> = (0..lowered.graph.kv().len()).collect();
    let mut runner = moving(&lowered, &backends, &["prefill:*=gpu0"], &layers);
    let prompt = random_tokens(&lowered, PROMPT, 3);
    runner.executor.record(true);
    let mut sequence = runner.begin(512);
    let next = read(&mut runner, &mut sequence, &prompt);
    greedy_from(&mut runner, &mut sequence, next, 4);
    let (steps, dropped) = runner.executor.take_records();
    assert_eq!((steps.len(), dropped), (3 + 3, 0), "three chunks, three tokens fed");
    let card = DomainId(1);
    for (number, step) in steps.iter().enumerate() {
        let moves: Vec<_> =
            step.copies.iter().filter(|copy| copy.kind == CopyKind::KvPages).collect();
        if number != 2 {
            assert!(moves.is_empty(), "step {number} moves nothing");
            continue;
        }
        assert_eq!(moves.len(), layers.len(), "each layer once, behind the last chunk");
        for (layer, one) in moves.iter().enumerate() {
            assert_eq!((one.from, one.to, &*one.device), (card, DomainId::HOST, GPU));
            let pages = PROMPT.div_ceil(PAGE);
            assert_eq!(one.bytes as usize, pages * runner.executor.kv.page_bytes(layer));
            assert!(one.times.start >= step.end().expect("it ran"), "behind the result");
        }
    }
    runner.end(sequence);
}

#[test]
fn a_sequence_that_is_fed_again_takes_its_pages_back() {
    let Some(backends) = card() else { return };
    let lowered = lowered(&model_file("gemma3"));
    let layers: Vec<usize> = (0..lowered.graph.kv().len()).collect();
    let turns = [PROMPT, 3, PAGE, 40].map(|len| random_tokens(&lowered, len, len as u64));
    let talk = |runner: &mut Runner| {
        let mut sequence = runner.begin(512);
        let mut said = Vec::new();
        for (number, turn) in turns.iter().enumerate() {
            let next = read(runner, &mut sequence, turn);
            said.extend(greedy_from(runner, &mut sequence, next, 5));
            // Back into the last turn, also across the border of a page.
            let kept = sequence.len() - 2 * number;
            runner.rewind(&mut sequence, kept);
        }
        // Logits of all rows: nothing is sent ahead, decode has to fetch.
        let last = feed(runner, &mut sequence, &turns[1]);
        let width = last.len() / turns[1].len();
        let next = argmax(&last[last.len() - width..]);
        said.extend(greedy_from(runner, &mut sequence, next, 4));
        runner.end(sequence);
        said
    };
    let want = talk(&mut runner(&lowered, &backends, &options(&[])));
    for pins in [&["prefill:*=gpu0"], &["decode:blk.*.attn=gpu0"]] {
        assert_eq!(talk(&mut moving(&lowered, &backends, pins, &layers)), want, "{pins:?}");
    }
}

#[test]
fn sequences_of_one_step_move_each_their_own_pages() {
    let Some(backends) = card() else { return };
    let lowered = lowered(&model_file("qwen3moe"));
    let layers: Vec<usize> = (0..lowered.graph.kv().len()).collect();
    let prompts = [PROMPT, PAGE + 1].map(|len| random_tokens(&lowered, len, 70 + len as u64));
    let both = |runner: &mut Runner| {
        let mut sequences = [runner.begin(512), runner.begin(512)];
        let mut next: Vec<u32> = Vec::new();
        for (sequence, prompt) in sequences.iter_mut().zip(&prompts) {
            next.push(read(runner, sequence, prompt));
        }
        let mut said = next.clone();
        for round in 0..8 {
            if round == 4 {
                // One of them reads more in between: its pages go back, the other's stay.
                next[1] = read(runner, &mut sequences[1], &prompts[0]);
            }
            let [first, second] = &mut sequences;
            let fed = next.clone();
            runner
                .decode(&mut [first, second], &fed, |row, logits| next[row] = argmax(logits))
                .expect("runs");
            said.extend(&next);
        }
        sequences.into_iter().for_each(|sequence| runner.end(sequence));
        said
    };
    let want = both(&mut runner(&lowered, &backends, &options(&[])));
    for pins in [&["prefill:*=gpu0"], &["decode:*=gpu0"]] {
        assert_eq!(both(&mut moving(&lowered, &backends, pins, &layers)), want, "{pins:?}");
    }
}

#[test]
fn memory_is_counted_in_both_domains_and_given_back() {
    let Some(backends) = card() else { return };
    let lowered = lowered(&model_file("smollm"));
    let card = DomainId(1);
    let held = |domain| {
        let holders = backends.memory.holders(domain);
        holders.into_iter().find(|(name, _)| name == "KV cache").map_or(0, |(_, bytes)| bytes.0)
    };
    let options = options(&["prefill:*=gpu0"]);
    let plan = lowered.plan(&backends, &options).expect("places");
    {
        let mut runner = lowered.runner(&backends, &plan, &options).expect("compiles");
        for domain in [DomainId::HOST, card] {
            let planned = plan.memory.iter().find(|memory| memory.domain == domain);
            assert_eq!(planned.expect("listed").kv.0, held(domain), "{domain}");
            assert!(held(domain) > 0, "{domain}");
        }
        // Dropped while pages are on their way.
        let mut sequence = runner.begin(512);
        read(&mut runner, &mut sequence, &random_tokens(&lowered, 200, 1));
    }
    assert_eq!((held(DomainId::HOST), held(card)), (0, 0));
}

#[test]
fn pages_go_from_card_to_card_by_way_of_the_host() {
    let Some(mut backends) = card() else { return };
    let instance = Instance::open(false).expect("was opened before");
    let mut adapter = instance.adapters().into_iter().next().expect("gpu0 is one");
    adapter.host_import = None;
    let second = VulkanOptions {
        name: "gpu1".to_owned(),
        domain: DomainId(2),
        exact: true,
        cache: gpu_options(true).cache,
        memory_limit: None,
        tuning: Tuning::default(),
        max_part: None,
        keep_awake: None,
        fault: None,
    };
    let clock = Arc::new(SystemClock::default());
    let memory = backends.memory.clone();
    let second = trefoil_devices_vulkan::device(adapter, second, memory, clock).expect("opens");
    backends.devices.push(second);
    let lowered = lowered(&model_file("smollm"));
    let layers: Vec<usize> = (0..lowered.graph.kv().len()).collect();
    let prompt = random_tokens(&lowered, PROMPT, 5);
    let want = greedy(&mut runner(&lowered, &backends, &options(&[])), &prompt, TOKENS);
    let pins = ["prefill:*=gpu0", "decode:*=gpu1"];
    let mut runner = moving(&lowered, &backends, &pins, &layers);
    let plan = lowered.plan(&backends, &options(&pins)).expect("places");
    let on_host = plan.memory.iter().find(|memory| memory.domain == DomainId::HOST);
    let one_layer = runner.executor.kv.layer(Phase::Prefill, 0).len as u64;
    assert_eq!(on_host.expect("listed").kv.0, one_layer, "room for one layer on its way");
    runner.executor.record(true);
    assert_eq!(greedy(&mut runner, &prompt, TOKENS), want);
    let (steps, _) = runner.executor.take_records();
    let moves = steps.iter().flat_map(|step| &step.copies);
    let moves = moves.filter(|copy| copy.kind == CopyKind::KvPages).count();
    assert_eq!(moves, 2 * layers.len(), "up and down");
}

#[test]
fn a_plan_whose_pages_are_out_of_reach_is_refused_by_name() {
    let Some(backends) = card() else { return };
    let lowered = lowered(&model_file("smollm"));
    let options = options(&["decode:blk.0.attn=gpu0"]);
    let mut plan = lowered.plan(&backends, &options).expect("places");
    plan.kv_decode = None;
    let error = lowered.runner(&backends, &plan, &options).expect_err("out of reach").to_string();
    assert!(error.contains("decode blk.0.attn") && error.contains(GPU), "{error}");
    assert!(error.contains("ram") && error.contains("trefoil plan"), "{error}");
}

#[test]
fn a_move_that_fails_behind_a_prompt_is_said_once_and_made_again() {
    let Some(mut backends) = card() else { return };
    let at = backends.devices.iter().position(|device| device.info().name == GPU);
    let at = at.expect("is here");
    let faulty = Arc::new(Faulty::new(backends.devices[at].clone()));
    backends.devices[at] = faulty.clone();
    let lowered = lowered(&model_file("smollm"));
    let layers: Vec<usize> = (0..lowered.graph.kv().len()).collect();
    let prompt = random_tokens(&lowered, PROMPT, 9);
    let want = greedy(&mut runner(&lowered, &backends, &options(&[])), &prompt, TOKENS);
    for pins in [&["prefill:*=gpu0"], &["decode:blk.*.attn=gpu0"]] {
        for number in [1, layers.len() as u64] {
            let mut runner = moving(&lowered, &backends, pins, &layers);
            let mut sequence = runner.begin(512);
            faulty.fail(number, |work| matches!(work, Work::CopyPages { .. }));
            let next = read(&mut runner, &mut sequence, &prompt);
            assert_eq!(next, want[0], "the prompt was read before");
            let result = runner.feed(&mut sequence, &[next], Outputs::Last, |_, _| ());
            let error = result.expect_err("its pages did not come").to_string();
            assert!(error.contains(GPU) && error.contains("KV pages of layer"), "{error}");
            assert_eq!(sequence.len(), PROMPT);
            // The pages are still where they were, and go again.
            assert_eq!(greedy_from(&mut runner, &mut sequence, next, TOKENS), want, "{pins:?}");
            runner.end(sequence);
        }
    }
}
