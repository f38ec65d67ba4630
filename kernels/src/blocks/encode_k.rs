//! Encoders of Q4_K and Q6_K: fit each sub-block alone, then share a half precision scale among the
//! sub-blocks' small whole scales and fit the codes again.
//!
//! All searches minimise the plain squared error (no importance of columns is known here), in f64 so
//! that no finite row overflows.

use half::f16;

use super::encode::{code, finite, half_scale, peak};

/// Whole scales that the largest sub-block's scale is tried at. The largest possible gives the
/// finest steps; powers of two make rows of whole numbers exact; the rest shift where the other
/// sub-blocks' scales round to.
const TOP_SCALES_Q4: [f64; 7] = [63.0, 62.0, 61.0, 60.0, 58.0, 56.0, 32.0];
const TOP_SCALES_Q6: [f64; 6] = [-128.0, -127.0, -124.0, -120.0, 127.0, 64.0];

/// `value ≈ scale * code - min` over one sub-block.
#[derive(Clone, Copy, Default)]
struct Affine {
    scale: f64,
    min: f64,
}

impl Affine {
    fn error(self, values: &[f64]) -> f64 {
        values.iter().map(|&v| self.residual(v).powi(2)).sum()
    }

    fn residual(self, v: f64) -> f64 {
        v + self.min - self.scale * f64::from(self.code(v))
    }

    fn code(self, v: f64) -> i32 {
        code(v + self.min, self.scale, 0, 15)
    }

    /// Least squares for scale and min with the codes as they are; `min` stays at 0 or above.
    fn refit(self, values: &[f64]) -> Option<Self> {
        let (mut q1, mut q2, mut x1, mut xq) = (0.0, 0.0, 0.0, 0.0);
        for &v in values {
            let q = f64::from(self.code(v));
            q1 += q;
            q2 += q * q;
            x1 += v;
            xq += v * q;
        }
        let n = values.len() as f64;
        let determinant = n * q2 - q1 * q1;
        if q2 == 0.0 {
            return None;
        }
        let free = (determinant > 0.0).then(|| Self {
            scale: (n * xq - q1 * x1) / determinant,
            min: (q1 * xq - q2 * x1) / determinant,
        });
        let fit = match free {
            Some(fit) if fit.min >= 0.0 => fit,
            _ => Self { scale: xq / q2, min: 0.0 },
        };
        (fit.scale > 0.0).then_some(fit)
    }
}

/// The best fit of codes 0..=15 found from several first guesses of the range.
fn fit_affine(values: &[f64]) -> Affine {
    let low = values.iter().copied().fold(0.0, f64::min);
    let high = values.iter().copied().fold(low, f64::max);
    let (mut best, mut least) = (Affine::default(), f64::INFINITY);
    // Spreading the range over fewer or more than 15 steps trades the extremes for the middle.
    for steps in [15.0, 14.0, 14.5, 15.5, 16.0, 16.5, 17.0, 18.0] {
        let mut fit = Affine { scale: (high - low) / steps, min: -low };
        for _ in 0..4 {
            let error = fit.error(values);
            if error < least {
                (best, least) = (fit, error);
            }
            match fit.refit(values) {
                Some(next) => fit = next,
                None => break,
            }
        }
    }
    best
}

/// One whole block's choice of shared and whole scales.
struct Chosen<const N: usize> {
    d: f16,
    dmin: f16,
    scales: [i32; N],
    mins: [i32; N],
    error: f64,
}

impl Chosen<8> {
    fn affine(&self, part: usize) -> Affine {
        Affine {
            scale: self.d.to_f64() * f64::from(self.scales[part]),
            min: self.dmin.to_f64() * f64::from(self.mins[part]),
        }
    }

    /// Rounds the fits to whole scales with the largest at `top` and looks one step around each.
    fn at(top: f64, fits: &[Affine; 8], values: &[f64; 256]) -> Self {
        let largest = |get: fn(&Affine) -> f64| fits.iter().map(get).fold(0.0, f64::max);
        let mut chosen = Self {
            d: half_scale(largest(|fit| fit.scale) / top),
            dmin: half_scale(largest(|fit| fit.min) / top),
            scales: [0; 8],
            mins: [0; 8],
            error: 0.0,
        };
        for (part, values) in values.chunks_exact(32).enumerate() {
            let scale = code(fits[part].scale, chosen.d.to_f64(), 0, 63);
            let min = code(fits[part].min, chosen.dmin.to_f64(), 0, 63);
            let mut best = (f64::INFINITY, scale, min);
            for near in 0..9 {
                let scale = (scale + near % 3 - 1).clamp(0, 63);
                let min = (min + near / 3 - 1).clamp(0, 63);
                (chosen.scales[part], chosen.mins[part]) = (scale, min);
                let error = chosen.affine(part).error(values);
                if error < best.0 {
                    best = (error, scale, min);
                }
            }
            (chosen.scales[part], chosen.mins[part]) = (best.1, best.2);
            chosen.error += best.0;
        }
        chosen
    }
}

