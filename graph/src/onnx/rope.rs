//! Rotary positions out of tables of cosines and sines.
//!
//! ONNX decoders carry what their rotary settings amount to and not the settings. Each pair's angle
//! per position is read from the table, first at position 1, then with less and less error at positions
//! 2, 4, 8, ... whose turns are counted. Frequencies that are powers of one base are that base; others
//! (any scaling) are the base and divisors, as in GGUF files.

use std::f64::consts::TAU;

use super::OnnxError;
use super::constants::{Constant, Constants};
use super::proto::Element;
use super::value::Rotary;

/// How far frequencies may be from powers of a base: those of a table are in single precision.
const NEAR: f64 = 4e-6;
/// Positions at which a table is compared with what was read from it.
const CHECKED: usize = 64;
/// Most pairs of a head.
const MOST_PAIRS: usize = 1 << 12;

/// What a model's rotary tables say.
pub(super) struct Positions {
    /// Positions that the tables have.
    pub(super) count: usize,
    /// Base of the frequencies.
    pub(super) base: f32,
    /// What each pair's frequency is divided by, if any is.
    pub(super) divisors: Option<Vec<f32>>,
    frequencies: Vec<f64>,
}

struct Tables<'c> {
    cos: &'c Constant,
    sin: &'c Constant,
    pairs: usize,
}

impl Tables<'_> {
    fn angle(&self, position: usize, pair: usize) -> f64 {
        let at = position * self.pairs + pair;
        self.sin.number(at).atan2(self.cos.number(at))
    }

    /// Radians per position of a pair.
    fn frequency(&self, count: usize, pair: usize) -> f64 {
        let mut frequency = self.angle(1, pair);
        let mut position = 2;
        while position < count {
            let angle = self.angle(position, pair);
            let turns = ((frequency * position as f64 - angle) / TAU).round();
            frequency = (angle + turns * TAU) / position as f64;
            position *= 2;
        }
        frequency
    }
}

impl Positions {
    /// Reads and checks the tables.
    pub(super) fn read(constants: &Constants, rotary: Rotary) -> Result<Self, OnnxError> {
        let (cos, sin) = (&constants.all[rotary.cos], &constants.all[rotary.sin]);
        let (count, pairs) = cos.matrix()?;
        let fail = |expected: &str, got: String| OnnxError::Tensor {
            tensor: cos.name.clone(),
            expected: expected.to_owned(),
            got,
        };
        if count < 2 || !(1..=MOST_PAIRS).contains(&pairs) {
            return Err(fail("at least two positions of some pairs", format!("{:?}", cos.dims)));
        }
        let tables = Tables { cos, sin, pairs };
        let frequencies: Vec<f64> = (0..pairs).map(|pair| tables.frequency(count, pair)).collect();
        // Angles are products in single precision, so that far positions are less exact.
        let near = if cos.element == Element::F32 { 1e-4 } else { 2e-2 };
        let step = count.div_ceil(CHECKED);
        for position in (0..count).step_by(step).chain([count - 1]) {
            for (pair, frequency) in frequencies.iter().enumerate() {
                let at = position * pairs + pair;
                let (sine, cosine) = (frequency * position as f64).sin_cos();
                let error = (sine - sin.number(at)).abs().max((cosine - cos.number(at)).abs());
                let most = near + 2.5e-7 * frequency.abs() * position as f64;
                if error.is_nan() || error > most {
                    let got = format!("{} and {}", cos.number(at), sin.number(at));
                    let expected = format!(
                        "cosines and sines of multiples of one angle ({cosine} and {sine} for pair \
                         {pair} at {position})"
                    );
                    return Err(fail(&expected, got));
                }
            }
        }
        if let Some(bad) = frequencies.iter().find(|&&f| !(f > 0.0 && f < TAU)) {
            return Err(fail("angles above 0", bad.to_string()));
        }
        let (base, divisors) = base_and_divisors(&frequencies);
        Ok(Self { count, base, divisors, frequencies })
    }

    /// Pairs of elements that turn.
    pub(super) fn pairs(&self) -> usize {
        self.frequencies.len()
    }
}

/// `frequencies[i]` as `base^(-i / pairs) / divisor`; no divisors where all are 1.
fn base_and_divisors(frequencies: &[f64]) -> (f32, Option<Vec<f32>>) {
    let pairs = frequencies.len();
    let power = |base: f64, pair: usize| base.powf(-(pair as f64) / pairs as f64);
    // The last pair knows the base best, if there is no scaling; scaling leaves the first ones alone.
    for known in [pairs - 1, 1] {
        if known == 0 || known >= pairs {
            continue;
        }
        let base = round(frequencies[known].powf(-(pairs as f64) / known as f64));
        let divisor = |(pair, frequency): (usize, &f64)| power(f64::from(base), pair) / frequency;
        let divisors = frequencies.iter().enumerate().map(divisor);
        let plain = |divisor: f64| (divisor - 1.0).abs() < NEAR;
        if divisors.clone().all(plain) {
            return (base, None);
        }
        if known == 1 && base.is_finite() && base > 0.0 {
            return (base, Some(divisors.map(|divisor| divisor as f32).collect()));
        }
    }
    let base = 10_000.0f32;
    let divisors = frequencies.iter().enumerate();
    let divisors = divisors.map(|(pair, f)| (power(f64::from(base), pair) / f) as f32);
    (base, Some(divisors.collect()))
}

/// A base as people choose them: with few digits, where the number is near one.
fn round(base: f64) -> f32 {
    for digits in 1..=6 {
        let unit = 10f64.powf(base.log10().floor() - f64::from(digits - 1));
        let rounded = (base / unit).round() * unit;
        if (rounded / base - 1.0).abs() < 2e-5 {
            return rounded as f32;
        }
    }
    base as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(base: f64, pairs: usize) -> Vec<f64> {
        // In single precision, as files have them.
        let power = |pair: usize| f64::from(base.powf(-(pair as f64) / pairs as f64) as f32);
        (0..pairs).map(power).collect()
    }

    #[test]
    fn a_base_is_found_and_scaling_becomes_divisors() {
        for base in [1e4, 5e5, 1e6, 130_000.0, 12_345.0] {
            assert_eq!(base_and_divisors(&plain(base, 32)), (base as f32, None));
        }
        let mut scaled = plain(5e5, 32);
        scaled.iter_mut().skip(20).for_each(|frequency| *frequency /= 8.0);
        let (base, divisors) = base_and_divisors(&scaled);
        let divisors = divisors.expect("scaled");
        assert_eq!(base, 5e5);
        for (pair, divisor) in divisors.iter().enumerate() {
            let want = if pair < 20 { 1.0 } else { 8.0 };
            assert!((divisor / want - 1.0).abs() < 1e-6, "{pair}: {divisor}");
        }
        // One pair has no base.
        assert_eq!(base_and_divisors(&[1.0]), (1e4, Some(vec![1.0])));
    }
}
