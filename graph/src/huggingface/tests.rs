//! Folders against GGUF files of the same model, and refusals.

use std::collections::BTreeMap;
use std::path::Path;

use crate::metadata::Value;
use crate::test_data::part;
use crate::{BlockType, ModelFile, Origin};

const MODELS: &[&str] = &[
    "llama",
    "llama-plain",
    "llama-bf16",
    "mistral",
    "smollm",
    "qwen2",
    "qwen3",
    "qwen3moe",
    "gemma3",
    "phi3",
    "phi3-longrope",
    "bert",
];

/// Keys below `ARCH.` that GGUF files leave to the program, or say with tensors.
const EXTRA: &[&str] = &[
    "vocab_size",
    "attention.key_length",
    "attention.value_length",
    "attention.scale",
    "attention.sliding_window_pattern",
    "attention.head_count_kv",
    "expert_weights_norm",
    "rope.dimension_count",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.low_freq_factor",
    "rope.scaling.high_freq_factor",
    "rope.scaling.original_context_length",
    "rope.scaling.short_factor",
    "rope.scaling.long_factor",
];

/// The converter works this out from other fields; the importer keeps to what the file says.
const DERIVED: &str = "phi3.rope.scaling.attn_factor";

/// A golden model from GGUF and from its folder, if it is here.
fn both(name: &str) -> Option<(ModelFile, ModelFile)> {
    let folder = part("models").join(name);
    if !folder.is_dir() {
        return None;
    }
    let gguf = ModelFile::open(&folder.join("model-f32.gguf")).unwrap();
    let hub = ModelFile::open(&folder).unwrap();
    assert_eq!((gguf.origin, hub.origin), (Origin::Gguf, Origin::HuggingFace));
    Some((gguf, hub))
}

