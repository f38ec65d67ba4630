//! Products of every format against double precision, and their independence of everything but the
//! row.

use trefoil_graph::BLOCK_TABLE;

use super::*;
use crate::blocks::decode_row;
use crate::testing::{nmse_wide, normal, random_rows};

const LEVELS: [Level; 3] = [Level::Portable, Level::Avx2, Level::Avx512];

fn pool(threads: usize, level: Level) -> ThreadPool {
    ThreadPool::with_level(threads, level).expect("threads start")
}

fn run(pool: &ThreadPool, form: Form, x: &[f32], weight: Matrix<'_>) -> Vec<f32> {
    let mut out = vec![f32::NAN; x.len() / weight.cols * weight.rows];
    linear(pool, &mut Scratch::new(), form, x, weight, None, &mut out);
    out
}

/// Formats that weights of a linear can have.
fn formats() -> impl Iterator<Item = BlockType> {
    BLOCK_TABLE.iter().map(|row| row.block)
}

/// Columns that are not a multiple of anything beyond a block.
fn columns(block: BlockType) -> usize {
    match block.info().elements {
        1 => 331,
        256 => 768,
        _ => 640,
    }
}

fn exact(x: &[f64], weight: Matrix<'_>) -> Vec<f64> {
    let mut rows = vec![0.0; weight.rows * weight.cols];
    decode_row(weight.block, weight.bytes, &mut rows);
    x.chunks_exact(weight.cols)
        .flat_map(|x| {
            let dot = |w: &[f32]| x.iter().zip(w).map(|(x, w)| x * f64::from(*w)).sum::<f64>();
            rows.chunks_exact(weight.cols).map(dot).collect::<Vec<_>>()
        })
        .collect()
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|v| f64::from(*v)).collect()
}

