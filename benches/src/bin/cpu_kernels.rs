//! Speed of single products on the CPU, next to what the machine can do.
//!
//! Figures are those of the least disturbed twentieth of the calls.
//!
//! `cpu_kernels [--threads N] [--rows M] [FORMAT ...]`
//!
//! For each format and shape: *decode*, one row of activations against weights that are in no cache
//! (GB of weights read a second; under `cached` the same with
//! weights that were read just before), and *prefill*, 512 rows (GOP/s, a multiplication and an addition
//! counting as two). Form: activations rounded to eight bits; plain formats in f32.
//!
//! Floors:
//! - Decode cannot be faster than memory is read. The program measures that first (every thread adds
//!   up its part of 256 MiB) and prints each figure as a share of it.
//! - A core with AVX-512 VNNI that starts one 512-bit product a cycle (Zen 4) does 64 multiply-adds
//!   a cycle: 128 GOP/s a GHz, 469 at 3.66 GHz. In f32 it does 16: a quarter of that.

use std::time::Duration;

use trefoil_engine::bench::{read_bandwidth, seconds};
use trefoil_engine::synthetic::{BlockPool, Random, normal};
use trefoil_graph::BlockType;
use trefoil_kernels::cpu::{Form, Input, Matrix, Projection, Scratch, ThreadPool, linear_many};

const FORMATS: [BlockType; 12] = [
    BlockType::Q4_0,
    BlockType::Q8_0,
    BlockType::Q4_K,
    BlockType::Q6_K,
    BlockType::Q5_K,
    BlockType::Q4_1,
    BlockType::Q5_0,
    BlockType::Q2_K,
    BlockType::Q3_K,
    BlockType::IQ4_XS,
    BlockType::F16,
    BlockType::F32,
];

/// (weight rows, columns).
const SHAPES: [(usize, usize); 3] = [(1024, 1024), (3072, 1024), (1024, 3072)];

/// Bytes of weights that a decode run goes through: more than a last-level cache.
const COLD: usize = 96 << 20;

fn main() {
    let mut threads = 0;
    let mut rows = 512;
    let mut formats = Vec::new();
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut number = || args.next().and_then(|n| n.parse().ok());
        match arg.as_str() {
            "--threads" => threads = number().expect("--threads N"),
            "--rows" => rows = number().expect("--rows M"),
            name => formats.extend(FORMATS.into_iter().filter(|f| f.to_string() == name)),
        }
    }
    if formats.is_empty() {
        formats = FORMATS.to_vec();
    }
    let pool = match threads {
        0 => ThreadPool::for_this_machine(),
        n => ThreadPool::new(n),
    };
    let pool = pool.expect("threads start");
    let floor = read_bandwidth(&pool) / 1e9;
    println!("{pool:?}; memory is read at {floor:.1} GB/s");
    println!(
        "{:>8} {:>12}  {:>8} {:>6} {:>8}  {:>8}",
        "format", "shape", "GB/s", "share", "cached", "GOP/s"
    );
    for block in formats {
        for (n, k) in SHAPES {
            let near = decode(&pool, block, n, k, 1);
            let decode = decode(&pool, block, n, k, COLD);
            let prefill = prefill(&pool, block, n, k, rows);
            println!(
                "{:>8} {:>12}  {decode:8.1} {:6.2} {near:8.1}  {prefill:8.0}",
                block.to_string(),
                format!("{n}x{k}"),
                decode / floor,
            );
        }
    }
}

fn weights(block: BlockType, elements: usize) -> Vec<u8> {
    BlockPool::new(block, 0.05, 1 << 18, 1).draw(elements as u64, &mut Random::new(1))
}

fn decode(pool: &ThreadPool, block: BlockType, n: usize, k: usize, least: usize) -> f64 {
    let one = weights(block, n * k);
    let copies = least.div_ceil(one.len());
    let all = one.repeat(copies);
    let x = normal(k, 1.0, 2);
    let mut out = vec![0.0; n];
    let mut scratch = Scratch::new();
    let mut parts = all.chunks_exact(one.len()).cycle();
    let taken = seconds(Duration::from_millis(500), 2 * copies, || {
        let bytes = parts.next().expect("endless");
        let weight = Matrix::new(block, n, k, bytes).expect("a whole matrix");
        let input = Input { x: &x, cols: k, rows: None };
        let projection = Projection::new(0, weight, None, &mut out);
        linear_many(pool, &mut scratch, Form::Int8, &[input], &mut [projection]);
    });
    one.len() as f64 / taken.best / 1e9
}

fn prefill(pool: &ThreadPool, block: BlockType, n: usize, k: usize, rows: usize) -> f64 {
    let bytes = weights(block, n * k);
    let weight = Matrix::new(block, n, k, &bytes).expect("a whole matrix");
    let x = normal(rows * k, 1.0, 2);
    let mut out = vec![0.0; rows * n];
    let mut scratch = Scratch::new();
    let taken = seconds(Duration::from_millis(300), 3, || {
        let input = Input { x: &x, cols: k, rows: None };
        let projection = Projection::new(0, weight, None, &mut out);
        linear_many(pool, &mut scratch, Form::Int8, &[input], &mut [projection]);
    });
    2.0 * (n * k * rows) as f64 / taken.best / 1e9
}
