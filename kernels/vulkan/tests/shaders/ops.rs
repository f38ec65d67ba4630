//! Shaders without block types: rows, element-wise work, routing, candidates.

use trefoil_graph::StepInputs;
use trefoil_graph::ops::{Activation, Gate, Nonlinearity, Pool, Pooling};
use trefoil_kernels::cases::Random;
use trefoil_kernels::host::HostKernels;
use trefoil_kernels::reference::Reference;

use crate::gpu::{Gpu, Push, open};

/// Largest difference, relative to the larger of one and the value.
fn assert_near(name: &str, got: &[f32], want: &[f32], tolerance: f32) {
    assert_eq!(got.len(), want.len(), "{name}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let error = (got - want).abs() / want.abs().max(1.0);
        assert!(error <= tolerance, "{name} element {i}: {got} for {want}");
    }
}

fn step(rows: &[usize]) -> StepInputs {
    let mut step = StepInputs { page_tokens: 16, ..StepInputs::default() };
    for &count in rows {
        step.push_sequence(&vec![1; count], 0, &[], false, []);
    }
    step
}

#[test]
fn rows_are_selected_and_pooled() {
    let Some(mut gpu) = open() else { return };
    let mut random = Random::new(1);
    let (step, width) = (step(&[3, 1, 70]), 100);
    let x = random.values(step.tokens.len() * width);
    let x_at = gpu.put(&x);
    let run = |gpu: &mut Gpu, kind: u32, numbers: &[u32], outputs: usize| -> Vec<f32> {
        let (numbers, out) = (gpu.put(numbers), gpu.space(outputs * width * 4));
        let push = Push::new(&[x_at, numbers, out]).word(width);
        gpu.run("rows", &[kind], &push.0, [width.div_ceil(64) as u32, outputs as u32, 1]);
        gpu.read(out, outputs * width)
    };
    let chosen = [73, 0, 5, 5];
    let want: Vec<f32> =
        chosen.iter().flat_map(|&r| x[r as usize * width..][..width].to_vec()).collect();
    assert_eq!(run(&mut gpu, 0, &chosen, 4), want);
    let records: Vec<u32> =
        step.sequences.iter().flat_map(|s| [s.first_row, s.rows, 0, 0, 0, 0]).collect();
    for (kind, pooling) in [(1, Pooling::Cls), (2, Pooling::Last), (3, Pooling::Mean)] {
        let mut want = vec![0.0; 3 * width];
        Reference::default().pool(&Pool { pooling }, &step, &x, &mut want);
        let got = run(&mut gpu, kind, &records, 3);
        assert_near("pool", &got, &want, if kind == 3 { 1e-6 } else { 0.0 });
    }
}

#[test]
fn rows_get_length_one() {
    let Some(mut gpu) = open() else { return };
    let (width, rows) = (1000, 3);
    let mut x = Random::new(2).values(rows * width);
    x[width..2 * width].fill(0.0);
    let (x_at, out) = (gpu.put(&x), gpu.space(rows * width * 4));
    // More groups than rows, in two dimensions.
    gpu.run("normalise", &[], &Push::new(&[x_at, out]).word(width).word(rows).0, [2, 2, 1]);
    let mut want = vec![0.0; rows * width];
    Reference::default().normalise(width, &x, &mut want);
    assert_near("normalise", &gpu.read(out, rows * width), &want, 1e-6);
}

#[test]
fn elements_become_what_the_reference_makes_of_them() {
    let Some(mut gpu) = open() else { return };
    let mut random = Random::new(3);
    // Not a multiple of four, more than one group.
    let count = 3 * 1024 + 7;
    let (mut a, b) = (random.values(count), random.values(count));
    a.iter_mut().enumerate().for_each(|(i, v)| *v *= [0.1, 1.0, 3.0, 60.0][i % 4]);
    let (a_at, b_at, out) = (gpu.put(&a), gpu.put(&b), gpu.space(count * 4));
    let mut reference = Reference::default();
    let mut want = vec![0.0; count];
    let run = |gpu: &mut Gpu, kind: u32, function: u32, factor: f32, want: &[f32]| {
        let push = Push::new(&[a_at, b_at, out]).word(count).number(factor);
        gpu.run("elementwise", &[kind, function], &push.0, [3, 2, 1]);
        assert_near(&format!("kind {kind}.{function}"), &gpu.read(out, count), want, 2e-6);
    };
    let functions = [Nonlinearity::Silu, Nonlinearity::GeluTanh, Nonlinearity::GeluErf];
    for (number, function) in functions.into_iter().enumerate() {
        reference.gate(&Gate { function }, &a, &b, &mut want);
        run(&mut gpu, 0, number as u32, 0.0, &want);
        reference.activation(&Activation { function }, &a, &mut want);
        run(&mut gpu, 1, number as u32, 0.0, &want);
    }
    reference.add(&a, &b, &mut want);
    run(&mut gpu, 2, 0, 0.0, &want);
    reference.scale(0.3, &a, &mut want);
    run(&mut gpu, 3, 0, 0.3, &want);
    reference.soft_cap(30.0, &a, &mut want);
    run(&mut gpu, 4, 0, 30.0, &want);
}