/// Activations as the integer form sees them, worked out in double precision.
fn rounded(x: &[f32], span: usize) -> Vec<f64> {
    x.chunks_exact(span)
        .flat_map(|x| {
            let largest = x.iter().fold(0f32, |most, v| most.max(v.abs()));
            let scale = f64::from(largest / 127.0);
            let code = move |v: &f32| f64::from((v * (127.0 / largest)).round_ties_even());
            x.iter().map(move |v| scale * code(v)).collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn every_format_is_right_in_both_forms() {
    for block in formats() {
        let (rows, cols) = (37, columns(block));
        let bytes = random_rows(block, rows * cols, 3);
        let weight = Matrix::new(block, rows, cols, &bytes).expect("a whole matrix");
        let x = normal(5 * cols, 5);
        let want = exact(&wide(&x), weight);
        for level in LEVELS {
            let pool = pool(2, level);
            let error = nmse_wide(&want, &run(&pool, Form::Exact, &x, weight));
            assert!(error < 1e-12, "{block} {level:?} in f32: {error:e}");
            let got = run(&pool, Form::Int8, &x, weight);
            let error = nmse_wide(&want, &got);
            let model = match integer_form(block) {
                None => want.clone(),
                Some(IntegerForm { scaling: Scaling::Single, .. }) => {
                    exact(&rounded(&x, SHORT), weight)
                }
                Some(_) => exact(&rounded(&x, LONG), weight),
            };
            let from_model = nmse_wide(&model, &got);
            assert!(error < 5e-4, "{block} {level:?} with 8 bits: {error:e}");
            assert!(from_model < 1e-12, "{block} {level:?} is off its model: {from_model:e}");
        }
    }
}

#[test]
fn a_row_is_the_same_in_any_batch_on_any_threads_at_any_level() {
    let pools: Vec<ThreadPool> = [1, 2, 3].map(|threads| pool(threads, Level::Avx512)).into();
    for block in formats() {
        let (rows, cols) = (50, columns(block).min(640 + 128));
        let bytes = random_rows(block, rows * cols, 7);
        let weight = Matrix::new(block, rows, cols, &bytes).expect("a whole matrix");
        let x = normal(70 * cols, 11);
        for form in [Form::Exact, Form::Int8] {
            let alone: Vec<f32> =
                x.chunks_exact(cols).flat_map(|x| run(&pools[0], form, x, weight)).collect();
            let few = [2, 3, 4, 5, 8, 12, 13, 16, 17, 25, 31, 64, 69, 70];
            for (n, count) in few.into_iter().enumerate() {
                let first = 70 - count;
                let got = run(&pools[n % 3], form, &x[first * cols..], weight);
                assert_eq!(got, alone[first * rows..], "{block} {form:?}, {count} rows");
            }
            for level in LEVELS {
                let got = run(&pool(2, level), form, &x[..7 * cols], weight);
                assert_eq!(got, alone[..7 * rows], "{block} {form:?} {level:?}");
            }
        }
    }
}

#[test]
fn every_batch_size_agrees() {
    let pools = [pool(2, Level::Avx512), pool(3, Level::Avx2)];
    for block in [BlockType::F32, BlockType::Q4_0, BlockType::Q6_K] {
        let (rows, cols) = (17, 256);
        let bytes = random_rows(block, rows * cols, 7);
        let weight = Matrix::new(block, rows, cols, &bytes).expect("a whole matrix");
        let x = normal(70 * cols, 11);
        let all = run(&pools[0], Form::Int8, &x, weight);
        for count in 1..=70 {
            let got = run(&pools[count % 2], Form::Int8, &x[..count * cols], weight);
            assert_eq!(got, all[..count * rows], "{block}, {count} rows");
        }
    }
}

#[test]
fn projections_share_inputs_and_experts_take_their_rows() {
    let pool = pool(2, Level::Avx512);
    let cols = 256;
    let (a, b) =
        (random_rows(BlockType::Q4_0, 40 * cols, 1), random_rows(BlockType::Q4_K, 24 * cols, 2));
    let first = Matrix::new(BlockType::Q4_0, 40, cols, &a).expect("a whole matrix");
    let second = Matrix::new(BlockType::Q4_K, 24, cols, &b).expect("a whole matrix");
    let x = normal(9 * cols, 3);
    let bias: Vec<f32> = (0..24).map(|i| i as f32).collect();
    let listed = [8, 0, 3, 3];
    let inputs = [
        Input { x: &x, cols, rows: None },
        Input { x: &x, cols, rows: Some(&listed) },
        Input { x: &x, cols, rows: Some(&[]) },
    ];
    for form in [Form::Exact, Form::Int8] {
        let (mut one, mut two, mut three) =
            (vec![0.0; 9 * 40], vec![0.0; 9 * 24], vec![0.0; 4 * 24]);
        let mut projections = [
            Projection::new(0, first, None, &mut one),
            Projection::new(0, second, Some(&bias), &mut two),
            Projection::new(1, second, None, &mut three),
            Projection::new(2, second, None, &mut []),
        ];
        linear_many(&pool, &mut Scratch::new(), form, &inputs, &mut projections);
        assert_eq!(one, run(&pool, form, &x, first));
        let plain = run(&pool, form, &x, second);
        let biased: Vec<f32> = plain.iter().enumerate().map(|(i, v)| v + bias[i % 24]).collect();
        assert_eq!(two, biased);
        for (i, row) in listed.into_iter().enumerate() {
            let row = row as usize;
            assert_eq!(three[i * 24..(i + 1) * 24], plain[row * 24..(row + 1) * 24]);
        }
    }
}

#[test]
fn rows_that_are_zero_tiny_or_not_finite_stay_alone() {
    let pool = pool(2, Level::Avx512);
    let bytes = random_rows(BlockType::Q4_K, 20 * 256, 1);
    let weight = Matrix::new(BlockType::Q4_K, 20, 256, &bytes).expect("a whole matrix");
    let mut x = normal(6 * 256, 3);
    let good = run(&pool, Form::Int8, &x, weight);
    x[..256].fill(0.0);
    x[256..512].fill(1e-38);
    x[2 * 256 + 7] = f32::NAN;
    x[3 * 256 + 9] = f32::NEG_INFINITY;
    let got = run(&pool, Form::Int8, &x, weight);
    assert!(got[..40].iter().all(|v| *v == 0.0));
    assert!(got[40..80].iter().all(|v| v.is_nan()));
    assert_eq!(got[80..], good[80..]);
}
