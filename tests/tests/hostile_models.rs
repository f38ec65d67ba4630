//! Whole models of which one key or tensor is hostile: each is lowered or refused, without a panic,
//! in bounded memory and time. Damage to bytes seldom makes such values (see `mutation.rs`).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use trefoil_graph::metadata::{Array, Value};
use trefoil_graph::{BLOCK_TABLE, ModelFile};
use trefoil_tests::golden;
use trefoil_tests::memory::{Counting, peak_of};
use trefoil_tests::mutation::SplitMix64;
use trefoil_tests::touch::touch;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const MODELS: [&str; 6] = [
    "models/smollm/model-f32.gguf",
    "models/gemma3/model-f32.gguf",
    "models/phi3-longrope/model-f32.gguf",
    "models/qwen3moe/model-f32.gguf",
    "models/bert/model-f32.gguf",
    "models/gemma3",
];

/// Far above what the undamaged models take, far below what a size believed would.
const MOST_BYTES: usize = 512 << 10;
const MOST_TIME: Duration = Duration::from_secs(5);

#[derive(Default)]
struct Tally {
    lowered: usize,
    refused: usize,
    peak: usize,
}

impl Tally {
    fn one(&mut self, what: &dyn Fn() -> String, model: &ModelFile) {
        let start = Instant::now();
        let (result, peak) = peak_of(|| catch_unwind(AssertUnwindSafe(|| touch(model))));
        assert!(start.elapsed() < MOST_TIME, "{}: {:?}", what(), start.elapsed());
        assert!(peak < MOST_BYTES, "{}: {peak} bytes", what());
        self.peak = self.peak.max(peak);
        match result {
            Ok(true) => self.lowered += 1,
            Ok(false) => self.refused += 1,
            Err(_) => panic!("{}: panics", what()),
        }
    }
}