/// Integers by value, floats exactly, whatever the width.
fn same(a: &Value, b: &Value) -> bool {
    match (a.as_integer(), b.as_integer()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

#[test]
fn hyper_parameters_equal_those_of_the_gguf_file() {
    for name in MODELS {
        let Some((gguf, hub)) = both(name) else { continue };
        let architecture = gguf.metadata.required("general.architecture").unwrap().str().unwrap();
        let own = format!("{architecture}.");
        let compared = |key: &str| {
            key.starts_with(&own)
                || key.ends_with("_token_id")
                || key.ends_with("token_type_count")
                || key == "general.architecture"
        };
        for (key, value) in gguf.metadata.iter().filter(|(key, _)| compared(key)) {
            if key == DERIVED || (*name == "bert" && key.ends_with("_token_id")) {
                continue;
            }
            let got = hub.metadata.get(key).unwrap_or_else(|| panic!("{name}: no {key}"));
            assert!(same(value, got), "{name}: {key}: {value} and {got}");
        }
        for (key, value) in hub.metadata.iter().filter(|(key, _)| !gguf.metadata.contains(key)) {
            let known = key.strip_prefix(&own).is_some_and(|key| EXTRA.contains(&key));
            assert!(known, "{name}: unexpected {key} = {value}");
        }
    }
}

/// Names and shapes, with experts stacked as in GGUF files and without the rotary divisors.
fn shapes(model: &ModelFile) -> BTreeMap<String, Vec<u64>> {
    let mut out = BTreeMap::<String, Vec<u64>>::new();
    for tensor in model.tensors.values().filter(|tensor| !tensor.name.starts_with("rope_")) {
        let mut parts: Vec<_> = tensor.name.split('.').collect();
        if parts.len() == 5 {
            parts.remove(3);
            let stacked = [&[0], tensor.shape.as_slice()].concat();
            let entry = out.entry(parts.join(".")).or_insert(stacked);
            assert_eq!(&entry[1..], tensor.shape, "{}", tensor.name);
            entry[0] += 1;
        } else {
            out.insert(tensor.name.to_string(), tensor.shape.clone());
        }
    }
    out
}

#[test]
fn tensors_equal_those_of_the_gguf_file() {
    for name in MODELS {
        let Some((gguf, hub)) = both(name) else { continue };
        assert_eq!(shapes(&gguf), shapes(&hub), "{name}");
        // The head of each tensor that both store alike.
        for tensor in ["token_embd.weight", "blk.0.ffn_down.weight", "blk.1.attn_output.weight"] {
            if let Some((a, b)) = gguf.tensors.get(tensor).zip(hub.tensors.get(tensor)) {
                assert!(a.block != b.block || a.bytes() == b.bytes(), "{name}: {tensor}");
            }
        }
        let block = if *name == "llama-bf16" { BlockType::BF16 } else { BlockType::F32 };
        assert!(hub.tensors.values().all(|tensor| tensor.block == block), "{name}");
        assert_ne!(gguf.fingerprint(), hub.fingerprint());
    }
}

#[test]
fn llama3_scaling_keeps_the_numbers_of_the_configuration() {
    let Some((_, llama)) = both("llama") else { return };
    let m = &llama.metadata;
    assert_eq!(m.str("llama.rope.scaling.type"), Ok(Some("llama3")));
    assert_eq!(m.f32("llama.rope.scaling.factor"), Ok(Some(8.0)));
    assert_eq!(m.f32("llama.rope.scaling.low_freq_factor"), Ok(Some(1.0)));
    assert_eq!(m.f32("llama.rope.scaling.high_freq_factor"), Ok(Some(4.0)));
    assert_eq!(m.u32("llama.rope.scaling.original_context_length"), Ok(Some(64)));
}

#[test]
fn longrope_factors_of_the_configuration_are_those_of_the_gguf_file() {
    let (gguf, phi) = both("phi3-longrope").expect("it is always there");
    assert_eq!(phi.metadata.str("phi3.rope.scaling.type"), Ok(Some("longrope")));
    for (tensor, key) in [
        ("rope_factors_short.weight", "phi3.rope.scaling.short_factor"),
        ("rope_factors_long.weight", "phi3.rope.scaling.long_factor"),
    ] {
        let values = phi.metadata.f32s(key).unwrap().unwrap();
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(gguf.tensors[tensor].bytes(), bytes, "{key}");
    }
}

#[test]
fn a_shard_or_any_safetensors_file_opens_its_model() {
    let folder = part("models").join("qwen2");
    if !folder.is_dir() {
        return;
    }
    let whole = ModelFile::open(&folder).unwrap();
    let shard = ModelFile::open(&folder.join("model-00002-of-00003.safetensors")).unwrap();
    assert_eq!(whole.fingerprint(), shard.fingerprint());
    assert_eq!(whole.folder.as_deref(), Some(folder.as_path()));
}

/// A folder with a tiny llama in one file of the independent `safetensors` crate.
struct Folder(tempfile::TempDir);

const CONFIG: &str = r#"{"model_type": "llama", "num_hidden_layers": 1, "hidden_size": 4,
    "intermediate_size": 8, "num_attention_heads": 2, "max_position_embeddings": 16}"#;

impl Folder {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        folder.write("config.json", CONFIG);
        folder.tensors("model.safetensors", &[("model.norm.weight", &[4])]);
        folder
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn remove(&self, name: &str) {
        std::fs::remove_file(self.path().join(name)).unwrap();
    }

    fn tensors(&self, file: &str, tensors: &[(&str, &[usize])]) {
        use ::safetensors::Dtype;
        use ::safetensors::tensor::{TensorView, serialize};
        let data: Vec<Vec<u8>> =
            tensors.iter().map(|(_, shape)| vec![1; 4 * shape.iter().product::<usize>()]).collect();
        let views = tensors.iter().zip(&data).map(|((name, shape), data)| {
            (name.to_string(), TensorView::new(Dtype::F32, shape.to_vec(), data).unwrap())
        });
        self.write(file, serialize(views, None).unwrap());
    }

    fn config(&self, from: &str, to: &str) {
        let changed = CONFIG.replace(from, to);
        assert_ne!(changed, CONFIG);
        self.write("config.json", changed);
    }

    fn index(&self, map: &str) {
        self.write("model.safetensors.index.json", format!("{{\"weight_map\": {{{map}}}}}"));
    }

    /// The error with its causes, which must hold all `parts`.
    fn refused(&self, parts: &[&str]) {
        let error = ModelFile::open(self.path()).expect_err("opened");
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(error) = source {
            text.push_str(&format!(": {error}"));
            source = error.source();
        }
        for part in parts {
            assert!(text.contains(part), "no {part:?} in: {text}");
        }
    }
}

#[test]
fn files_of_the_safetensors_crate_open() {
    let folder = Folder::new();
    folder.tensors(
        "model.safetensors",
        &[("model.norm.weight", &[4]), ("model.layers.0.mlp.up_proj.weight", &[8, 4])],
    );
    let model = ModelFile::open(folder.path()).unwrap();
    assert_eq!(model.tensors["blk.0.ffn_up.weight"].shape, [8, 4]);
    assert_eq!(model.tensors["output_norm.weight"].bytes(), [1; 16]);
    assert_eq!(model.metadata.u32("llama.attention.head_count_kv"), Ok(Some(2)));
}

#[test]
fn configurations_are_refused_with_field_and_remedy() {
    let folder = Folder::new();
    let cases: &[(&str, &str, &[&str])] = &[
        ("\"llama\"", "\"mamba\"", &["config.json", "model_type", "mamba", "qwen3_moe"]),
        ("\"llama\"", "7", &["model_type", "a text", "7"]),
        ("\"hidden_size\": 4,", "", &["hidden_size", "missing"]),
        ("\"hidden_size\": 4", "\"hidden_size\": -4", &["hidden_size", "-4"]),
        ("\"hidden_size\": 4", "\"hidden_size\": 4.5", &["hidden_size", "4.5"]),
        ("\"hidden_size\": 4", "\"hidden_size\": 1e30", &["hidden_size", "4294967295"]),
        ("\"hidden_size\": 4", "\"hidden_size\": 5", &["hidden_size", "multiple of the 2"]),
        ("\"num_attention_heads\": 2", "\"num_attention_heads\": 0", &["multiple of the 0"]),
        ("16}", "16, \"hidden_act\": \"gelu\"}", &["hidden_act", "silu", "gelu"]),
        ("16}", "16, \"rms_norm_eps\": \"small\"}", &["rms_norm_eps", "a number", "small"]),
        ("16}", "16, \"rms_norm_eps\": 1e300}", &["rms_norm_eps", "single precision"]),
        (
            "16}",
            "16, \"quantization_config\": {\"quant_method\": \"gptq\"}}",
            &["quantization_config", "gptq", "GGUF"],
        ),
        ("16}", "16, \"rope_scaling\": []}", &["rope_scaling", "a table", "a list of 0"]),
        (
            "16}",
            "16, \"rope_scaling\": {\"long_factor\": [\"x\"]}}",
            &["rope_scaling.long_factor", "list of numbers"],
        ),
        ("16}", "16, \"partial_rotary_factor\": 2}", &["partial_rotary_factor", "at most 1"]),
        ("16}", "16, \"bos_token_id\": \"x\"}", &["bos_token_id", "token id"]),
        ("16}", "16", &["config.json", "EOF"]),
    ];
    for (from, to, parts) in cases {
        folder.config(from, to);
        folder.refused(parts);
    }
    folder.write("config.json", "[".repeat(100_000));
    folder.refused(&["config.json", "JSON"]);
    folder.write("config.json", " ".repeat(2 << 20));
    folder.refused(&["config.json", "at most 1048576 bytes"]);
    folder.write("config.json", CONFIG);
    folder.write("generation_config.json", "{\"eos_token_id\": [1, true]}");
    folder.refused(&["generation_config.json", "eos_token_id"]);
    folder.remove("generation_config.json");
    folder.write("1_Pooling/config.json", "{\"pooling_mode_max_tokens\": true}");
    folder.refused(&["1_Pooling", "pooling_mode"]);
}

#[test]
fn newer_rope_parameters_and_token_lists_are_read() {
    let folder = Folder::new();
    folder.config(
        "\"llama\"",
        "\"gemma3_text\", \"layer_types\": [\"sliding_attention\", \"full_attention\"],
         \"rope_parameters\": {\"full_attention\": {\"rope_type\": \"linear\", \"factor\": 8,
             \"rope_theta\": 5e5}, \"sliding_attention\": {\"rope_theta\": 123.0}}",
    );
    folder.write("generation_config.json", "{\"eos_token_id\": [1, 106]}");
    let m = ModelFile::open(folder.path()).unwrap().metadata;
    assert_eq!(m.f32("gemma3.rope.freq_base"), Ok(Some(5e5)));
    assert_eq!(m.f32("gemma3.rope.freq_base_swa"), Ok(Some(123.0)));
    assert_eq!(m.str("gemma3.rope.scaling.type"), Ok(Some("linear")));
    assert_eq!(m.f32("gemma3.rope.scaling.factor"), Ok(Some(8.0)));
    assert_eq!(m.u32("gemma3.attention.sliding_window_pattern"), Ok(Some(2)));
    assert_eq!(m.u32("gemma3.attention.key_length"), Ok(Some(256)));
    assert_eq!(m.f32("gemma3.attention.scale"), Ok(Some(0.0625)));
    assert_eq!(m.u32("tokenizer.ggml.eos_token_id"), Ok(Some(1)));
    assert_eq!(m.u32s("tokenizer.ggml.eos_token_ids").unwrap().unwrap().as_ref(), [1, 106]);
}

#[test]
fn indexes_are_checked_against_the_shards() {
    let folder = Folder::new();
    folder.remove("model.safetensors");
    folder.tensors("a.safetensors", &[("model.norm.weight", &[4])]);
    folder.tensors("b.safetensors", &[("lm_head.weight", &[3, 4])]);
    let good = "\"model.norm.weight\": \"a.safetensors\", \"lm_head.weight\": \"b.safetensors\"";
    folder.index(good);
    assert_eq!(ModelFile::open(folder.path()).unwrap().tensors.len(), 2);

    for outside in ["../a.safetensors", "/etc/passwd", "x/../../a", ".", ""] {
        folder.index(&format!("\"model.norm.weight\": \"{outside}\""));
        folder.refused(&["weight_map", "model.norm.weight", outside, "in the model's folder"]);
    }
    folder.index("\"lm_head.weight\": \"c.safetensors\"");
    folder.refused(&["weight_map", "c.safetensors", "lm_head.weight"]);
    folder.index("\"lm_head.weight\": \"a.safetensors\"");
    folder.refused(&["weight_map", "lm_head.weight", "a.safetensors"]);
    folder.index("");
    folder.refused(&["weight_map", "got none"]);
    folder.index(&format!("{good}, \"lm_head.weight\": \"a.safetensors\""));
    folder.refused(&["index.json", "lm_head.weight", "twice"]);
    folder.index("\"x\": 3");
    folder.refused(&["index.json", "expected a string"]);
    folder.index(good);
    folder.tensors("b.safetensors", &[("lm_head.weight", &[3, 4]), ("model.norm.weight", &[4])]);
    folder.refused(&["b.safetensors", "model.norm.weight", "output_norm.weight"]);
    folder.remove("model.safetensors.index.json");
    folder.refused(&["2 safetensors files", "name one of them"]);
}

#[test]
fn tensors_that_do_not_belong_are_refused() {
    let folder = Folder::new();
    folder.tensors("model.safetensors", &[("model.layers.0.self_attn.q_norm.weight", &[4])]);
    folder.refused(&["model.safetensors", "q_norm", "llama"]);
    folder.tensors("model.safetensors", &[("model.norm.weight", &[0])]);
    folder.refused(&["model.norm.weight", "at least 1", "[0]"]);
    folder.tensors("model.safetensors", &[("model.norm.weight", &[1, 1, 1, 1, 1])]);
    folder.refused(&["model.norm.weight", "4 dimensions"]);
}

/// A safetensors file with this header and `data` bytes of data.
fn raw(header: &str, data: usize) -> Vec<u8> {
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header.as_bytes());
    out.resize(out.len() + data, 7);
    out
}

