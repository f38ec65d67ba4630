//! Damaged model files: every one opens or is refused, without a panic, in bounded memory and time.

use std::path::Path;
use std::sync::Arc;

use trefoil_graph::gguf::{self, TensorSpec};
use trefoil_graph::metadata::{Array, Metadata, Value};
use trefoil_graph::{BlockType, ModelFile, Storage};
use trefoil_tests::golden;
use trefoil_tests::memory::Counting;
use trefoil_tests::mutation::{SplitMix64, damaged};
use trefoil_tests::tally::{FACTOR, Tally, WORST_FACTOR};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A whole model of one block, with metadata of all sorts and tensors of several types.
fn gguf_seed() -> Vec<u8> {
    let metadata: Metadata = [
        ("general.architecture", Value::from("llama")),
        ("general.alignment", Value::U32(32)),
        ("llama.block_count", Value::U32(1)),
        ("llama.context_length", Value::U16(64)),
        ("llama.embedding_length", Value::U64(32)),
        ("llama.feed_forward_length", Value::I32(2)),
        ("llama.attention.head_count", Value::U32(2)),
        ("llama.attention.head_count_kv", Value::U32(1)),
        ("llama.attention.key_length", Value::U32(4)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
        ("a.bool", Value::Bool(true)),
        ("a.f64", Value::F64(0.5)),
        ("a.u16s", Value::from(vec![1u16, 2, 3])),
        ("a.bools", Value::from(vec![true, false])),
        ("a.nested", Value::Array(Array::Array(vec![Array::I64(vec![-1]), Array::U8(vec![])]))),
        ("tokenizer.ggml.tokens", Value::from(vec!["a".to_owned(), "bc".to_owned()])),
        ("tokenizer.ggml.scores", Value::from(vec![0.5f32, -1.0])),
    ]
    .into_iter()
    .collect();
    let specs = [
        TensorSpec::new("token_embd.weight", BlockType::Q4_0, [2, 32]),
        TensorSpec::new("output_norm.weight", BlockType::F32, [32]),
        TensorSpec::new("blk.0.attn_norm.weight", BlockType::F32, [32]),
        TensorSpec::new("blk.0.attn_q.weight", BlockType::Q8_0, [8, 32]),
        TensorSpec::new("blk.0.attn_k.weight", BlockType::Q8_0, [4, 32]),
        TensorSpec::new("blk.0.attn_v.weight", BlockType::BF16, [4, 32]),
        TensorSpec::new("blk.0.attn_output.weight", BlockType::F16, [32, 8]),
        TensorSpec::new("blk.0.ffn_norm.weight", BlockType::F32, [32]),
        TensorSpec::new("blk.0.ffn_gate.weight", BlockType::Q4_0, [2, 32]),
        TensorSpec::new("blk.0.ffn_up.weight", BlockType::Q4_0, [2, 32]),
        TensorSpec::new("blk.0.ffn_down.weight", BlockType::F32, [32, 2]),
        TensorSpec::new("a.stack_exps.weight", BlockType::F16, [2, 3, 4]),
    ];
    let data = specs.clone().map(|spec| vec![1u8; spec.bytes().expect("whole blocks") as usize]);
    let tensors: Vec<_> = specs.into_iter().zip(data.iter().map(Vec::as_slice)).collect();
    gguf::to_bytes(&metadata, &tensors).expect("a valid model")
}

#[test]
fn damaged_models_open_or_are_refused() {
    // One test: the counters see the whole process.
    let mut runs = Vec::new();
    runs.push(("GGUF in memory", gguf_in_memory(10_000)));
    runs.push(("GGUF in parts", gguf_in_parts(1_500)));
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (file, content) in folder_seed() {
        std::fs::write(folder.path().join(file), content).expect("a file in it");
    }
    ModelFile::open(folder.path()).expect("the undamaged folder opens");
    for (file, count) in [
        ("model-00001-of-00002.safetensors", 4_000),
        ("model.safetensors.index.json", 2_500),
        ("config.json", 3_500),
        ("generation_config.json", 500),
    ] {
        runs.push((file, folder_file(folder.path(), file, count)));
    }
    greedy_files(folder.path());
    for name in GOLDEN {
        let tally = golden_headers(name, 1_000);
        assert!(tally.lowered > 20, "{name}: {} lowered", tally.lowered);
        runs.push((name, tally));
    }
    let mut total = 0;
    assert!(runs[0].1.lowered > 100, "{}", runs[0].1.lowered);
    for (what, Tally { opened, lowered, refused, peak }) in &runs {
        println!(
            "{what}: {opened} opened, {lowered} of them lowered, {refused} refused, \
             at most {peak} bytes"
        );
        // Damage that is always or never found would test little.
        assert!(*opened > 20 && *refused > 20, "{what}");
        total += opened + refused;
    }
    assert!(total >= 20_000, "{total}");
}

/// Well-formed files of a megabyte that are all overhead.
fn greedy_files(folder: &Path) {
    const SIZE: usize = 1 << 20;
    let config = std::fs::read(folder.join("config.json")).expect("the seed file");
    let mut tally = Tally::default();
    for filler in ["{},", "[],", "0,", "\"\",", "[[]],", "{\"\":0},"] {
        let list = filler.repeat(SIZE / filler.len() - 100);
        let json = format!("{{\"x\":[{}]}}", list.trim_end_matches(','));
        std::fs::write(folder.join("config.json"), &json).expect("written");
        tally.bounded(filler, 0, WORST_FACTOR * json.len(), || ModelFile::open(folder));
    }
    assert_eq!((tally.opened, tally.refused), (0, 6));
    std::fs::write(folder.join("config.json"), config).expect("written");

    let empty = |kind: Array, count| Value::Array(Array::Array(vec![kind; count]));
    let values = [
        Value::from(vec![String::new(); SIZE / 8]),
        Value::from(vec![true; SIZE]),
        empty(Array::U8(Vec::new()), SIZE / 12),
        empty(Array::Array(vec![Array::I8(Vec::new())]), SIZE / 24),
    ];
    for value in values {
        let metadata = [("x", value)].into_iter().collect();
        let bytes = gguf::to_bytes(&metadata, &[]).expect("a valid model");
        let bound = FACTOR * bytes.len();
        let storage = Arc::new(Storage::Owned(bytes));
        tally.bounded("greedy GGUF", 0, bound, || ModelFile::from_storage(storage, "greedy"));
    }
    assert_eq!((tally.opened, tally.refused), (4, 6));
}

/// Whole models: one of each sort of architecture, one quantised.
const GOLDEN: [&str; 6] = [
    "models/smollm/model-f32.gguf",
    "models/gemma3/model-f32.gguf",
    "models/phi3-longrope/model-f32.gguf",
    "models/qwen3moe/model-f32.gguf",
    "models/bert/model-f32.gguf",
    "quants/MIX_Q4_K_M.gguf",
];

/// Damages what stands before the weights of a whole model.
fn golden_headers(name: &'static str, count: u64) -> Tally {
    let bytes = std::fs::read(golden::data().join(name)).expect("the carried model");
    let whole = gguf::read(&Arc::new(Storage::Owned(bytes.clone()))).expect("a valid model");
    let (header, data) = bytes.split_at(whole.data_offset as usize);
    let mut tally = Tally::default();
    for seed in 0..count {
        let mut bytes = damaged(header, &mut SplitMix64::new(seed));
        bytes.extend_from_slice(data);
        let input = bytes.len();
        let storage = Arc::new(Storage::Owned(bytes));
        tally.one(name, seed, input, || ModelFile::from_storage(storage, "damaged"));
    }
    tally
}

fn gguf_in_memory(count: u64) -> Tally {
    let seed_file = gguf_seed();
    let mut tally = Tally::default();
    for seed in 0..count {
        let bytes = damaged(&seed_file, &mut SplitMix64::new(seed));
        let input = bytes.len();
        let storage = Arc::new(Storage::Owned(bytes));
        tally.one("GGUF", seed, input, || ModelFile::from_storage(storage, "damaged"));
    }
    tally
}

/// Damages one of two parts, opened through either.
fn gguf_in_parts(count: u64) -> Tally {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = |number: u16| folder.path().join(format!("m-{number:05}-of-00002.gguf"));
    let part = |number: u16| {
        let metadata: Metadata = [
            ("split.no", Value::U16(number)),
            ("split.count", Value::U16(2)),
            ("split.tensors.count", Value::I32(2)),
        ]
        .into_iter()
        .collect();
        let spec = TensorSpec::new(format!("t{number}"), BlockType::F32, [2]);
        gguf::to_bytes(&metadata, &[(spec, &[7; 8])]).expect("a valid part")
    };
    std::fs::write(path(2), part(1)).expect("written");
    let original = part(0);
    let mut tally = Tally::default();
    for seed in 0..count {
        let bytes = damaged(&original, &mut SplitMix64::new(seed));
        std::fs::write(path(1), &bytes).expect("written");
        let opened = path(if seed % 2 == 0 { 1 } else { 2 });
        tally.one("GGUF parts", seed, 2 * original.len(), || ModelFile::open(&opened));
    }
    tally
}

/// A safetensors file of F32 tensors.
fn safetensors(tensors: &[(&str, &[u64])]) -> Vec<u8> {
    let mut entries = Vec::new();
    let mut end = 0;
    for (name, shape) in tensors {
        let start = end;
        end += 4 * shape.iter().product::<u64>();
        entries.push(format!(
            r#""{name}":{{"dtype":"F32","shape":{shape:?},"data_offsets":[{start},{end}]}}"#
        ));
    }
    let header = format!(r#"{{"__metadata__":{{"format":"pt"}},{}}}"#, entries.join(","));
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header.as_bytes());
    out.resize(out.len() + end as usize, 1);
    out
}

fn folder_seed() -> Vec<(&'static str, Vec<u8>)> {
    let config = br#"{"model_type":"gemma3_text","num_hidden_layers":1,"hidden_size":8,
"intermediate_size":8,"num_attention_heads":2,"num_key_value_heads":1,"head_dim":4,
"max_position_embeddings":64,"rms_norm_eps":1e-6,"query_pre_attn_scalar":16,
"sliding_window":16,"layer_types":["sliding_attention","full_attention"],
"rope_parameters":{"full_attention":{"rope_type":"linear","factor":8.0,"rope_theta":1e6},
"sliding_attention":{"rope_type":"default","rope_theta":1e4}},
"rope_scaling":{"rope_type":"longrope","short_factor":[1.0,1.1],"long_factor":[2,3]},
"bos_token_id":2,"eos_token_id":[1,106],"partial_rotary_factor":0.5}"#;
    let index = br#"{"metadata":{"total_size":384,"note":[
"What stands here is of no consequence, so that part of the damage is of none either: the quick",
"brown fox jumps over the lazy dog and back again, and the dog, being lazy, lets it; then the fox",
"sits down beside the dog and tells it about jumping, at length and with many gestures, until",
"both of them are fast asleep."]},"weight_map":{
"model.norm.weight":"model-00001-of-00002.safetensors",
"model.layers.0.mlp.up_proj.weight":"model-00001-of-00002.safetensors",
"model.embed_tokens.weight":"model-00002-of-00002.safetensors"}}"#;
    let first: &[(&str, &[u64])] =
        &[("model.norm.weight", &[8]), ("model.layers.0.mlp.up_proj.weight", &[8, 8])];
    vec![
        ("config.json", config.to_vec()),
        ("generation_config.json", br#"{"eos_token_id":[1,106],"top_k":64}"#.to_vec()),
        ("model.safetensors.index.json", index.to_vec()),
        ("model-00001-of-00002.safetensors", safetensors(first)),
        (
            "model-00002-of-00002.safetensors",
            safetensors(&[("model.embed_tokens.weight", &[3, 8])]),
        ),
    ]
}

/// Damages one file of the folder and puts it right again at the end.
fn folder_file(folder: &Path, file: &str, count: u64) -> Tally {
    let path = folder.join(file);
    let original = std::fs::read(&path).expect("the seed file");
    let input: usize = folder_seed().iter().map(|(_, content)| content.len()).sum();
    let mut tally = Tally::default();
    for seed in 0..count {
        let bytes = damaged(&original, &mut SplitMix64::new(seed));
        std::fs::write(&path, &bytes).expect("written");
        tally.one(file, seed, input, || ModelFile::open(folder));
    }
    std::fs::write(&path, original).expect("written");
    tally
}
