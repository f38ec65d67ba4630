//! Models of made-up weights: that they load, run and are told apart; steps of several sequences.

use trefoil_engine::backends::{BackendOptions, Backends};
use trefoil_engine::model::ModelOptions;
use trefoil_engine::quantize::Mixture;
use trefoil_engine::runner::{Outputs, RunError, Sequence};
use trefoil_engine::synthetic::{Cache, Shape, Synthetic, SyntheticError};
use trefoil_graph::metadata::Metadata;
use trefoil_graph::shape::{ROPE_DIVISORS, RopeScaling, uniform};
use trefoil_graph::{BlockType, ExpertHyper, ModelFile};
use trefoil_tests::made::{TINY, made};
use trefoil_tests::running::runner;

fn shapes() -> [Shape; 4] {
    let scaling = RopeScaling { factor: 8.0, low: 1.0, high: 4.0, original_context: 64.0 };
    [
        TINY,
        Shape { architecture: "llama", tied: false, rope_scaling: Some(scaling), ..TINY },
        Shape { architecture: "qwen2", tied: false, ..TINY },
        Shape {
            architecture: "qwen3moe",
            experts: Some(ExpertHyper { count: 8, used: 2, ffn: 256 }),
            ..TINY
        },
    ]
}

#[test]
fn every_mixture_of_every_architecture_runs() {
    let backends = Backends::detect(BackendOptions::default());
    let folder = tempfile::tempdir().expect("a folder");
    for (index, mixture) in Mixture::all().enumerate() {
        let shape = shapes()[index % 4];
        let lowered = made(folder.path(), shape, mixture);
        let name = format!("{} {mixture}", shape.architecture);
        let block = lowered.file.tensors["blk.1.attn_q.weight"].block;
        assert_eq!(block, mixture.block(), "{name}");
        assert_eq!(lowered.file.tensors["blk.0.attn_norm.weight"].block, BlockType::F32, "{name}");
        let mut runner = runner(&lowered, &backends, &ModelOptions::default());
        let mut sequence = runner.begin(300);
        let tokens: Vec<u32> = (0..300).map(|i| i * 7919 % 300).collect();
        runner
            .feed(&mut sequence, &tokens, Outputs::From(298), |row, logits| {
                assert!(logits.iter().all(|v| v.is_finite()), "{name} row {row}");
                let mean = logits.iter().sum::<f32>() / logits.len() as f32;
                let square = logits.iter().map(|v| (v - mean).powi(2)).sum::<f32>();
                let deviation = (square / logits.len() as f32).sqrt();
                assert!((0.05..5.0).contains(&deviation), "{name} row {row}: {deviation}");
            })
            .expect("runs");
        runner.end(sequence);
    }
}

#[test]
fn a_planned_shape_is_the_written_one() {
    let folder = tempfile::tempdir().expect("a folder");
    for shape in shapes() {
        let written = made(folder.path(), shape, Mixture::Q8_0).file;
        let planned = shape.without_weights(uniform(BlockType::Q8_0)).expect("fits");
        let name = shape.architecture;
        for (key, value) in planned.metadata.iter().filter(|(key, _)| *key != "general.name") {
            assert_eq!(written.metadata.get(key), Some(value), "{name}: {key}");
        }
        let sizes = |file: &ModelFile| -> Vec<_> {
            file.tensors.values().map(|t| (t.name.clone(), t.shape.clone(), t.block)).collect()
        };
        assert_eq!(sizes(&planned), sizes(&written), "{name}");
        let floats = |file: &ModelFile, tensor: &str| -> Option<Vec<f32>> {
            let tensor = file.tensors.get(tensor)?;
            let len = 4 * tensor.shape.iter().product::<u64>() as usize;
            let bytes = &tensor.storage.bytes()[tensor.offset as usize..][..len];
            let number = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            Some(bytes.chunks_exact(4).map(number).collect())
        };
        let divisors = shape.rope_divisors();
        assert_eq!(floats(&planned, ROPE_DIVISORS), divisors, "{name}");
        assert_eq!(floats(&written, ROPE_DIVISORS), divisors, "{name}");
        let bias = floats(&written, "blk.1.attn_k.bias");
        assert_eq!(bias.is_some(), name == "qwen2");
        let bias = bias.unwrap_or_default();
        assert!(bias.iter().all(|v| v.abs() < 0.2), "around 0: {bias:?}");
        assert_eq!(bias.is_empty(), bias.iter().all(|&v| v == 0.0), "not all 0");
    }
}

#[test]
fn the_cache_makes_a_model_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = Cache { folder: folder.path().join("of/shapes") };
    let model = Synthetic { shape: TINY, mixture: Mixture::Q8_0, tokenizer: None };
    let mut calls = 0;
    let path = cache.provide(&model, &mut |_, _| calls += 1).expect("makes");
    assert!(calls > 0);
    let first = std::fs::read(&path).expect("it is there");
    let again = cache.provide(&model, &mut |_, _| panic!("made again")).expect("is there");
    assert_eq!(again, path);
    // The same model is the same file, wherever it is made.
    let other = folder.path().join("other.gguf");
    model.write(&other, &mut |_, _| ()).expect("writes");
    assert!(std::fs::read(other).expect("it is there") == first);
    assert_eq!(std::fs::read_dir(&cache.folder).expect("a folder").count(), 1, "nothing else");
}

