//! What must not change a result on the GPU: chunks, what else is in the step, how weights are cut.

use trefoil_engine::backends::{BackendOptions, Backends};
use trefoil_engine::kv::KvType;
use trefoil_engine::model::{Lowered, ModelOptions};
use trefoil_engine::quantize::Mixture;
use trefoil_engine::runner::{Outputs, Sequence};
use trefoil_engine::synthetic::Shape;
use trefoil_graph::ExpertHyper;
use trefoil_tests::devices::{GPU, gpu_options, has_gpu, with_gpu};
use trefoil_tests::made::{TINY, made};
use trefoil_tests::numbers::nmse;
use trefoil_tests::running::{
    demo, exact_options, feed, logits, lowered, model_file, random_tokens, runner,
};

const MODELS: &[&str] = &["smollm", "gemma3", "qwen3moe", "phi3-longrope"];

fn default_options() -> ModelOptions {
    ModelOptions { device: Some(GPU.to_owned()), ..ModelOptions::default() }
}

fn chunks_agree(
    backends: &Backends,
    lowered: &Lowered,
    options: &ModelOptions,
    (length, bound): (usize, f64),
) {
    let tokens = random_tokens(lowered, length, 5);
    let whole = logits(&mut runner(lowered, backends, options), &tokens);
    for chunk in [1, 2, 7, 16, 33, 74].into_iter().filter(|&chunk| chunk < length) {
        let options = ModelOptions { chunk, ..options.clone() };
        let parts = logits(&mut runner(lowered, backends, &options), &tokens);
        let error = nmse(&whole, &parts);
        let name = lowered.hyper.name.as_deref().unwrap_or_default();
        println!("{name}, chunk {chunk}: NMSE {error:.1e}");
        assert!(error <= bound, "{name}, chunk {chunk}: NMSE {error:e}");
    }
}

#[test]
fn chunks_of_any_size_give_the_same_logits() {
    let Some(backends) = with_gpu(true) else { return };
    for name in MODELS {
        chunks_agree(backends, &lowered(&model_file(name)), &exact_options(GPU), (75, 1e-6));
    }
    let Some(backends) = with_gpu(false) else { return };
    chunks_agree(backends, &demo(), &default_options(), (20, 1e-4));
}

/// Feeds prompts of these lengths, then decodes tokens of each alone and in batches of 2 and more:
/// every row must be the same bit for bit.
fn batches_agree(
    backends: &Backends,
    lowered: &Lowered,
    options: &ModelOptions,
    lens: &[usize],
    batches: &[usize],
) {
    const STEPS: u32 = 2;
    let context = lens.iter().max().expect("some") + 8;
    let options = ModelOptions {
        decode_batch: lens.len(),
        kv_tokens: Some(lens.len() * (context + 16)),
        ..options.clone()
    };
    let mut runner = runner(lowered, backends, &options);
    let mut sequences: Vec<Sequence> = Vec::new();
    for (seed, &len) in lens.iter().enumerate() {
        let mut sequence = runner.begin(context);
        let prompt = random_tokens(lowered, len, seed as u64);
        runner.feed(&mut sequence, &prompt, Outputs::None, |_, _| ()).expect("runs");
        sequences.push(sequence);
    }
    let mut alone: Vec<Vec<Vec<f32>>> = Vec::new();
    for (sequence, &len) in sequences.iter_mut().zip(lens) {
        alone.push((0..STEPS).map(|step| feed(&mut runner, sequence, &[5 + step])).collect());
        runner.rewind(sequence, len);
    }
    for &batch in batches {
        // Others in each batch.
        let mut chosen: Vec<usize> = (0..lens.len()).collect();
        chosen.rotate_left(batch);
        chosen.truncate(batch);
        for step in 0..STEPS {
            let mut parts: Vec<&mut Sequence> = sequences
                .iter_mut()
                .enumerate()
                .filter_map(|(index, sequence)| chosen.contains(&index).then_some(sequence))
                .collect();
            let mut sorted = chosen.clone();
            sorted.sort_unstable();
            runner
                .decode(&mut parts, &vec![5 + step; batch], |row, values| {
                    let which = sorted[row];
                    let same = values == alone[which][step as usize];
                    assert!(same, "a past of {}, batch {batch}, step {step}", lens[which]);
                })
                .expect("runs");
        }
        for &index in &chosen {
            runner.rewind(&mut sequences[index], lens[index]);
        }
    }
}

/// Prompts within one part of a past that is split, at its borders, and over several parts.
const PASTS: [usize; 8] = [1, 40, 255, 256, 257, 511, 700, 1030];

#[test]
fn decoded_rows_are_bitwise_equal_alone_and_in_batches() {
    let Some(backends) = with_gpu(false) else { return };
    batches_agree(backends, &demo(), &default_options(), &[3, 1, 260, 9, 2], &[2, 5]);
    // Windows, over the border of a part.
    let windowed = lowered(&model_file("gemma3"));
    batches_agree(backends, &windowed, &exact_options(GPU), &[1, 40, 255, 256, 257, 400], &[2, 6]);
    let folder = tempfile::tempdir().expect("a folder");
    let experts = Some(ExpertHyper { count: 8, used: 2, ffn: 256 });
    let long = Shape { context: 2048, layers: 2, ..TINY };
    let shapes = [
        (long, Mixture::Q4_K_M, KvType::F16),
        (Shape { architecture: "llama", tied: false, ..long }, Mixture::Q8_0, KvType::F32),
        (
            Shape { architecture: "qwen3moe", tied: false, experts, ..long },
            Mixture::Q4_0,
            KvType::F16,
        ),
    ];
    for (shape, mixture, kv_type) in shapes {
        let lowered = made(folder.path(), shape, mixture);
        let options = ModelOptions { kv_type, ..default_options() };
        let batches = if shape.tied { &[2, 3, 4, 5, 6, 7, 8][..] } else { &[2, 5, 8] };
        batches_agree(backends, &lowered, &options, &PASTS, batches);
    }
}

#[test]
fn weights_cut_into_small_parts_give_the_same_bits() {
    let whole_parts = with_gpu(true);
    let Some(whole_parts) = whole_parts else { return };
    let cut = Backends::detect(BackendOptions { max_part: Some(64 << 10), ..gpu_options(true) });
    assert!(has_gpu(&cut), "it was here before");
    let mut models = vec![demo()];
    models.extend(["smollm", "qwen3moe"].map(|name| lowered(&model_file(name))));
    for lowered in models {
        let tokens = random_tokens(&lowered, 40, 3);
        let run = |backends: &Backends| {
            let mut runner = runner(&lowered, backends, &exact_options(GPU));
            let mut sequence = runner.begin(64);
            let mut all = feed(&mut runner, &mut sequence, &tokens);
            all.extend(feed(&mut runner, &mut sequence, &[7]));
            all
        };
        assert!(run(whole_parts) == run(&cut), "{:?} changes bits", lowered.hyper.name);
    }
}