/// Order of the reference: falling value, lower place first on ties.
fn sorted(values: &[f32]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..values.len() as u32).collect();
    order.sort_by(|&a, &b| {
        values[b as usize].partial_cmp(&values[a as usize]).expect("numbers").then(a.cmp(&b))
    });
    order
}

#[test]
fn the_most_probable_experts_are_chosen() {
    let Some(mut gpu) = open() else { return };
    let mut random = Random::new(4);
    for (experts, top_k) in [(8, 2), (128, 8), (1000, 10), (4, 4)] {
        let rows = 5;
        let mut logits = random.values(rows * experts);
        // Ties, and a row of nothing but ties.
        logits[2] = logits[1];
        logits[experts..2 * experts].fill(0.25);
        let at = gpu.put(&logits);
        for renormalise in [false, true] {
            let out = gpu.space(rows * 2 * top_k * 4);
            let push = Push::new(&[at, out]).word(experts).word(top_k).word(rows);
            gpu.run("route", &[u32::from(renormalise)], &push.0, [3, 2, 1]);
            let got: Vec<f32> = gpu.read(out, rows * 2 * top_k);
            for (logits, got) in logits.chunks(experts).zip(got.chunks(2 * top_k)) {
                let order = &sorted(logits)[..top_k];
                assert_eq!(got[..top_k], order.iter().map(|&e| e as f32).collect::<Vec<_>>());
                let weight = |e: usize| f64::from(logits[e] - logits[order[0] as usize]).exp();
                let total: f64 = if renormalise {
                    order.iter().map(|&e| weight(e as usize)).sum()
                } else {
                    (0..experts).map(weight).sum()
                };
                let shares: Vec<f32> =
                    order.iter().map(|&e| (weight(e as usize) / total) as f32).collect();
                assert_near("shares", &got[top_k..], &shares, 1e-6);
            }
        }
    }
}

/// The `k` best of each row of `logits`, by the shader: places and values.
fn candidates(gpu: &mut Gpu, logits: &[f32], rows: usize, k: usize) -> Vec<[u32; 2]> {
    let (count, slice) = (logits.len() / rows, 2048);
    let slices = count.div_ceil(slice);
    let at = gpu.put(logits);
    let (keys, out) = (gpu.space(rows * slices * k * 8), gpu.space(rows * k * 8));
    let push = Push::new(&[at, keys, out]).word(count).word(slice).word(slices);
    gpu.run("candidates", &[k as u32, 0], &push.0, [slices as u32, rows as u32, 1]);
    gpu.run("candidates", &[k as u32, 1], &push.0, [1, rows as u32, 1]);
    gpu.read(out, rows * k)
}

#[test]
fn the_largest_logits_are_found_in_order() {
    let Some(mut gpu) = open() else { return };
    let mut random = Random::new(5);
    // The last slice of 10_250 has ten numbers; 152_064 is a vocabulary.
    for (count, rows) in [(100, 2), (10_250, 3), (152_064, 1)] {
        for kind in 0..5 {
            let mut logits = random.values(rows * count);
            match kind {
                // Many ties.
                1 => logits.iter_mut().for_each(|v| *v = v.round()),
                // All masked but one; zeros of both signs.
                2 => {
                    logits.fill(f32::NEG_INFINITY);
                    logits[count / 2] = -3.0;
                }
                3 => logits.iter_mut().for_each(|v| *v = if *v > 0.0 { 0.0 } else { -0.0 }),
                // The largest next to each other, at the end.
                4 => logits.sort_by(f32::total_cmp),
                _ => {}
            }
            for k in [1, 2, 40, 64] {
                let got = candidates(&mut gpu, &logits, rows, k);
                for (row, got) in logits.chunks(count).zip(got.chunks(k)) {
                    let want: Vec<[u32; 2]> = sorted(row)[..k]
                        .iter()
                        .map(|&place| [place, row[place as usize].to_bits()])
                        .collect();
                    assert_eq!(got, want, "{k} of {count}, kind {kind}");
                }
                gpu.clear();
            }
        }
    }
}
