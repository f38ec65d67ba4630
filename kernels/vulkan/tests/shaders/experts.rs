//! Mixtures of experts, a few rows and many rows at a time, against the reference.

use trefoil_graph::ops::{Experts, Nonlinearity};
use trefoil_graph::{BlockType, Weight};
use trefoil_kernels::cases::{Random, weight, weight_formats};
use trefoil_kernels::host::HostKernels;
use trefoil_kernels::reference::Reference;
use trefoil_kernels_vulkan::tables;

use crate::gpu::{Gpu, Push, open};

struct Case {
    op: Experts,
    x: Vec<f32>,
    route: Vec<f32>,
    rows: usize,
    width: usize,
    ffn: usize,
}

impl Case {
    fn new(block: BlockType, experts: usize, top_k: usize, rows: usize) -> Self {
        let mut random = Random::new(6);
        // More than one chunk for a lane, and outputs that do not fill a tile for small blocks.
        let unit = block.info().elements.next_multiple_of(32);
        let (width, ffn) = (2 * unit, unit);
        let mut make = |rows, cols| -> Vec<Weight> {
            (0..experts).map(|_| weight(&mut random, "w", block, rows, cols)).collect()
        };
        let (gate, up, down) = (make(ffn, width), make(ffn, width), make(width, ffn));
        let function = Nonlinearity::Silu;
        let op = Experts { gate, up, down, function, top_k };
        let x = random.values(rows * width);
        // Experts in some order, without repeats; one of them is never chosen.
        let route = (0..rows)
            .flat_map(|r| {
                let chosen = (0..top_k).map(move |c| ((r * 5 + c * 3) % (experts - 1)) as f32);
                chosen.chain((0..top_k).map(move |c| (1.0 + c as f32) / (3 + r % 3) as f32))
            })
            .collect();
        Self { op, x, route, rows, width, ffn }
    }

    fn want(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.width];
        Reference::default().experts(&self.op, &self.x, &self.route, &mut out);
        out
    }
}

/// Addresses of a case's tensors in the device's memory.
struct Placed {
    x: u64,
    route: u64,
    tables: u64,
    gate: u64,
    up: u64,
    down: u64,
    hidden: u64,
    parts: u64,
    out: u64,
}

impl Placed {
    fn new(gpu: &mut Gpu, case: &Case) -> Self {
        let mut put = |weights: &[Weight]| {
            let addresses: Vec<u64> = weights
                .iter()
                .map(|w| gpu.put(&(0..w.rows).flat_map(|r| w.row(r).to_vec()).collect::<Vec<u8>>()))
                .collect();
            gpu.put(&addresses)
        };
        let (gate, up, down) = (put(&case.op.gate), put(&case.op.up), put(&case.op.down));
        let pairs = case.rows * case.op.top_k;
        Self {
            x: gpu.put(&case.x),
            route: gpu.put(&case.route),
            tables: gpu.put(&tables()),
            gate,
            up,
            down,
            hidden: gpu.space(pairs * case.ffn * 4),
            parts: gpu.space(pairs * case.width * 4),
            out: gpu.space(case.rows * case.width * 4),
        }
    }

    /// The weighted sum over each row's pairs in `parts`.
    fn sum(&self, gpu: &mut Gpu, case: &Case) -> Vec<f32> {
        let push = Push::new(&[self.parts, self.route, self.out, 0]);
        let push = push.word(case.width).word(case.op.top_k).word(0);
        let groups = [case.width.div_ceil(256) as u32, case.rows as u32, 1];
        gpu.run("experts_sum", &[], &push.0, groups);
        gpu.read(self.out, case.rows * case.width)
    }
}

fn by_rows(gpu: &mut Gpu, case: &Case) -> Vec<f32> {
    let at = Placed::new(gpu, case);
    let (name, top_k) = (format!("experts_vec.{}", case.op.gate[0].block.name()), case.op.top_k);
    // Some take rows of the matrix twice.
    let groups = |outputs: usize| [outputs.div_ceil(4) as u32, (case.rows * top_k) as u32, 1];
    let push = Push::new(&[at.gate, at.x, at.hidden, at.tables, at.up, at.route]);
    let push = push.word(case.width).word(case.ffn).word(top_k);
    gpu.run(&name, &[32, 1, 1, 0, 0], &push.0, groups(case.ffn));
    let push = Push::new(&[at.down, at.hidden, at.parts, at.tables, 0, at.route]);
    let push = push.word(case.ffn).word(case.width).word(top_k);
    gpu.run(&name, &[32, 3, 0, 0, 1], &push.0, groups(case.width));
    at.sum(gpu, case)
}

