//! The exponential function, fast over whole vocabularies and the same on every machine.

/// Below this the result counts as 0; `exp` of it is the smallest normal number.
const LOWEST: f32 = -87.33;

/// `e^x` for `x <= 0`, within 2e-7 of the exact value (relative); 0 below [`LOWEST`] and for
/// not-a-number.
///
/// With n the nearest whole number to x / ln 2, it is 2^n · e^r, |r| <= ln 2 / 2; ln 2 is taken
/// in two parts so that r is exact, and e^r is its Taylor series up to r^7. Only multiplications,
/// additions and bit operations: compilers turn a loop of it into vector instructions, and no
/// machine's own function gives other bits.
#[inline(always)]
pub(super) fn exp_nonpositive(x: f32) -> f32 {
    /// Nearest whole number by adding and taking away 1.5 · 2^23.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = if x > LOWEST { x } else { LOWEST };
    let rounded = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = clamped - n * LN2_HIGH - n * LN2_LOW;
    let mut sum = 1.0 / 5040.0;
    sum = sum * r + 1.0 / 720.0;
    sum = sum * r + 1.0 / 120.0;
    sum = sum * r + 1.0 / 24.0;
    sum = sum * r + 1.0 / 6.0;
    sum = sum * r + 0.5;
    sum = sum * r + 1.0;
    sum = sum * r + 1.0;
    // n, in -126..=0, is also what the last bits of `rounded` hold: 2^n is n + 127 as exponent
    let exponent = rounded.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127);
    let power = sum * f32::from_bits(exponent << 23);
    // a mask instead of a branch, which would keep the loop from becoming vector instructions
    let keep = u32::from(x >= LOWEST).wrapping_neg();
    f32::from_bits(power.to_bits() & keep)
}

/// Σ e^((logits[i] − max) / divisor) in f64, in eight interleaved partial sums so that the
/// additions do not wait for each other; their order is fixed.
pub(super) fn sum_exp(logits: &[f32], max: f32, divisor: f32) -> f64 {
    const LANES: usize = 8;
    let mut partial = [0.0_f64; LANES];
    // written out as loops over arrays, which become vector instructions
    let mut powers = [0.0_f32; LANES];
    let (chunks, rest) = logits.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            powers[lane] = exp_nonpositive((chunk[lane] - max) / divisor);
        }
        for lane in 0..LANES {
            partial[lane] += f64::from(powers[lane]);
        }
    }
    for (sum, &logit) in partial.iter_mut().zip(rest) {
        *sum += f64::from(exp_nonpositive((logit - max) / divisor));
    }
    partial.iter().sum()
}

/// The largest logit; −∞ for none. Not-a-number is passed over.
pub(super) fn max(logits: &[f32]) -> f32 {
    let mut partial = [f32::NEG_INFINITY; 16];
    let (chunks, rest) = logits.as_chunks::<16>();
    for chunk in chunks {
        for (max, &logit) in partial.iter_mut().zip(chunk) {
            *max = if logit > *max { logit } else { *max };
        }
    }
    partial.iter().chain(rest).fold(f32::NEG_INFINITY, |max, &logit| max.max(logit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponential_is_accurate() {
        let mut worst = 0.0_f64;
        for step in 0..870_000 {
            let x = -(step as f32) * 1e-4;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp_nonpositive(x)) / exact - 1.0).abs());
        }
        assert!(worst < 2e-7, "{worst}");
        assert_eq!(exp_nonpositive(0.0), 1.0);
        assert_eq!(exp_nonpositive(-88.0), 0.0);
        assert_eq!(exp_nonpositive(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp_nonpositive(f32::NAN), 0.0);
    }

    #[test]
    fn sums_and_maxima_take_in_everything() {
        let logits: Vec<f32> = (0..37).map(|i| (i as f32 * 0.7).sin()).collect();
        let exact: f64 = logits.iter().map(|&l| f64::from(l - 1.0).exp()).sum();
        assert!((sum_exp(&logits, 1.0, 1.0) / exact - 1.0).abs() < 1e-6);
        let exact: f64 = logits.iter().map(|&l| (f64::from(l - 1.0) / 0.25).exp()).sum();
        assert!((sum_exp(&logits, 1.0, 0.25) / exact - 1.0).abs() < 1e-6);
        for length in 0..37 {
            let expected = logits[..length].iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(max(&logits[..length]), expected);
        }
        assert_eq!(max(&[f32::NAN, 1.0, f32::NAN]), 1.0);
    }
}
