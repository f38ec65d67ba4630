//! Row and element kernels against double precision, at every level.

use super::*;
use crate::testing::{nmse_wide, normal, random_rows};
use trefoil_graph::BlockType;

fn pools() -> [ThreadPool; 3] {
    [(3, Level::Portable), (2, Level::Avx2), (2, Level::Avx512)]
        .map(|(threads, level)| ThreadPool::with_level(threads, level).expect("threads start"))
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|v| f64::from(*v)).collect()
}

/// Runs a kernel on every pool: results must be near `want` and the same everywhere.
fn check(name: &str, want: &[f64], run: impl Fn(&ThreadPool) -> Vec<f32>) {
    let results = pools().map(|pool| run(&pool));
    let error = nmse_wide(want, &results[0]);
    assert!(error < 1e-12, "{name}: {error:e}");
    assert_eq!(results[0], results[1], "{name}");
    assert_eq!(results[0], results[2], "{name}");
}

fn in_place(x: &[f32], run: impl Fn(&mut [f32])) -> Vec<f32> {
    let mut x = x.to_vec();
    run(&mut x);
    x
}

fn by_row(x: &[f32], cols: usize, f: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
    wide(x).chunks_exact(cols).flat_map(f).collect()
}

#[test]
fn norms_and_softmax() {
    let cols = 203;
    let (x, w, b) = (normal(37 * cols, 1), normal(cols, 2), normal(cols, 3));
    let eps = 1e-5;
    let rms = |row: &[f64]| {
        let mean = row.iter().map(|v| v * v).sum::<f64>() / cols as f64;
        row.iter().map(|v| v / (mean + f64::from(eps)).sqrt()).collect::<Vec<_>>()
    };
    let weighted = |row: &[f64]| rms(row).iter().zip(&w).map(|(v, w)| v * f64::from(*w)).collect();
    check("rms_norm", &by_row(&x, cols, weighted), |pool| {
        let mut out = vec![0.0; x.len()];
        rms_norm(pool, &x, cols, Some(&w), eps, &mut out);
        out
    });
    check("rms_norm_in_place", &by_row(&x, cols, rms), |pool| {
        in_place(&x, |x| rms_norm_in_place(pool, x, cols, None, eps))
    });
    let layer = |row: &[f64]| {
        let mean = row.iter().sum::<f64>() / cols as f64;
        let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / cols as f64;
        let factor = 1.0 / (variance + f64::from(eps)).sqrt();
        let parts = row.iter().zip(&w).zip(&b);
        parts.map(|((v, w), b)| (v - mean) * factor * f64::from(*w) + f64::from(*b)).collect()
    };
    check("layer_norm", &by_row(&x, cols, layer), |pool| {
        let mut out = vec![0.0; x.len()];
        layer_norm(pool, &x, cols, &w, Some(&b), eps, &mut out);
        out
    });
    let unit = |row: &[f64]| {
        let length = row.iter().map(|v| v * v).sum::<f64>().sqrt();
        row.iter().map(|v| v / length).collect()
    };
    check("l2_normalise", &by_row(&x, cols, unit), |pool| {
        in_place(&x, |x| l2_normalise(pool, x, cols, 1e-12))
    });
    let weights = |row: &[f64]| {
        let sum: f64 = row.iter().map(|v| v.exp()).sum();
        row.iter().map(|v| v.exp() / sum).collect()
    };
    check("softmax", &by_row(&x, cols, weights), |pool| in_place(&x, |x| softmax(pool, x, cols)));
}

