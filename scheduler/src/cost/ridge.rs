//! Ridge regression (Hoerl and Kennard 1970) of what the roofline leaves unexplained.

use serde::{Deserialize, Serialize};
use trefoil_graph::ops::OpCost;

/// Features of an op's residual: a constant, logarithms of rows, of arithmetic and of traffic, and
/// the square of the first.
const FEATURES: usize = 5;

/// Predictions are not moved by more than this factor, whatever a fit says far from its data.
const MOST: f64 = 3.0;

/// `ln(measured / predicted)` as a linear function of an op's features.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Residual {
    coefficients: [f64; FEATURES],
}

/// A regression without enough to go by.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RidgeError {
    /// Fewer samples than features.
    #[error("expected at least {FEATURES} measurements, got {0}")]
    TooFew(usize),
    /// A time that is not above zero, or a penalty that is not.
    #[error("expected finite times and a penalty above 0, got {0}")]
    NotPositive(f64),
}

fn features(rows: f64, work: &OpCost) -> [f64; FEATURES] {
    let rows = rows.max(1.0).ln();
    [1.0, rows, rows * rows, (1.0 + work.flops()).ln(), (1.0 + work.bytes()).ln()]
}

impl Residual {
    /// Fits measured over predicted times of ops at a number of rows. `penalty` (above 0) holds the
    /// coefficients near zero; the constant is free of it.
    pub fn fit(samples: &[(f64, OpCost, f64)], penalty: f64) -> Result<Self, RidgeError> {
        if samples.len() < FEATURES {
            return Err(RidgeError::TooFew(samples.len()));
        }
        if !(penalty.is_finite() && penalty > 0.0) {
            return Err(RidgeError::NotPositive(penalty));
        }
        // Normal equations: (X'X + penalty) b = X'y.
        let mut matrix = [[0.0; FEATURES]; FEATURES];
        let mut right = [0.0; FEATURES];
        for (rows, work, ratio) in samples {
            if !(ratio.is_finite() && *ratio > 0.0) {
                return Err(RidgeError::NotPositive(*ratio));
            }
            let x = features(*rows, work);
            for i in 0..FEATURES {
                for j in 0..FEATURES {
                    matrix[i][j] += x[i] * x[j];
                }
                right[i] += x[i] * ratio.ln();
            }
        }
        for (i, row) in matrix.iter_mut().enumerate() {
            // A trace on the constant too keeps the matrix positive definite.
            row[i] += if i == 0 { 1e-9 } else { penalty };
        }
        Ok(Self { coefficients: solve(matrix, right) })
    }

    /// Factor on the roofline's time.
    pub fn factor(&self, rows: f64, work: &OpCost) -> f64 {
        let x = features(rows, work);
        let sum: f64 = self.coefficients.iter().zip(x).map(|(b, x)| b * x).sum();
        sum.exp().clamp(1.0 / MOST, MOST)
    }
}

/// Solves a symmetric positive definite system by Cholesky's decomposition.
fn solve(matrix: [[f64; FEATURES]; FEATURES], right: [f64; FEATURES]) -> [f64; FEATURES] {
    let mut lower = [[0.0; FEATURES]; FEATURES];
    for i in 0..FEATURES {
        for j in 0..=i {
            let dot: f64 = (0..j).map(|k| lower[i][k] * lower[j][k]).sum();
            lower[i][j] = if i == j {
                (matrix[i][i] - dot).max(f64::MIN_POSITIVE).sqrt()
            } else {
                (matrix[i][j] - dot) / lower[j][j]
            };
        }
    }
    let mut y = [0.0; FEATURES];
    for i in 0..FEATURES {
        let dot: f64 = (0..i).map(|k| lower[i][k] * y[k]).sum();
        y[i] = (right[i] - dot) / lower[i][i];
    }
    let mut x = [0.0; FEATURES];
    for i in (0..FEATURES).rev() {
        let dot: f64 = (i + 1..FEATURES).map(|k| lower[k][i] * x[k]).sum();
        x[i] = (y[i] - dot) / lower[i][i];
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(i: u32) -> (f64, OpCost) {
        let rows = f64::from(1 << (i % 10));
        let weights = 1e6 * f64::from(1 + i % 7);
        let work = OpCost {
            weight_flops: 2.0 * rows * weights,
            weight_bytes: weights * 0.56,
            read_bytes: rows * 4e3,
            ..OpCost::default()
        };
        (rows, work)
    }

    /// What a device might do that the roofline does not know.
    fn truth(rows: f64, work: &OpCost) -> f64 {
        (0.3 - 0.1 * rows.ln() + 0.012 * rows.ln().powi(2) + 0.02 * work.bytes().ln()).exp()
    }

    #[test]
    fn it_finds_what_generated_data_hides_and_holds_on_data_not_seen() {
        let noise = |i: u32| 1.0 + 0.02 * (f64::from(i) * 2.399).sin();
        let samples: Vec<_> = (0..140)
            .map(|i| {
                let (rows, work) = sample(i);
                (rows, work, truth(rows, &work) * noise(i))
            })
            .collect();
        let (seen, kept): (Vec<_>, Vec<_>) =
            samples.iter().enumerate().partition(|(i, _)| i % 3 != 0);
        let seen: Vec<_> = seen.into_iter().map(|(_, sample)| *sample).collect();
        let fit = Residual::fit(&seen, 1e-3).expect("enough data");
        for (_, (rows, work, ratio)) in kept {
            let got = fit.factor(*rows, work);
            assert!((got / ratio - 1.0).abs() < 0.04, "rows {rows}: {got} for {ratio}");
        }
        assert_eq!(fit, Residual::fit(&seen, 1e-3).expect("the same"), "deterministic");
    }

    #[test]
    fn a_heavy_penalty_leaves_the_mean_and_nonsense_is_refused() {
        let samples: Vec<_> = (0..40)
            .map(|i| {
                let (rows, work) = sample(i);
                (rows, work, 1.5)
            })
            .collect();
        let fit = Residual::fit(&samples, 1e9).expect("fits");
        assert!((fit.factor(8.0, &samples[0].1) - 1.5).abs() < 0.01);
        assert_eq!(Residual::fit(&samples[..3], 1.0), Err(RidgeError::TooFew(3)));
        assert_eq!(Residual::fit(&samples, 0.0), Err(RidgeError::NotPositive(0.0)));
        let (rows, work, _) = samples[0];
        let bad = vec![(rows, work, -1.0); 9];
        assert_eq!(Residual::fit(&bad, 1.0), Err(RidgeError::NotPositive(-1.0)));
    }
}