#[test]
fn damaged_safetensors_files_are_refused() {
    let folder = Folder::new();
    let entry = |fields: &str| format!("{{\"model.norm.weight\": {{{fields}}}}}");
    let good = "\"dtype\": \"F32\", \"shape\": [4], \"data_offsets\": [0, 16]";
    let cases: &[(Vec<u8>, &[&str])] = &[
        (vec![1, 2, 3], &["header length", "8 bytes"]),
        (u64::MAX.to_le_bytes().to_vec(), &["header length", "18446744073709551615"]),
        (raw("{", 0), &["JSON table"]),
        (raw("[]", 0), &["a table of tensors"]),
        (raw(&"[".repeat(100_000), 0), &["JSON table"]),
        (raw("{}", 1), &["tensors take 0 bytes", "has 1"]),
        (raw(&entry(good), 15), &["tensors take 16 bytes", "15", "truncated"]),
        (raw(&entry(good), 17), &["tensors take 16 bytes", "17"]),
        (raw(&entry(&good.replace("[0,", "[8,")), 16), &["norm", "from byte 0 on", "from 8"]),
        (raw(&entry(&good.replace("F32", "I64")), 16), &["norm", "F32, F16 or BF16", "I64"]),
        (raw(&entry(&good.replace("[4]", "[5]")), 16), &["norm", "takes 20 bytes, got 16"]),
        (raw(&entry(&good.replace("[4]", "[-1]")), 16), &["invalid value", "-1"]),
        (
            raw(&entry(&good.replace("[4]", "[9223372036854775807, 4]")), 16),
            &["norm", "overflows 64 bits"],
        ),
        (
            raw(&entry(&good.replace("[0, 16]", "[0, 18446744073709551615]")), 16),
            &["18446744073709551615"],
        ),
        (
            raw(&format!("{{\"a\": {{{good}}}, \"a\": {{{good}}}}}"), 16),
            &["`a`", "expected it once"],
        ),
    ];
    for (bytes, parts) in cases {
        folder.write("model.safetensors", bytes);
        folder.refused(&[parts, &["model.safetensors"][..]].concat());
    }
}

