//! Rope frequencies with the scalings that files ask for.

use std::f64::consts::PI;
use std::sync::Arc;

use crate::hyper::HyperError;
use crate::lowering::{LowerError, Lowering};
use crate::ops::RopeTable;

/// Unscaled frequencies `base^(-2i/dims)` of `dims / 2` pairs (Su et al. 2021).
pub(crate) fn frequencies(base: f64, dims: usize) -> Vec<f64> {
    (0..dims / 2).map(|pair| base.powf(-2.0 * pair as f64 / dims as f64)).collect()
}

fn divided(frequencies: &[f64], divisors: &[f32]) -> Vec<f32> {
    frequencies.iter().zip(divisors).map(|(f, d)| (f / f64::from(*d)) as f32).collect()
}

/// Llama 3.1's smooth scaling: long waves are slowed by `factor`, short ones kept, those between
/// interpolated (Llama 3 herd of models, 2024; `rope_type: llama3`).
#[derive(Clone, Copy, Debug)]
struct Llama3 {
    factor: f64,
    low: f64,
    high: f64,
    original: f64,
}

impl Llama3 {
    fn scale(&self, frequency: f64) -> f64 {
        let wavelength = 2.0 * PI / frequency;
        let turns = self.original / wavelength;
        if turns < self.low {
            frequency / self.factor
        } else if turns > self.high {
            frequency
        } else {
            let smooth = (turns - self.low) / (self.high - self.low);
            (1.0 - smooth) * frequency / self.factor + smooth * frequency
        }
    }
}

impl Lowering<'_> {
    /// The model's main rope table: `rope.freq_base` with what `rope.scaling.*`, `rope_freqs.weight`
    /// or `rope_factors_*.weight` say.
    pub(crate) fn rope_table(&self) -> Result<Arc<RopeTable>, LowerError> {
        let keys = self.keys()?;
        let base = f64::from(keys.number("rope.freq_base")?.unwrap_or(10_000.0));
        self.rope_table_for(base, true)
    }

    /// A rope table with another base; `scaled` says if the file's scaling applies to it.
    pub(crate) fn rope_table_for(
        &self,
        base: f64,
        scaled: bool,
    ) -> Result<Arc<RopeTable>, LowerError> {
        let table = self.any_rope_table(base, scaled)?;
        let long = table.long_frequencies.iter().flatten();
        let numbers = table.frequencies.iter().chain(long).chain(std::iter::once(&table.magnitude));
        let infinite = numbers.copied().find(|number| !number.is_finite());
        match infinite {
            None => Ok(Arc::new(table)),
            Some(got) => Err(LowerError::Hyper(HyperError::Range {
                key: self.keys()?.key("rope.*"),
                expected: "numbers that give finite frequencies".to_owned(),
                got: format!("{got} with base {base}"),
            })),
        }
    }

    fn any_rope_table(&self, base: f64, scaled: bool) -> Result<RopeTable, LowerError> {
        let keys = self.keys()?;
        let dims = keys.size_or("rope.dimension_count", self.hyper.head_dim)?;
        if dims > self.hyper.head_dim || dims % 2 != 0 || base <= 0.0 {
            return Err(LowerError::Hyper(HyperError::Range {
                key: keys.key("rope.dimension_count"),
                expected: format!("an even number up to {} and a base > 0", self.hyper.head_dim),
                got: format!("{dims} with base {base}"),
            }));
        }
        // A table is as large as a head: not before a tensor has shown that heads are that large.
        self.check_heads()?;
        let plain = frequencies(base, dims);
        let as_f32 = |list: &[f64]| list.iter().map(|&f| f as f32).collect::<Vec<f32>>();
        let table = |frequencies| RopeTable { frequencies, long_frequencies: None, magnitude: 1.0 };
        if !scaled {
            return Ok(table(as_f32(&plain)));
        }
        if let Some(divisors) = self.factor_list("rope_freqs.weight", None, dims)? {
            return Ok(table(divided(&plain, &divisors)));
        }
        let short =
            self.factor_list("rope_factors_short.weight", Some("rope.scaling.short_factor"), dims)?;
        let long =
            self.factor_list("rope_factors_long.weight", Some("rope.scaling.long_factor"), dims)?;
        if let (Some(short), Some(long)) = (short, long) {
            return Ok(RopeTable {
                frequencies: divided(&plain, &short),
                long_frequencies: Some(divided(&plain, &long)),
                magnitude: self.longrope_magnitude()?,
            });
        }
        let factor = f64::from(keys.number("rope.scaling.factor")?.unwrap_or(1.0));
        let scaled = match keys.text("rope.scaling.type")? {
            None | Some("none" | "default") => as_f32(&plain),
            Some("linear") => plain.iter().map(|f| (f / factor) as f32).collect(),
            Some("llama3") => {
                let number = |name: &str, default: f32| {
                    keys.number(name).map(|value| f64::from(value.unwrap_or(default)))
                };
                let rule = Llama3 {
                    factor,
                    low: number("rope.scaling.low_freq_factor", 1.0)?,
                    high: number("rope.scaling.high_freq_factor", 4.0)?,
                    original: keys.size_or("rope.scaling.original_context_length", 8192)? as f64,
                };
                plain.iter().map(|&f| rule.scale(f) as f32).collect()
            }
            Some(other) => {
                return Err(LowerError::Hyper(HyperError::Range {
                    key: keys.key("rope.scaling.type"),
                    expected: "none, linear, llama3 or longrope with its factors".to_owned(),
                    got: other.to_owned(),
                }));
            }
        };
        Ok(table(scaled))
    }

    /// Divisors of the frequencies, from a tensor or from metadata.
    fn factor_list(
        &self,
        tensor: &str,
        key: Option<&str>,
        dims: usize,
    ) -> Result<Option<Vec<f32>>, LowerError> {
        if self.file.tensors.contains_key(tensor) {
            let weight = self.vector(tensor, dims / 2)?;
            if weight.block != crate::BlockType::F32 {
                return Err(LowerError::Hyper(HyperError::Range {
                    key: tensor.to_owned(),
                    expected: "F32".to_owned(),
                    got: weight.block.name().to_owned(),
                }));
            }
            let values: Vec<f32> = weight
                .bytes()
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect();
            return check_factors(tensor, values, dims / 2).map(Some);
        }
        let Some(key) = key else { return Ok(None) };
        let keys = self.keys()?;
        match keys.numbers(key)? {
            Some(values) => check_factors(&keys.key(key), values, dims / 2).map(Some),
            None => Ok(None),
        }
    }

    /// `sqrt(1 + ln(context / original) / ln(original))` (LongRoPE, Ding et al. 2024), unless the
    /// file gives the number itself.
    fn longrope_magnitude(&self) -> Result<f32, LowerError> {
        let keys = self.keys()?;
        if let Some(given) = keys.number("rope.scaling.attn_factor")? {
            return Ok(given);
        }
        let original = keys.size_or("rope.scaling.original_context_length", self.hyper.context)?;
        let ratio = self.hyper.context as f64 / original as f64;
        if ratio <= 1.0 {
            return Ok(1.0);
        }
        Ok((1.0 + ratio.ln() / (original as f64).ln()).sqrt() as f32)
    }
}

fn check_factors(name: &str, values: Vec<f32>, count: usize) -> Result<Vec<f32>, LowerError> {
    if values.len() == count && values.iter().all(|&v| v.is_finite() && v > 0.0) {
        return Ok(values);
    }
    Err(LowerError::Hyper(HyperError::Range {
        key: name.to_owned(),
        expected: format!("{count} positive numbers"),
        got: format!("{} numbers", values.len()),
    }))
}
