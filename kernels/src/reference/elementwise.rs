use std::f64::consts::{FRAC_1_SQRT_2, PI};

use trefoil_graph::ops::Nonlinearity;

/// The function of a gate or activation, computed in f64.
pub(crate) fn nonlinearity(function: Nonlinearity, x: f32) -> f32 {
    let x = f64::from(x);
    let y = match function {
        Nonlinearity::Silu => x / (1.0 + (-x).exp()),
        Nonlinearity::GeluTanh => {
            let inner = (2.0 / PI).sqrt() * (x + 0.044_715 * x.powi(3));
            0.5 * x * (1.0 + inner.tanh())
        }
        Nonlinearity::GeluErf => 0.5 * x * (1.0 + erf(x * FRAC_1_SQRT_2)),
    };
    y as f32
}

/// `cap * tanh(x / cap)`.
pub(crate) fn soft_cap(cap: f32, x: f32) -> f32 {
    let cap = f64::from(cap);
    (cap * (f64::from(x) / cap).tanh()) as f32
}

/// The error function, to about 1e-15: its Maclaurin series where that converges well, a continued
/// fraction of the complement beyond (Abramowitz and Stegun 7.1.5 and 7.1.14).
pub(crate) fn erf(x: f64) -> f64 {
    if x.abs() < 2.5 {
        let mut term = x;
        let mut sum = x;
        for n in 1..200 {
            let n = f64::from(n);
            term *= -x * x / n;
            let next = term / (2.0 * n + 1.0);
            sum += next;
            if next.abs() < 1e-17 * sum.abs() {
                break;
            }
        }
        return sum * 2.0 / PI.sqrt();
    }
    let z = x.abs();
    // 1 / (z + (1/2)/(z + 1/(z + (3/2)/(z + ...)))), evaluated from the far end.
    let tail = (1..=80).rev().fold(z, |tail, k| z + 0.5 * f64::from(k) / tail);
    let complement = (-z * z).exp() / (PI.sqrt() * tail);
    (1.0 - complement).copysign(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_has_the_tabulated_values() {
        // Abramowitz and Stegun, table 7.1.
        let table = [
            (0.0, 0.0),
            (0.5, 0.520_499_877_813_046_5),
            (1.0, 0.842_700_792_949_714_9),
            (2.0, 0.995_322_265_018_952_7),
            (2.499_999, 0.999_593_045_800_0),
            (3.0, 0.999_977_909_503_001_4),
        ];
        for (x, want) in table {
            assert!((erf(x) - want).abs() < 2e-9, "{x}: {} for {want}", erf(x));
            assert!((erf(-x) + want).abs() < 2e-9);
        }
        assert!((erf(2.499_999_9) - erf(2.500_000_1)).abs() < 1e-9, "no step between the forms");
    }
}
