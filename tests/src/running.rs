//! Running models: what many tests do with a runner.

use std::path::{Path, PathBuf};

use trefoil_engine::backends::Backends;
use trefoil_engine::kv::KvType;
use trefoil_engine::model::{Lowered, ModelOptions, open_file};
use trefoil_engine::runner::{Outputs, Runner, Sequence};
use trefoil_graph::ModelFile;
use trefoil_kernels::cases::Random;

use crate::golden;
use crate::numbers::argmax;

/// A tiny model that the repository carries.
pub fn model_file(name: &str) -> PathBuf {
    golden::data().join("models").join(name).join("model-f32.gguf")
}

/// A model file, lowered as by default.
pub fn lowered(path: &Path) -> Lowered {
    let file = ModelFile::open(path).expect("opens");
    Lowered::new(file, ModelOptions::default().lower).expect("lowers")
}

/// The built-in model.
pub fn demo() -> Lowered {
    Lowered::new(open_file("demo").expect("opens"), ModelOptions::default().lower).expect("lowers")
}

/// Everything on one device, keys and values in f32.
pub fn exact_options(device: &str) -> ModelOptions {
    ModelOptions {
        kv_type: KvType::F32,
        device: Some(device.to_owned()),
        ..ModelOptions::default()
    }
}

/// A model placed and compiled.
pub fn runner(lowered: &Lowered, backends: &Backends, options: &ModelOptions) -> Runner {
    let plan = lowered.plan(backends, options).expect("places");
    lowered.runner(backends, &plan, options).expect("compiles")
}

/// Feeds `tokens`; all their logits.
pub fn feed(runner: &mut Runner, sequence: &mut Sequence, tokens: &[u32]) -> Vec<f32> {
    let mut all = Vec::new();
    runner.feed(sequence, tokens, Outputs::All, |_, row| all.extend_from_slice(row)).expect("runs");
    all
}

/// All logits of a text of its own.
pub fn logits(runner: &mut Runner, tokens: &[u32]) -> Vec<f32> {
    let mut sequence = runner.begin(512);
    let all = feed(runner, &mut sequence, tokens);
    runner.end(sequence);
    all
}

/// Logits of all rows of a prompt of at least four tokens, and of its first four fed one by one behind
/// it: of both phases.
pub fn logits_of_both_phases(runner: &mut Runner, prompt: &[u32]) -> Vec<f32> {
    let mut sequence = runner.begin(512);
    let mut all = feed(runner, &mut sequence, prompt);
    for &token in &prompt[..4] {
        all.extend(feed(runner, &mut sequence, &[token]));
    }
    runner.end(sequence);
    all
}

/// `count` greedy tokens from `next` on, which is the first.
pub fn greedy_from(
    runner: &mut Runner,
    sequence: &mut Sequence,
    mut next: u32,
    count: usize,
) -> Vec<u32> {
    let mut tokens = vec![next];
    while tokens.len() < count {
        next = argmax(&feed(runner, sequence, &[next]));
        tokens.push(next);
    }
    tokens
}

/// `count` greedy tokens after a prompt.
pub fn greedy(runner: &mut Runner, prompt: &[u32], count: usize) -> Vec<u32> {
    let mut sequence = runner.begin(512);
    let mut last = Vec::new();
    runner
        .feed(&mut sequence, prompt, Outputs::Last, |_, row| last.extend_from_slice(row))
        .expect("runs");
    let tokens = greedy_from(runner, &mut sequence, argmax(&last), count);
    runner.end(sequence);
    tokens
}

/// Pseudo-random tokens of a model, the same on every run.
pub fn random_tokens(lowered: &Lowered, count: usize, seed: u64) -> Vec<u32> {
    let mut random = Random::new(seed);
    (0..count).map(|_| (random.bits() % lowered.vocabulary() as u64) as u32).collect()
}