/// See [`super::k_quants::q4_k`] for the layout.
pub(super) fn q4_k(values: &[f32], out: &mut [u8]) {
    let values: [f64; 256] = std::array::from_fn(|i| f64::from(finite(values[i])));
    let fits: [Affine; 8] =
        std::array::from_fn(|part| fit_affine(&values[32 * part..32 * part + 32]));
    let chosen = least_error(TOP_SCALES_Q4.map(|top| Chosen::<8>::at(top, &fits, &values)));
    out[0..2].copy_from_slice(&chosen.d.to_le_bytes());
    out[2..4].copy_from_slice(&chosen.dmin.to_le_bytes());
    let (scales, mins) = (chosen.scales.map(|s| s as u8), chosen.mins.map(|m| m as u8));
    for j in 0..4 {
        out[4 + j] = scales[j] | scales[j + 4] >> 4 << 6;
        out[8 + j] = mins[j] | mins[j + 4] >> 4 << 6;
        out[12 + j] = (scales[j + 4] & 15) | (mins[j + 4] & 15) << 4;
    }
    for (i, byte) in out[16..144].iter_mut().enumerate() {
        let first = i / 32 * 64 + i % 32;
        let nibble = |at: usize| chosen.affine(at / 32).code(values[at]) as u8;
        *byte = nibble(first) | nibble(first + 32) << 4;
    }
}

fn least_error<const N: usize, const M: usize>(all: [Chosen<N>; M]) -> Chosen<N> {
    all.into_iter()
        .min_by(|a, b| a.error.total_cmp(&b.error))
        .expect("there is at least one candidate")
}

/// Error of `values` against `scale * code`, code in -32..=31.
fn symmetric_error(values: &[f64], scale: f64) -> f64 {
    values.iter().map(|&v| (v - scale * f64::from(code(v, scale, -32, 31))).powi(2)).sum()
}

/// The best scale of one sub-block for codes -32..=31.
fn fit_symmetric(values: &[f64]) -> f64 {
    let top = peak(values);
    let (mut best, mut least) = (0.0, f64::INFINITY);
    for level in [-32.0, 32.0, -31.0, 31.0, -30.0, 30.0, -31.5, -32.5, -29.0, 29.0] {
        let mut scale = top / level;
        for _ in 0..2 {
            let error = symmetric_error(values, scale);
            if error < least {
                (best, least) = (scale, error);
            }
            let (mut xq, mut qq) = (0.0, 0.0);
            for &v in values {
                let q = f64::from(code(v, scale, -32, 31));
                xq += v * q;
                qq += q * q;
            }
            if qq == 0.0 {
                break;
            }
            scale = xq / qq;
        }
    }
    best
}

/// Rounds the fits to whole scales with the largest at `top` and looks one step around each.
fn symmetric_at(top: f64, fits: &[f64; 16], values: &[f64; 256]) -> Chosen<16> {
    let mut chosen = Chosen {
        d: half_scale(peak(fits) / top),
        dmin: f16::ZERO,
        scales: [0; 16],
        mins: [0; 16],
        error: 0.0,
    };
    let d = chosen.d.to_f64();
    for (part, values) in values.chunks_exact(16).enumerate() {
        let middle = code(fits[part], d, -128, 127);
        let mut best = (f64::INFINITY, middle);
        for scale in [middle, middle - 1, middle + 1] {
            let scale = scale.clamp(-128, 127);
            let error = symmetric_error(values, d * f64::from(scale));
            if error < best.0 {
                best = (error, scale);
            }
        }
        chosen.scales[part] = best.1;
        chosen.error += best.0;
    }
    chosen
}

/// See [`super::k_quants::q6_k`] for the layout.
pub(super) fn q6_k(values: &[f32], out: &mut [u8]) {
    let values: [f64; 256] = std::array::from_fn(|i| f64::from(finite(values[i])));
    let fits: [f64; 16] =
        std::array::from_fn(|part| fit_symmetric(&values[16 * part..16 * part + 16]));
    let chosen = least_error(TOP_SCALES_Q6.map(|top| symmetric_at(top, &fits, &values)));
    let d = chosen.d.to_f64();
    let codes: [u8; 256] = std::array::from_fn(|i| {
        (code(values[i], d * f64::from(chosen.scales[i / 16]), -32, 31) + 32) as u8
    });
    for (i, byte) in out[..128].iter_mut().enumerate() {
        let first = i / 64 * 128 + i % 64;
        *byte = (codes[first] & 15) | (codes[first + 64] & 15) << 4;
    }
    for (i, byte) in out[128..192].iter_mut().enumerate() {
        let first = i / 32 * 128 + i % 32;
        *byte = (0..4).fold(0, |byte, n| byte | codes[first + 32 * n] >> 4 << (2 * n));
    }
    for (byte, scale) in out[192..208].iter_mut().zip(chosen.scales) {
        *byte = scale as i8 as u8;
    }
    out[208..210].copy_from_slice(&chosen.d.to_le_bytes());
}
