//! Sampling settings where each may be left open: of a request, a configuration, a model file.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use trefoil_graph::{Metadata, MetadataError};

use super::params::SamplingParams;

/// Settings that are laid over each other: the first layer that sets a field decides it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct SamplingSettings {
    /// See [`SamplingParams::temperature`], as for all fields.
    pub temperature: Option<f32>,
    /// Tokens to keep.
    pub top_k: Option<i32>,
    /// Nucleus.
    pub top_p: Option<f64>,
    /// Minimum probability.
    pub min_p: Option<f64>,
    /// Typical sampling.
    pub typical_p: Option<f64>,
    /// Penalty of recent tokens.
    #[serde(alias = "repetition_penalty")]
    pub repeat_penalty: Option<f32>,
    /// How many tokens are recent.
    pub repeat_last_n: Option<i32>,
}

impl SamplingSettings {
    /// These settings, and where they are open those of `below`.
    #[must_use]
    pub fn over(self, below: Self) -> Self {
        Self {
            temperature: self.temperature.or(below.temperature),
            top_k: self.top_k.or(below.top_k),
            top_p: self.top_p.or(below.top_p),
            min_p: self.min_p.or(below.min_p),
            typical_p: self.typical_p.or(below.typical_p),
            repeat_penalty: self.repeat_penalty.or(below.repeat_penalty),
            repeat_last_n: self.repeat_last_n.or(below.repeat_last_n),
        }
    }

    /// Parameters with these settings and defaults elsewhere; not yet checked.
    pub fn params(self) -> SamplingParams {
        let default = SamplingParams::default();
        SamplingParams {
            temperature: self.temperature.unwrap_or(default.temperature),
            top_k: self.top_k.unwrap_or(default.top_k),
            top_p: self.top_p.unwrap_or(default.top_p),
            min_p: self.min_p.unwrap_or(default.min_p),
            typical_p: self.typical_p.unwrap_or(default.typical_p),
            repeat_penalty: self.repeat_penalty.unwrap_or(default.repeat_penalty),
            repeat_last_n: self.repeat_last_n.unwrap_or(default.repeat_last_n),
            ..default
        }
    }

    /// What a GGUF file recommends (`general.sampling.*`).
    ///
    /// # Errors
    /// A key has another type.
    pub fn from_metadata(metadata: &Metadata) -> Result<Self, MetadataError> {
        let whole = |key: &str| -> Result<Option<i32>, MetadataError> {
            Ok(metadata.i64(key)?.and_then(|number| i32::try_from(number).ok()))
        };
        let settings = Self {
            temperature: metadata.f32("general.sampling.temp")?,
            top_k: whole("general.sampling.top_k")?,
            top_p: metadata.f32("general.sampling.top_p")?.map(f64::from),
            min_p: metadata.f32("general.sampling.min_p")?.map(f64::from),
            typical_p: None,
            repeat_penalty: metadata.f32("general.sampling.penalty_repeat")?,
            repeat_last_n: whole("general.sampling.penalty_last_n")?,
        };
        Ok(settings.acceptable())
    }

    /// What a `generation_config.json` recommends; what is not a number counts as open.
    pub fn from_generation_config(config: &Value) -> Self {
        let number = |key: &str| config.get(key).and_then(Value::as_f64);
        Self {
            temperature: number("temperature").map(|t| t as f32),
            top_k: config.get("top_k").and_then(Value::as_i64).and_then(|k| i32::try_from(k).ok()),
            top_p: number("top_p"),
            min_p: number("min_p"),
            typical_p: number("typical_p"),
            repeat_penalty: number("repetition_penalty").map(|r| r as f32),
            repeat_last_n: None,
        }
        .acceptable()
    }

    /// Leaves open what is outside of its range: a model's recommendation must not make every
    /// request fail.
    fn acceptable(self) -> Self {
        let alone = |one: Self| one.params().validate(0).is_ok();
        let open = Self::default();
        Self {
            temperature: self.temperature.filter(|&t| alone(Self { temperature: Some(t), ..open })),
            top_k: self.top_k.filter(|&k| alone(Self { top_k: Some(k), ..open })),
            top_p: self.top_p.filter(|&p| alone(Self { top_p: Some(p), ..open })),
            min_p: self.min_p.filter(|&p| alone(Self { min_p: Some(p), ..open })),
            typical_p: self.typical_p.filter(|&p| alone(Self { typical_p: Some(p), ..open })),
            repeat_penalty: self
                .repeat_penalty
                .filter(|&r| alone(Self { repeat_penalty: Some(r), ..open })),
            repeat_last_n: self
                .repeat_last_n
                .filter(|&n| alone(Self { repeat_last_n: Some(n), ..open })),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn layers_decide_field_by_field() {
        let request = SamplingSettings { top_k: Some(5), ..SamplingSettings::default() };
        let model = SamplingSettings::from_generation_config(&json!({
            "top_k": 50, "temperature": 0.6, "top_p": 1.5, "do_sample": true
        }));
        let params = request.over(model).params();
        assert_eq!((params.top_k, params.temperature, params.top_p), (5, 0.6, 1.0));
    }

    #[test]
    fn model_files_recommend() {
        let mut metadata = Metadata::new();
        metadata.set("general.sampling.temp", 0.7_f32);
        metadata.set("general.sampling.top_k", 20_u32);
        metadata.set("general.sampling.penalty_repeat", -3.0_f32);
        let settings = SamplingSettings::from_metadata(&metadata).expect("right types");
        assert_eq!((settings.temperature, settings.top_k), (Some(0.7), Some(20)));
        assert_eq!(settings.repeat_penalty, None);
    }
}
