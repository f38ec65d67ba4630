//! Writing a model of made-up weights.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};

use trefoil_graph::BlockType;
use trefoil_graph::gguf::{FileWriter, TensorSpec};
use trefoil_graph::metadata::Metadata;
use trefoil_graph::shape::{ModelShape, ROPE_DIVISORS};
use trefoil_telemetry::Bytes;

use super::blocks::{BlockPool, Random, normal};
use super::vocabulary;
use crate::quantize::{Choice, Mixture, MixtureFacts};

/// Deviation of the weights, as models have it before training: with it activations grow by less
/// than a factor of two from layer to layer at every width.
const DEVIATION: f32 = 0.02;
/// Raised whenever the same [`Synthetic`] becomes another file.
const WRITER_VERSION: u32 = 2;
/// Most numbers of a pool: more than any row has.
const POOL: usize = 1 << 20;

/// A model that cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SyntheticError {
    /// A tokenizer of another size.
    #[error(
        "tokenizer: expected {expected} tokens for this shape, got {got}; take a file of the same \
         family, or none for a made-up vocabulary"
    )]
    Vocabulary {
        /// Tokens of the shape.
        expected: usize,
        /// Tokens of the file.
        got: usize,
    },
    /// A vocabulary too small to be made up.
    #[error("expected a vocabulary of at least {least} tokens, got {got}")]
    SmallVocabulary {
        /// Fewest tokens.
        least: usize,
        /// Tokens of the shape.
        got: usize,
    },
    /// A disk that is too full.
    #[error(
        "{}: the model takes {need}, but {free} are free; free some space or name a folder on \
         another disk", folder.display()
    )]
    Space {
        /// Where it was to go.
        folder: PathBuf,
        /// Bytes of the file.
        need: Bytes,
        /// Bytes that are free.
        free: Bytes,
    },
    /// No folder to write to.
    #[error("no cache folder is known (neither XDG_CACHE_HOME nor HOME is set); name one")]
    NoFolder,
    /// A file that cannot be written: no such folder, no right, no space.
    #[error("{}: cannot be written", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

/// A model of made-up weights: a shape, a file type, a tokenizer.
#[derive(Clone, Debug)]
pub struct Synthetic {
    /// Sizes.
    pub shape: ModelShape,
    /// Number formats.
    pub mixture: Mixture,
    /// Metadata whose `tokenizer.*` keys are taken; a vocabulary is made up if absent.
    pub tokenizer: Option<Metadata>,
}

impl Synthetic {
    /// Name of the file: another one for everything that makes a difference.
    pub fn file_name(&self) -> String {
        let Self { shape, mixture, tokenizer } = self;
        let mut hasher = DefaultHasher::new();
        (WRITER_VERSION, format!("{shape:?}")).hash(&mut hasher);
        for (key, value) in tokenizer.iter().flat_map(tokenizer_keys) {
            (key, format!("{value:?}")).hash(&mut hasher);
        }
        format!("{shape}-{mixture}-{:08x}.gguf", hasher.finish() as u32)
    }