fn hostile_values() -> Vec<Value> {
    let integers = [
        0,
        1,
        2,
        3,
        5,
        7,
        62,
        64,
        1 << 12,
        (1 << 24) - 1,
        1 << 24,
        (1 << 24) + 1,
        1 << 31,
        u64::from(u32::MAX),
        1 << 53,
        u64::MAX,
    ];
    let floats =
        [0.0, -0.0, -1.0, 1e-45, 1e38, f32::MAX, f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
    let mut values: Vec<Value> = integers.map(Value::U64).into();
    values.extend(floats.map(Value::F32));
    values.extend([Value::I8(-1), Value::F64(1e300), Value::Bool(true), Value::Bool(false)]);
    values.extend(["", "linear", "llama3", "longrope", "bert", "gemma3"].map(Value::from));
    values.extend([
        Value::from(Vec::<bool>::new()),
        Value::from(vec![true; 6]),
        Value::from(vec![2u32; 2]),
        Value::from(vec![0.0f32; 8]),
        Value::from(vec![f32::MIN_POSITIVE; 12]),
        Value::Array(Array::Array(vec![Array::U8(Vec::new())])),
    ]);
    values
}

/// Keys that lowering reads but that not every file has.
const MORE_KEYS: [&str; 18] = [
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.scale",
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "expert_count",
    "expert_used_count",
    "expert_weights_norm",
    "pooling_type",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.attn_factor",
];

fn keys(model: &ModelFile) -> Vec<String> {
    let architecture = model.metadata.str("general.architecture").unwrap().unwrap();
    let own = format!("{architecture}.");
    let read = |key: &str| key.starts_with(&own) || key.starts_with("general.");
    let there = model.metadata.iter().map(|(key, _)| key.to_owned()).filter(|key| read(key));
    let mut keys: Vec<String> = there.chain(MORE_KEYS.map(|key| own.clone() + key)).collect();
    keys.sort();
    keys.dedup();
    keys
}

fn hostile_keys(name: &str, open: &dyn Fn() -> ModelFile, tally: &mut Tally) {
    for key in keys(&open()) {
        for value in hostile_values() {
            let mut model = open();
            model.metadata.set(&key, value.clone());
            tally.one(&|| format!("{name}: {key} = {value}"), &model);
            // With a scaling that reads the rest of its keys.
            if key.contains(".rope.scaling.") && !key.ends_with("type") {
                let (architecture, _) = key.split_once('.').expect("a key of the model's own");
                for kind in ["linear", "llama3"] {
                    model.metadata.set(&format!("{architecture}.rope.scaling.type"), kind);
                    model.tensors.retain(|name, _| !name.starts_with("rope_"));
                    tally.one(&|| format!("{name}: {kind}, {key} = {value}"), &model);
                }
            }
        }
        let mut model = open();
        model.metadata.retain(|other, _| other != key);
        tally.one(&|| format!("{name}: without {key}"), &model);
    }
}

/// Several keys at once: sizes that must agree all set to the same, and any keys to anything.
fn hostile_combinations(name: &str, open: &dyn Fn() -> ModelFile, tally: &mut Tally) {
    const EQUAL: [&[&str]; 3] = [
        &["attention.key_length", "attention.value_length", "rope.dimension_count"],
        &["attention.head_count", "attention.head_count_kv"],
        &["expert_count", "expert_used_count"],
    ];
    let values = hostile_values();
    let keys = keys(&open());
    let (architecture, _) = keys.last().and_then(|key| key.split_once('.')).expect("it has keys");
    for group in EQUAL {
        for value in &values {
            let mut model = open();
            for key in group {
                model.metadata.set(&format!("{architecture}.{key}"), value.clone());
            }
            tally.one(&|| format!("{name}: {group:?} = {value}"), &model);
        }
    }
    for seed in 0..1_000 {
        let mut rng = SplitMix64::new(seed);
        let mut model = open();
        for _ in 0..2 + rng.below(3) {
            let (key, value): (&String, &Value) = (rng.pick(&keys), rng.pick(&values));
            model.metadata.set(key, value.clone());
        }
        tally.one(&|| format!("{name}: combination {seed}"), &model);
    }
}

fn hostile_tensors(name: &str, open: &dyn Fn() -> ModelFile, tally: &mut Tally) {
    let names: Vec<_> = open().tensors.keys().cloned().collect();
    for tensor in names {
        let mut change = |what: &str, change: &dyn Fn(&mut ModelFile)| {
            let mut model = open();
            change(&mut model);
            tally.one(&|| format!("{name}: {tensor}: {what}"), &model);
        };
        change("missing", &|model| drop(model.tensors.remove(&tensor)));
        for (what, shape) in [("a number", vec![]), ("1", vec![1]), ("1 x 1", vec![1, 1])] {
            change(what, &|model| {
                model.tensors.get_mut(&tensor).expect("it is there").shape = shape.clone();
            });
        }
        change("transposed", &|model| {
            model.tensors.get_mut(&tensor).expect("it is there").shape.reverse();
        });
        for row in BLOCK_TABLE {
            change(row.name, &|model| {
                let tensor = model.tensors.get_mut(&tensor).expect("it is there");
                // What an importer lets through: whole rows that lie in the file.
                let columns = tensor.shape.last().copied().unwrap_or(1);
                if row.block.row_bytes(columns).is_some() && row.bytes <= 4 * row.elements {
                    tensor.block = row.block;
                }
            });
        }
    }
}

#[test]
fn hostile_models_are_lowered_or_refused() {
    // One test: the counters see the whole process.
    let mut total = 0;
    for name in MODELS {
        let path = golden::data().join(name);
        let open = || ModelFile::open(&path).expect("the undamaged model opens");
        let mut tally = Tally::default();
        hostile_keys(name, &open, &mut tally);
        hostile_combinations(name, &open, &mut tally);
        hostile_tensors(name, &open, &mut tally);
        let Tally { lowered, refused, peak } = tally;
        println!("{name}: {lowered} lowered, {refused} refused, at most {peak} bytes");
        assert!(lowered > 100 && refused > 100, "{name}");
        total += lowered + refused;
    }
    assert!(total > 5_000, "{total}");
}
