//! Hyper-parameters of a model, read from its metadata and checked.

use crate::metadata::{Metadata, MetadataError, Value};
use crate::ops::Pooling;

/// Sizes of a mixture of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ExpertHyper {
    /// Experts per layer.
    pub count: usize,
    /// Experts per token.
    pub used: usize,
    /// Width of each expert's hidden layer.
    pub ffn: usize,
}

/// Hyper-parameters that every architecture has. An architecture reads its own special ones.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Hyper {
    /// `general.architecture`.
    pub architecture: String,
    /// `general.name`.
    pub name: Option<String>,
    /// Blocks.
    pub layers: usize,
    /// Width of the residual stream.
    pub embedding: usize,
    /// Positions the model was trained for.
    pub context: usize,
    /// Positions it was first trained for, where a longer context came later.
    pub original_context: Option<usize>,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// Width of the feed-forward hidden layer.
    pub ffn: usize,
    /// Added under the root of each norm.
    pub norm_eps: f32,
    /// Mixture of experts, if it is one.
    pub experts: Option<ExpertHyper>,
    /// Sliding window of the layers that have one.
    pub window: Option<u32>,
    /// Does a token see only what comes before it?
    pub causal: bool,
    /// How an encoder's output is pooled.
    pub pooling: Option<Pooling>,
}

/// Largest value believed for any size: keeps products of two sizes far from overflow.
const MOST: usize = 1 << 24;

/// A hyper-parameter that makes no sense.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HyperError {
    /// Missing, or of the wrong type.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// A number outside of what any model has.
    #[error("metadata {key}: expected {expected}, got {got}; is the file damaged?")]
    Range {
        /// The key.
        key: String,
        /// What would be right.
        expected: String,
        /// What the file says.
        got: String,
    },
}

/// Reads `ARCH.name` keys of one model.
pub(crate) struct Keys<'m> {
    metadata: &'m Metadata,
    architecture: String,
}

impl<'m> Keys<'m> {
    pub(crate) fn new(metadata: &'m Metadata) -> Result<Self, MetadataError> {
        let architecture = metadata.required("general.architecture")?.str()?.to_owned();
        Ok(Self { metadata, architecture })
    }

    pub(crate) fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    /// A size that must be there.
    pub(crate) fn size(&self, name: &str) -> Result<usize, HyperError> {
        let key = self.key(name);
        check_size(&key, self.metadata.required(&key)?.usize()?)
    }

    /// A size that may be missing.
    pub(crate) fn size_or(&self, name: &str, default: usize) -> Result<usize, HyperError> {
        let key = self.key(name);
        match self.metadata.field(&key) {
            Some(field) => check_size(&key, field.usize()?),
            None => Ok(default),
        }
    }

    /// A size that may be missing or 0, which mean the same.
    pub(crate) fn optional_size(&self, name: &str) -> Result<Option<usize>, HyperError> {
        let key = self.key(name);
        match self.metadata.field(&key) {
            Some(field) if field.u64()? == 0 => Ok(None),
            Some(field) => check_size(&key, field.usize()?).map(Some),
            None => Ok(None),
        }
    }

    /// A finite number that may be missing.
    pub(crate) fn number(&self, name: &str) -> Result<Option<f32>, HyperError> {
        let key = self.key(name);
        match self.metadata.f32(&key)? {
            Some(value) if !value.is_finite() => Err(HyperError::Range {
                key,
                expected: "a finite number".to_owned(),
                got: value.to_string(),
            }),
            value => Ok(value),
        }
    }

    /// A list of finite numbers that may be missing.
    pub(crate) fn numbers(&self, name: &str) -> Result<Option<Vec<f32>>, HyperError> {
        let key = self.key(name);
        let Some(values) = self.metadata.f32s(&key)? else { return Ok(None) };
        match values.iter().find(|value| !value.is_finite()) {
            Some(value) => Err(HyperError::Range {
                key,
                expected: "finite numbers".to_owned(),
                got: value.to_string(),
            }),
            None => Ok(Some(values.into_owned())),
        }
    }

    /// A text that may be missing.
    pub(crate) fn text(&self, name: &str) -> Result<Option<&'m str>, HyperError> {
        Ok(self.metadata.str(&self.key(name))?)
    }

    /// A truth value that may be missing.
    pub(crate) fn truth(&self, name: &str) -> Result<Option<bool>, HyperError> {
        Ok(self.metadata.bool(&self.key(name))?)
    }

    /// A list of truth values; `None` if the key is missing or holds no list.
    pub(crate) fn truths(&self, name: &str) -> Result<Option<&'m [bool]>, HyperError> {
        let Some(field) = self.metadata.field(&self.key(name)) else { return Ok(None) };
        match field.value() {
            Value::Array(_) => Ok(Some(field.bools()?)),
            _ => Ok(None),
        }
    }
}

fn check_size(key: &str, value: usize) -> Result<usize, HyperError> {
    if (1..=MOST).contains(&value) {
        return Ok(value);
    }
    Err(HyperError::Range {
        key: key.to_owned(),
        expected: format!("1 to {MOST}"),
        got: value.to_string(),
    })
}

impl Hyper {
    /// Reads and checks the hyper-parameters.
    pub(crate) fn read(metadata: &Metadata) -> Result<Self, HyperError> {
        let keys = Keys::new(metadata)?;
        let embedding = keys.size("embedding_length")?;
        let heads = keys.size("attention.head_count")?;
        let kv_heads = keys.size_or("attention.head_count_kv", heads)?;
        let head_dim = keys.size_or("attention.key_length", (embedding / heads).max(1))?;
        let value_dim = keys.size_or("attention.value_length", head_dim)?;
        if value_dim != head_dim {
            return Err(HyperError::Range {
                key: keys.key("attention.value_length"),
                expected: format!("the key length, {head_dim}"),
                got: value_dim.to_string(),
            });
        }
        if heads % kv_heads != 0 {
            return Err(HyperError::Range {
                key: keys.key("attention.head_count_kv"),
                expected: format!("a divisor of the head count, {heads}"),
                got: kv_heads.to_string(),
            });
        }
        let norm_eps = match keys.number("attention.layer_norm_rms_epsilon")? {
            Some(eps) => eps,
            None => keys.number("attention.layer_norm_epsilon")?.unwrap_or(1e-5),
        };
        let ffn = keys.size_or("feed_forward_length", 4 * embedding)?;
        let experts = match keys.optional_size("expert_count")? {
            None => None,
            Some(count) => Some(ExpertHyper {
                count,
                used: keys.size("expert_used_count")?,
                ffn: keys.size_or("expert_feed_forward_length", ffn)?,
            }),
        };
        let window = keys.optional_size("attention.sliding_window")?.map(|window| window as u32);
        let pooling = match metadata.u32(&keys.key("pooling_type"))? {
            Some(1) => Some(Pooling::Mean),
            Some(2) => Some(Pooling::Cls),
            Some(3) => Some(Pooling::Last),
            _ => None,
        };
        Ok(Self {
            name: metadata.str("general.name")?.map(str::to_owned),
            layers: keys.size("block_count")?,
            embedding,
            context: keys.size("context_length")?,
            original_context: keys.optional_size("rope.scaling.original_context_length")?,
            heads,
            kv_heads,
            head_dim,
            ffn,
            norm_eps,
            experts,
            window,
            causal: keys.truth("attention.causal")?.unwrap_or(true),
            pooling,
            architecture: keys.architecture,
        })
    }
}