    /// All tensors, in the order of the file.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let facts = MixtureFacts {
            layers: self.shape.layers as u64,
            heads_per_kv: (self.shape.heads / self.shape.kv_heads) as u64,
            tied: self.shape.tied,
        };
        let spec = |(name, shape): (String, Vec<u64>)| {
            let choice = Choice::new(&name, &shape, || self.mixture.wanted(&name, facts));
            TensorSpec::new(name, choice.block, shape)
        };
        self.shape.tensors().into_iter().map(spec).collect()
    }

    /// Bytes of the tensors, which is nearly the size of the file.
    pub fn bytes(&self) -> io::Result<u64> {
        self.tensors().iter().map(TensorSpec::bytes).sum()
    }

    /// All metadata of the file.
    pub fn metadata(&self) -> Result<Metadata, SyntheticError> {
        let mut metadata = self.shape.metadata();
        metadata.set("general.name", format!("{} with made-up weights", self.shape));
        metadata.set("general.file_type", self.mixture.file_type());
        metadata.set("general.quantization_version", 2u32);
        self.write_tokenizer(&mut metadata)?;
        Ok(metadata)
    }

    fn write_tokenizer(&self, metadata: &mut Metadata) -> Result<(), SyntheticError> {
        let expected = self.shape.vocabulary;
        let Some(source) = &self.tokenizer else {
            if expected < vocabulary::FEWEST {
                let (least, got) = (vocabulary::FEWEST, expected);
                return Err(SyntheticError::SmallVocabulary { least, got });
            }
            let rule = if self.shape.architecture == "llama" { "llama-bpe" } else { "qwen2" };
            vocabulary::write(metadata, expected, rule);
            return Ok(());
        };
        let got = source.strings("tokenizer.ggml.tokens").ok().flatten().map_or(0, <[_]>::len);
        if got != expected {
            return Err(SyntheticError::Vocabulary { expected, got });
        }
        for (key, value) in tokenizer_keys(source) {
            metadata.set(key, value.clone());
        }
        Ok(())
    }

    /// Writes the model; it appears under its name once it is complete. `progress` is called with
    /// the bytes done and the bytes of all tensors after each piece of at most some MiB.
    pub fn write(
        &self,
        path: &Path,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), SyntheticError> {
        let metadata = self.metadata()?;
        self.write_tensors(path, &metadata, progress)
            .map_err(|source| SyntheticError::Write { path: path.to_path_buf(), source })
    }

    fn write_tensors(
        &self,
        path: &Path,
        metadata: &Metadata,
        progress: &mut dyn FnMut(u64, u64),
    ) -> io::Result<()> {
        let specs = self.tensors();
        let total = self.bytes()?;
        let mut file = FileWriter::create(path, metadata, &specs)?;
        let largest = specs.iter().map(|spec| spec.shape.iter().product::<u64>()).max();
        let pool_size = largest.unwrap_or(0).min(POOL as u64) as usize;
        let mut pools: HashMap<BlockType, BlockPool> = HashMap::new();
        let mut done = 0;
        for (seed, spec) in specs.iter().enumerate() {
            let elements: u64 = spec.shape.iter().product();
            if let Some(values) = self.vector(spec, seed as u64) {
                let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                file.write(&spec.name, &bytes)?;
                done += bytes.len() as u64;
                continue;
            }
            let pool = pools
                .entry(spec.block)
                .or_insert_with_key(|&block| BlockPool::new(block, DEVIATION, pool_size, 0));
            pool.pieces(elements, &mut Random::new(seed as u64), |piece| {
                file.write(&spec.name, piece)?;
                done += piece.len() as u64;
                progress(done, total);
                io::Result::Ok(())
            })?;
        }
        file.finish()
    }

    /// Values of a tensor that is no matrix: biases lie around 0, weights of norms around 1.
    fn vector(&self, spec: &TensorSpec, seed: u64) -> Option<Vec<f32>> {
        if &*spec.name == ROPE_DIVISORS {
            return self.shape.rope_divisors();
        }
        let [width] = spec.shape[..] else { return None };
        if spec.name.ends_with(".bias") {
            return Some(normal(width as usize, DEVIATION, seed));
        }
        Some(normal(width as usize, 0.05, seed).iter().map(|v| 1.0 + v).collect())
    }
}

fn tokenizer_keys(
    metadata: &Metadata,
) -> impl Iterator<Item = (&str, &trefoil_graph::metadata::Value)> {
    metadata.iter().filter(|(key, _)| key.starts_with("tokenizer."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_as_large_as_published_ones() {
        let published = [
            ("llama-3.1-8b", "F32", 32.13),
            ("llama-3.1-8b", "F16", 16.07),
            ("llama-3.1-8b", "Q8_0", 8.54),
            ("llama-3.1-8b", "Q6_K", 6.60),
            ("llama-3.1-8b", "Q5_K_M", 5.73),
            ("llama-3.1-8b", "Q5_K_S", 5.60),
            ("llama-3.1-8b", "Q4_K_M", 4.92),
            ("llama-3.1-8b", "Q4_K_S", 4.69),
            ("llama-3.1-8b", "Q4_0", 4.66),
            ("llama-3.1-8b", "Q3_K_L", 4.32),
            ("llama-3.1-8b", "Q3_K_M", 4.02),
            ("llama-3.1-8b", "Q3_K_S", 3.66),
            ("llama-3.1-8b", "Q2_K", 3.18),
            ("qwen3-8b", "Q4_K_M", 5.03),
            ("qwen3-8b", "Q8_0", 8.71),
            ("qwen3-4b", "Q4_K_M", 2.50),
            ("qwen3-30b-a3b", "Q4_K_M", 18.56),
            ("llama-3.2-1b", "Q4_K_M", 0.808),
        ];
        for (shape, mixture, want) in published {
            let shape: ModelShape = shape.parse().expect("a shape");
            let mixture: Mixture = mixture.parse().expect("a file type");
            let model = Synthetic { shape, mixture, tokenizer: None };
            let got = model.bytes().expect("storable") as f64 / 1e9;
            // Published files have some MB of vocabulary more.
            let share = got / want;
            assert!((0.985..1.005).contains(&share), "{shape} {mixture}: {got} GB for {want}");
        }
    }
}
