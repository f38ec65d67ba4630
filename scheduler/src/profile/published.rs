//! Published speeds that a profile is held against.

use serde::{Deserialize, Serialize};

use super::Factor;

/// A machine or build that speeds were published for, and how it differs from the profile's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineFactor {
    /// Short name.
    pub name: String,
    /// Machine, software, date.
    pub source: String,
    /// Factor on the device's speed; 1 if absent.
    #[serde(default)]
    pub factor: Option<Factor>,
    /// What the factor is on.
    #[serde(default)]
    pub scales: Scales,
    /// Why there is a factor.
    #[serde(default)]
    pub because: String,
}

/// What a machine factor is on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scales {
    /// Arithmetic and memory.
    #[default]
    All,
    /// Arithmetic: another software version or clock.
    Compute,
    /// Memory: another sort of DRAM.
    Memory,
}

/// Speeds of one model on one device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Published {
    /// Name of a [`MachineFactor`].
    pub machine: String,
    /// Device of the profile.
    pub device: String,
    /// Shape by name.
    pub model: String,
    /// Mix of formats: `Q4_K_M`.
    pub quant: String,
    /// Tokens per step of a prompt.
    pub chunk: u64,
    /// Prompt speeds: `[tokens, tokens per second]`.
    #[serde(default)]
    pub prompt: Vec<Measured>,
    /// Decode speeds: `[tokens before, tokens per second]`.
    #[serde(default)]
    pub decode: Vec<Measured>,
}

/// Tokens, and tokens per second.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured(pub u64, pub f64);