/// The error function by its series, good to 1e-12 for |x| < 4.
fn erf(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

#[test]
fn activations_alone_and_as_gates() {
    let gate: Vec<f32> = normal(40_000, 5).iter().map(|v| v * 1.3).collect();
    let up = normal(40_000, 6);
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let root = (2.0 / std::f64::consts::PI).sqrt();
    let kinds: [(Activation, &dyn Fn(f64) -> f64); 9] = [
        (Activation::Silu, &|x| x * sigmoid(x)),
        (Activation::GeluTanh, &|x| 0.5 * x * (1.0 + (root * (x + 0.044715 * x.powi(3))).tanh())),
        (Activation::GeluErf, &|x| 0.5 * x * (1.0 + erf(x / 2f64.sqrt()))),
        (Activation::GeluQuick, &|x| x * sigmoid(1.702 * x)),
        (Activation::Relu, &|x| x.max(0.0)),
        (Activation::ReluSquared, &|x| x.max(0.0).powi(2)),
        (Activation::Sigmoid, &sigmoid),
        (Activation::Tanh, &f64::tanh),
        (Activation::Identity, &|x| x),
    ];
    for (kind, f) in kinds {
        let want: Vec<f64> = wide(&gate).iter().map(|v| f(*v)).collect();
        check(&format!("{kind:?}"), &want, |pool| in_place(&gate, |x| activate(pool, kind, x)));
        let want: Vec<f64> = want.iter().zip(&up).map(|(g, u)| g * f64::from(*u)).collect();
        check(&format!("gated {kind:?}"), &want, |pool| {
            in_place(&up, |up| gated(pool, kind, &gate, up))
        });
    }
    let kind = Activation::ClampedSwiglu { alpha: 1.702, limit: 1.5 };
    let clamped = |g: f64, u: f64| {
        let g = g.min(1.5);
        g * sigmoid(f64::from(1.702f32) * g) * (u.clamp(-1.5, 1.5) + 1.0)
    };
    let want: Vec<f64> = wide(&gate).iter().zip(wide(&up)).map(|(g, u)| clamped(*g, u)).collect();
    check("ClampedSwiglu", &want, |pool| in_place(&up, |up| gated(pool, kind, &gate, up)));
}

#[test]
fn sums_products_and_caps() {
    let (x, y) = (normal(30_000, 1), normal(30_000, 2));
    let both = |f: &dyn Fn(f64, f64) -> f64| -> Vec<f64> {
        wide(&x).iter().zip(wide(&y)).map(|(x, y)| f(*x, y)).collect()
    };
    check("add", &both(&|x, y| x + y), |pool| in_place(&x, |x| add(pool, x, &y)));
    check("add_scaled", &both(&|x, y| x + 0.25 * y), |pool| {
        in_place(&x, |x| add_scaled(pool, x, &y, 0.25))
    });
    check("multiply", &both(&|x, y| x * y), |pool| in_place(&x, |x| multiply(pool, x, &y)));
    check("scale", &both(&|x, _| -3.0 * x), |pool| in_place(&x, |x| scale(pool, x, -3.0)));
    let cap = f64::from(0.7f32);
    check("softcap", &both(&|x, _| cap * (x / cap).tanh()), |pool| {
        in_place(&x, |x| softcap(pool, x, 0.7))
    });
    let row = &y[..300];
    let rows = |f: &dyn Fn(f64, f64) -> f64| -> Vec<f64> {
        wide(&x).iter().enumerate().map(|(i, v)| f(*v, f64::from(row[i % 300]))).collect()
    };
    check("add_bias", &rows(&|x, b| x + b), |pool| in_place(&x, |x| add_bias(pool, x, row)));
    check("multiply_rows", &rows(&|x, b| x * b), |pool| {
        in_place(&x, |x| multiply_rows(pool, x, row))
    });
}

#[test]
fn rotations() {
    let (rows, heads, dim, width) = (9, 3, 20, 8);
    let x = normal(rows * heads * dim, 1);
    let angles: Vec<f64> = (0..rows * width).map(|i| i as f64 * 0.37).collect();
    let cos: Vec<f32> = angles.iter().map(|a| a.cos() as f32).collect();
    let sin: Vec<f32> = angles.iter().map(|a| a.sin() as f32).collect();
    for pairs in [RopePairs::Interleaved, RopePairs::Halves] {
        let mut want = wide(&x);
        for row in 0..rows {
            for head in 0..heads {
                for i in 0..width {
                    let base = (row * heads + head) * dim;
                    let (a, b) = match pairs {
                        RopePairs::Interleaved => (base + 2 * i, base + 2 * i + 1),
                        RopePairs::Halves => (base + i, base + i + width),
                    };
                    let (c, s) = (f64::from(cos[row * width + i]), f64::from(sin[row * width + i]));
                    let (va, vb) = (want[a], want[b]);
                    (want[a], want[b]) = (va * c - vb * s, va * s + vb * c);
                }
            }
        }
        check(&format!("{pairs:?}"), &want, |pool| {
            in_place(&x, |x| rope(pool, x, heads, dim, width, pairs, &cos, &sin))
        });
    }
}

#[test]
fn rows_come_from_tables_and_experts_add_to_theirs() {
    let bytes = random_rows(BlockType::Q5_K, 10 * 512, 1);
    let table = Matrix::new(BlockType::Q5_K, 10, 512, &bytes).expect("a whole matrix");
    let mut all = vec![0.0; 10 * 512];
    crate::blocks::decode_row(BlockType::Q5_K, &bytes, &mut all);
    for pool in pools() {
        let mut out = vec![0.0; 3 * 512];
        gather_rows(&pool, table, &[7, 0, 7], &mut out);
        assert_eq!(out, [&all[7 * 512..8 * 512], &all[..512], &all[7 * 512..8 * 512]].concat());
        let mut sums = vec![1.0; 4 * 2];
        scatter_add(
            &pool,
            &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
            2,
            &[3, 0, 3],
            &[1.0, 10.0, 0.5],
            &mut sums,
        );
        assert_eq!(sums, [31.0, 41.0, 1.0, 1.0, 1.0, 1.0, 4.5, 6.0]);
    }
}
