//! Tiny models with results that other programs computed.

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;

use crate::golden;
use crate::numbers::{f32s, i64s};

/// Names of the decoders.
pub const DECODERS: &[&str] = &[
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
];

/// Folders of the models of these names that are here: the full set's, else the carried ones.
///
/// # Panics
/// If there is none.
pub fn folders(names: &[&str]) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    for name in names {
        let shared = golden::shared().map(|root| root.join("golden/models").join(name));
        let carried = golden::data().join("models").join(name);
        found.extend(shared.into_iter().chain([carried]).find(|folder| folder.is_dir()));
    }
    assert!(!found.is_empty(), "the carried models are always there");
    found
}

/// What another program computed.
pub struct Golden {
    /// Prompt.
    pub ids: Vec<u32>,
    /// Logits of each of its rows.
    pub logits: Vec<f32>,
    /// Greedy tokens after it.
    pub greedy: Vec<u32>,
}

/// The stored results of a model; `suffix` names a variant.
///
/// # Panics
/// If the file is damaged.
pub fn golden_of(folder: &Path, suffix: &str) -> Golden {
    let bytes = std::fs::read(folder.join("golden.safetensors")).expect("golden file");
    let tensors = SafeTensors::deserialize(&bytes).expect("golden tensors");
    let ids = i64s(&tensors, &format!("ids{suffix}"));
    Golden {
        ids: ids.iter().map(|&id| id as u32).collect(),
        logits: f32s(&tensors, &format!("logits{suffix}")),
        greedy: i64s(&tensors, "greedy").iter().map(|&id| id as u32).collect(),
    }
}

/// The model's files: a GGUF file, and the folder itself.
pub fn model_files(folder: &Path) -> Vec<PathBuf> {
    let files = [folder.join("model-f32.gguf"), folder.to_path_buf()];
    files.into_iter().filter(|path| path.exists()).collect()
}