fn by_experts(gpu: &mut Gpu, case: &Case) -> Vec<f32> {
    let at = Placed::new(gpu, case);
    let (block, top_k, experts) = (case.op.gate[0].block, case.op.top_k, case.op.gate.len());
    let pairs = case.rows * top_k;
    let (first, order) = (gpu.space((experts + 1) * 4), gpu.space(pairs * 4));
    let push = Push::new(&[at.route, first, order]).word(case.rows).word(top_k);
    gpu.run("experts_group", &[], &push.0, [experts as u32, 1, 1]);
    let listed: Vec<u32> = gpu.read(order, pairs);
    let expert =
        |pair: u32| case.route[pair as usize / top_k * 2 * top_k + pair as usize % top_k] as usize;
    let mut want: Vec<u32> = (0..pairs as u32).collect();
    want.sort_by_key(|&pair| expert(pair));
    assert_eq!(listed, want, "pairs by expert");
    let firsts: Vec<u32> = gpu.read(first, experts + 1);
    let below = |e: usize| want.iter().filter(|&&pair| expert(pair) < e).count() as u32;
    assert_eq!(firsts, (0..=experts).map(below).collect::<Vec<_>>(), "first pairs");

    let (width, ffn) = (case.width, case.ffn);
    let up = gpu.space(pairs * ffn * 4);
    let product = |gpu: &mut Gpu, weights, [x, out]: [u64; 2], own_rows| {
        let [cols, outputs] = if own_rows == 1 { [ffn, width] } else { [width, ffn] };
        let push = Push::new(&[weights, x, out, at.tables, first, order]);
        let push = push.word(cols).word(outputs).word(top_k);
        let tiles = |n: usize| n.div_ceil(64) as u32;
        let groups = [tiles(outputs), tiles(case.rows), experts as u32];
        gpu.run(&format!("experts_mat.{}", block.name()), &[own_rows], &push.0, groups);
    };
    product(gpu, at.gate, [at.x, at.hidden], 0);
    product(gpu, at.up, [at.x, up], 0);
    let push = Push::new(&[at.hidden, up, at.hidden]).word(pairs * ffn).number(0.0);
    gpu.run("elementwise", &[0, 0], &push.0, [(pairs * ffn).div_ceil(1024) as u32, 1, 1]);
    product(gpu, at.down, [at.hidden, at.parts], 1);
    at.sum(gpu, case)
}

/// Square error relative to the squares of what is wanted.
fn nmse(got: &[f32], want: &[f32]) -> f64 {
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let error = square(&mut got.iter().zip(want).map(|(g, w)| f64::from(*g) - f64::from(*w)));
    error / square(&mut want.iter().map(|w| f64::from(*w)))
}

#[test]
fn single_rows_go_through_their_experts() {
    let Some(mut gpu) = open() else { return };
    for block in weight_formats() {
        let case = Case::new(block, 4, 2, 3);
        let error = nmse(&by_rows(&mut gpu, &case), &case.want());
        assert!(error < 1e-11, "{block}: {error:e}");
        gpu.clear();
    }
}

#[test]
fn many_rows_go_through_their_experts() {
    let Some(mut gpu) = open() else { return };
    for block in weight_formats() {
        // More pairs for one expert than a tile has rows, where blocks are small.
        let rows = if block.info().elements <= 32 { 150 } else { 20 };
        let case = Case::new(block, 4, 2, rows);
        let error = nmse(&by_experts(&mut gpu, &case), &case.want());
        assert!(error < 1e-11, "{block}: {error:e}");
        gpu.clear();
    }
}

#[test]
fn a_row_alone_and_among_others_is_bitwise_the_same() {
    let Some(mut gpu) = open() else { return };
    for block in [BlockType::Q4_K, BlockType::Q8_0] {
        let many = Case::new(block, 5, 2, 4);
        let all = by_rows(&mut gpu, &many);
        gpu.clear();
        let own = 2 * many.width..3 * many.width;
        let (x, route) = (many.x[own.clone()].to_vec(), many.route[2 * 4..3 * 4].to_vec());
        let one = Case { x, route, rows: 1, ..many };
        assert_eq!(by_rows(&mut gpu, &one), all[own], "{block}");
        gpu.clear();
    }
}
