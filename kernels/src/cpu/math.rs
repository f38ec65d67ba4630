//! Functions of one number that compile to vector code inside a loop: no branches, no tables.
//!
//! The polynomials were fitted here (Chebyshev nodes, double precision); the comments give the
//! error of the fit, the tests the error of the whole in f32.

/// e^x within 2e-7 of its size; 0 below about -87.3 (subnormal results are left out), infinity above
/// 88.7.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    /// Adding it rounds to whole numbers, which then stand in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    const TOP: f32 = 88.722_83;
    const BOTTOM: f32 = -87.336_54;
    let inside = if x > TOP { TOP } else { x };
    let inside = if inside < BOTTOM { BOTTOM } else { inside };
    let shifted = inside.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN_2_HIGH, inside);
    let r = n.mul_add(-LN_2_LOW, r);
    // (e^r - 1 - r) / r^2 on |r| < 0.3466, error 6e-8.
    let p = 0.001_393_365_f32;
    let p = p.mul_add(r, 0.008_363_18);
    let p = p.mul_add(r, 0.041_666_465);
    let p = p.mul_add(r, 0.166_665_77);
    let p = p.mul_add(r, 0.5);
    let e = (r * r).mul_add(p, r) + 1.0;
    // 2^n in two steps, since n = 128 has no power of its own. The low nine bits of `shifted` are n.
    let n = shifted.to_bits().wrapping_shl(23) as i32 >> 23;
    let half = n >> 1;
    let power = |n: i32| f32::from_bits(((n + 127) << 23) as u32);
    let e = e * power(half) * power(n - half);
    let e = if x > TOP { f32::INFINITY } else { e };
    if x < BOTTOM { 0.0 } else { e }
}

/// 1 / (1 + e^-x).
#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Hyperbolic tangent within 3e-7 of its size.
#[inline(always)]
pub(super) fn tanh(x: f32) -> f32 {
    let size = x.abs();
    let far = 1.0 - 2.0 / (exp(2.0 * size) + 1.0);
    // (tanh x - x) / x^3 on |x| < 0.625, error 4e-8.
    let z = x * x;
    let p = -0.006_104_948_f32;
    let p = p.mul_add(z, 0.021_003_641);
    let p = p.mul_add(z, -0.053_852_5);
    let p = p.mul_add(z, 0.133_327_82);
    let p = p.mul_add(z, -0.333_333_3);
    let near = (size * z).mul_add(p, size);
    let value = if size < 0.625 { near } else { far };
    value.copysign(x)
}

/// The error function within 3e-7 of its size.
#[inline(always)]
pub(super) fn erf(x: f32) -> f32 {
    let size = x.abs();
    // erf x / x on |x| < 1, error 1e-9.
    let z = x * x;
    let p = 7.882_497e-5_f32;
    let p = p.mul_add(z, -0.000_801_885_5);
    let p = p.mul_add(z, 0.005_189_312);
    let p = p.mul_add(z, -0.026_854_329);
    let p = p.mul_add(z, 0.112_835_97);
    let p = p.mul_add(z, -0.376_126_27);
    let p = p.mul_add(z, std::f32::consts::FRAC_2_SQRT_PI);
    let near = size * p;
    // -ln(1 - erf x) on 1 < |x| < 4, error 1e-8; beyond 4 the result rounds to 1.
    let t = if size > 4.0 { 4.0 } else { size };
    let q = -1.614_061_6e-6_f32;
    let q = q.mul_add(t, 4.559_062e-5);
    let q = q.mul_add(t, -0.000_592_769_54);
    let q = q.mul_add(t, 0.004_740_222_3);
    let q = q.mul_add(t, -0.026_364_717);
    let q = q.mul_add(t, 0.109_978_25);
    let q = q.mul_add(t, 0.631_937_1);
    let q = q.mul_add(t, 1.130_166_7);
    let q = q.mul_add(t, -0.000_303_212_97);
    let far = 1.0 - exp(-q);
    let value = if size < 1.0 { near } else { far };
    let value = if x.is_nan() { x } else { value };
    value.copysign(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Largest relative error over a fine grid.
    fn worst(f: fn(f32) -> f32, exact: impl Fn(f64) -> f64, low: f32, high: f32) -> f64 {
        let steps = 400_000;
        (0..=steps)
            .map(|i| low + (high - low) * (i as f32 / steps as f32))
            .map(|x| (x, exact(f64::from(x))))
            .filter(|(_, want)| want.abs() > 1.3e-38)
            .map(|(x, want)| (f64::from(f(x)) - want).abs() / want.abs())
            .fold(0.0, f64::max)
    }

    /// The error function by its series (small) or continued fraction (large), in f64.
    fn erf_exact(x: f64) -> f64 {
        let a = x.abs();
        let value = if a < 2.5 {
            let (mut term, mut sum) = (a, a);
            for n in 1..200 {
                term *= -a * a / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            sum * 2.0 / std::f64::consts::PI.sqrt()
        } else {
            let fraction = (1..120).rev().fold(a, |f, n| a + f64::from(n) / 2.0 / f);
            1.0 - (-a * a).exp() / (fraction * std::f64::consts::PI.sqrt())
        };
        value.copysign(x)
    }

    #[test]
    fn errors_are_small_everywhere() {
        for (name, error, bound) in [
            ("exp", worst(exp, f64::exp, -87.3, 88.7), 2e-7),
            ("exp near 0", worst(exp, f64::exp, -1.0, 1.0), 2e-7),
            ("tanh", worst(tanh, f64::tanh, -20.0, 20.0), 3e-7),
            ("tanh near 0", worst(tanh, f64::tanh, -1.0, 1.0), 3e-7),
            ("erf", worst(erf, erf_exact, -6.0, 6.0), 3e-7),
            ("erf near 0", worst(erf, erf_exact, -0.1, 0.1), 3e-7),
        ] {
            println!("{name}: {error:.2e}");
            assert!(error < bound, "{name}: {error:e}");
        }
    }

    #[test]
    fn ends_are_right() {
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1000.0), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(89.0), f32::INFINITY);
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NAN).is_nan() && tanh(f32::NAN).is_nan() && erf(f32::NAN).is_nan());
        assert_eq!((tanh(f32::INFINITY), tanh(-50.0)), (1.0, -1.0));
        assert_eq!((erf(f32::NEG_INFINITY), erf(9.0), erf(0.0)), (-1.0, 1.0, 0.0));
        assert_eq!(tanh(1e-30), 1e-30);
    }
}