#[test]
fn tokenizers_are_taken_over_or_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = Cache { folder: folder.path().to_path_buf() };
    let mut tokenizer = Metadata::new();
    let tokens: Vec<String> = (0..300).map(|i| format!("token {i}")).collect();
    tokenizer.set("tokenizer.ggml.tokens", tokens);
    tokenizer.set("general.name", "of the other file");
    let plain = Synthetic { shape: TINY, mixture: Mixture::F16, tokenizer: None };
    let model = Synthetic { tokenizer: Some(tokenizer), ..plain.clone() };
    assert_ne!(model.file_name(), plain.file_name());
    let path = cache.provide(&model, &mut |_, _| ()).expect("makes");
    let metadata = ModelFile::open(&path).expect("opens").metadata.clone();
    let tokens = metadata.strings("tokenizer.ggml.tokens").expect("texts").expect("there");
    assert_eq!(tokens[299], "token 299");
    assert_eq!(metadata.str("general.name"), Ok(Some("tiny with made-up weights")));

    let larger = Synthetic { shape: Shape { vocabulary: 301, ..TINY }, ..model };
    let error = cache.provide(&larger, &mut |_, _| ()).expect_err("another size");
    assert!(matches!(error, SyntheticError::Vocabulary { expected: 301, got: 300 }), "{error}");
    let small = Synthetic { shape: Shape { vocabulary: 9, ..TINY }, ..plain.clone() };
    let error = cache.provide(&small, &mut |_, _| ()).expect_err("too small");
    assert!(matches!(error, SyntheticError::SmallVocabulary { got: 9, .. }), "{error}");
    // No disk has room for this one.
    let vast = Shape { layers: 1 << 14, ffn: 1 << 23, ..TINY };
    let vast = Synthetic { shape: vast, ..plain };
    let error = cache.provide(&vast, &mut |_, _| ()).expect_err("too large");
    assert!(matches!(error, SyntheticError::Space { .. }), "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 1, "nothing is left");
}

#[test]
fn a_batch_decodes_what_each_sequence_would_alone() {
    let backends = Backends::detect(BackendOptions::default());
    let folder = tempfile::tempdir().expect("a folder");
    for shape in shapes() {
        let lowered = made(folder.path(), shape, Mixture::Q4_K_M);
        let options =
            ModelOptions { decode_batch: 3, kv_tokens: Some(3 * 512), ..Default::default() };
        let mut runner = runner(&lowered, &backends, &options);
        assert_eq!((runner.decode_batch(), runner.context()), (3, 512));
        // Three whole contexts fit, whatever a page holds.
        let prompts: [Vec<u32>; 3] =
            [40, 17, 510].map(|len| (0..len).map(|i| (i * 31 + len) % 300).collect());
        let mut sequences: Vec<Sequence> = Vec::new();
        for prompt in &prompts {
            let mut sequence = runner.begin(512);
            runner.feed(&mut sequence, prompt, Outputs::None, |_, _| ()).expect("runs");
            sequences.push(sequence);
        }
        let mut alone: Vec<Vec<f32>> = Vec::new();
        for (sequence, prompt) in sequences.iter_mut().zip(&prompts) {
            for token in [5, 6] {
                runner
                    .feed(sequence, &[token], Outputs::Last, |_, row| alone.push(row.to_vec()))
                    .expect("runs");
            }
            runner.rewind(sequence, prompt.len());
            assert_eq!(sequence.len(), prompt.len());
        }
        let mut together = vec![Vec::new(); 6];
        for (step, token) in [5, 6].into_iter().enumerate() {
            let mut all: Vec<&mut Sequence> = sequences.iter_mut().collect();
            runner
                .decode(&mut all, &[token; 3], |index, row| {
                    together[2 * index + step] = row.to_vec()
                })
                .expect("runs");
        }
        assert!(alone == together, "{}: bit for bit", shape.architecture);

        let mut all: Vec<&mut Sequence> = sequences.iter_mut().collect();
        let error = runner.decode(&mut all, &[1; 2], |_, _| ()).expect_err("a token is missing");
        assert!(matches!(error, RunError::UnpairedTokens { sequences: 3, tokens: 2 }), "{error}");
        let error = runner.decode(&mut all, &[1; 3], |_, _| ()).expect_err("one is full");
        assert!(matches!(error, RunError::ContextFull { wanted: 513, .. }), "{error}");
        assert_eq!(all[0].len(), 42, "none is longer");
        let mut fourth = runner.begin(4);
        let mut all: Vec<&mut Sequence> = sequences[..2].iter_mut().collect();
        all.push(&mut fourth);
        runner.decode(&mut all, &[1; 3], |_, _| ()).expect("three fit");
        let mut fifth = runner.begin(4);
        all.push(&mut fifth);
        let error = runner.decode(&mut all, &[1; 4], |_, _| ()).expect_err("four do not");
        assert!(error.to_string().contains("at most 3 rows, got 4"), "{error}");
    }
}