#[test]
fn misaligned_data_is_copied_into_place() {
    let folder = Folder::new();
    for padding in 0..4 {
        let header = format!(
            "{{\"model.norm.weight\": {{\"dtype\": \"F32\", \"shape\": [4], \
             \"data_offsets\": [0, 16]}}}}{}",
            " ".repeat(padding)
        );
        folder.write("model.safetensors", raw(&header, 16));
        let model = ModelFile::open(folder.path()).unwrap();
        let bytes = model.tensors["output_norm.weight"].bytes();
        assert_eq!((bytes, bytes.as_ptr() as usize % 4), (&[7; 16][..], 0), "{padding}");
    }
}

#[test]
fn files_without_their_surroundings_are_refused() {
    let folder = Folder::new();
    folder.remove("config.json");
    let file = folder.path().join("model.safetensors");
    let error = ModelFile::open(&file).unwrap_err().to_string();
    assert!(error.contains("config.json in the same folder"), "{error}");
    folder.refused(&["a folder with neither"]);
    assert!(ModelFile::open(&folder.path().join("nothing")).is_err());
}

#[test]
fn a_configuration_alone_has_the_tensors_of_its_model() {
    for name in ["bert", "gemma3", "llama", "phi3-longrope", "qwen3moe", "smollm"] {
        let folder = crate::test_data::carried(&format!("models/{name}"));
        let whole = crate::ModelFile::open(&folder).expect("opens");
        let path = folder.join("config.json");
        let lone = crate::ModelFile::from_config(&path, |_, _| crate::BlockType::F32);
        let lone = lone.expect("the configuration says enough");
        let shapes = |file: &crate::ModelFile| -> Vec<(String, Vec<u64>)> {
            let tensors = file.tensors.iter();
            tensors.map(|(name, tensor)| (name.to_string(), tensor.shape.clone())).collect()
        };
        assert_eq!(shapes(&lone), shapes(&whole), "{name}");
        let graph = |file| crate::lower(file, crate::LowerOptions::default()).expect("lowers").1;
        let names = |graph: &crate::LayerGraph| -> Vec<String> {
            graph.nodes().map(|node| graph.node(node).name.clone()).collect()
        };
        assert_eq!(names(&graph(&lone)), names(&graph(&whole)), "{name}");
    }
}

#[test]
fn a_configuration_with_absurd_sizes_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("config.json");
    let carried = crate::test_data::carried("models/llama/config.json");
    let good = std::fs::read_to_string(carried).expect("is carried");
    for (from, to, part) in [
        ("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 4000000000", "num_hidden_layers"),
        ("\"vocab_size\": 288,", "", "vocab_size"),
        ("\"hidden_size\": 64", "\"hidden_size\": 4294967292", "sizes beyond any model"),
        ("\"model_type\": \"llama\"", "\"model_type\": \"lama\"", "model_type"),
    ] {
        assert!(good.contains(from), "{from}");
        std::fs::write(&path, good.replacen(from, to, 1)).expect("writes");
        let error = crate::ModelFile::from_config(&path, |_, _| crate::BlockType::F32);
        let error = error.expect_err(to);
        let text = std::error::Error::source(&error).map_or(String::new(), ToString::to_string);
        let text = format!("{error}: {text}");
        assert!(text.contains(part), "{text}");
    }
}
