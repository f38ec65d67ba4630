//! The tiny encoder and what its embeddings should be.

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use trefoil_tests::golden;
use trefoil_tests::numbers::{f32s, i64s};

/// A text with its embedding.
pub(crate) struct Case {
    pub(crate) text: String,
    pub(crate) ids: Vec<u32>,
    /// The mean of its hidden states, normalised.
    pub(crate) embedding: Vec<f32>,
}

/// The folder of the encoder.
pub(crate) fn folder() -> PathBuf {
    golden::data().join("models/bert")
}

/// What another program computed.
pub(crate) fn case() -> Case {
    let bytes = std::fs::read(folder().join("golden.safetensors")).expect("golden file");
    let (_, metadata) = SafeTensors::read_metadata(&bytes).expect("golden metadata");
    let text = metadata.metadata().as_ref().expect("metadata")["text"].clone();
    let tensors = SafeTensors::deserialize(&bytes).expect("golden tensors");
    let ids = i64s(&tensors, "ids").iter().map(|&id| id as u32).collect();
    Case { text, ids, embedding: normalised(&f32s(&tensors, "embedding_mean")) }
}

/// The same direction with length 1.
pub(crate) fn normalised(values: &[f32]) -> Vec<f32> {
    let length = values.iter().map(|x| x * x).sum::<f32>().sqrt();
    values.iter().map(|x| x / length).collect()
}

/// Cosine of the angle between two embeddings.
pub(crate) fn cosine(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// Copies the tokenizer's files of one folder to another.
pub(crate) fn copy_tokenizer(from: &Path, to: &Path) {
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(from.join(name), to.join(name)).expect("copies");
    }
}

/// The embeddings of an answer, written as numbers.
pub(crate) fn embeddings(answer: &serde_json::Value) -> Vec<Vec<f32>> {
    let data = answer["data"].as_array().expect("a list");
    let one = |(index, item): (usize, &serde_json::Value)| {
        assert_eq!(
            (&item["object"], item["index"].as_u64()),
            (&"embedding".into(), Some(index as u64))
        );
        let list = item["embedding"].as_array().expect("numbers");
        list.iter().map(|x| x.as_f64().expect("a number") as f32).collect()
    };
    data.iter().enumerate().map(one).collect()
}
