//! Results of which only the largest elements leave a card.

use trefoil_engine::backends::{BackendOptions, Backends};
use trefoil_tests::devices::{GPU, gpu_options, with_gpu};
use trefoil_tests::running::{demo, exact_options, feed, runner};

/// The `count` largest elements with their places, the lower place first among equals.
fn largest(row: &[f32], count: usize) -> Vec<(usize, f32)> {
    let mut all: Vec<(usize, f32)> = row.iter().copied().enumerate().collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    all.truncate(count);
    all
}

#[test]
fn the_largest_logits_come_alone_and_are_the_same() {
    if with_gpu(true).is_none() {
        return;
    }
    let backends = Backends::detect(BackendOptions { own_memory: true, ..gpu_options(true) });
    let lowered = demo();
    let mut runner = runner(&lowered, &backends, &exact_options(GPU));
    let prompt = [1, 5, 9, 200, 31, 7];
    // Feeds of one and of several rows, that ask for all elements or few of them in turn.
    let mut sequence = runner.begin(64);
    let full = feed(&mut runner, &mut sequence, &prompt);
    let width = full.len() / prompt.len();
    let want: Vec<Vec<f32>> = full.chunks_exact(width).map(<[f32]>::to_vec).collect();
    for (count, tokens) in [(1, 3), (40, 1), (64, 6), (2, 1), (0, 1), (3, 1), (1, 6), (65, 1)] {
        runner.rewind(&mut sequence, prompt.len() - tokens);
        let tokens = &prompt[prompt.len() - tokens..];
        let mut got = Vec::new();
        runner
            .feed_for_largest(&mut sequence, tokens, count, || true, |row| got = row.to_vec())
            .expect("runs");
        // More than the card finds, or all: all come.
        let some = (1..=64).contains(&count);
        let numbers = got.iter().filter(|value| value.is_finite()).count();
        assert_eq!(numbers, if some { count } else { width }, "{count} of {} rows", tokens.len());
        let shown = if some { count } else { 10 };
        let close = |a: &(usize, f32), b: &(usize, f32)| a.0 == b.0 && (a.1 - b.1).abs() < 1e-3;
        let (got, want) = (largest(&got, shown), largest(&want[prompt.len() - 1], shown));
        assert!(got.iter().zip(&want).all(|(a, b)| close(a, b)), "{got:?}, not {want:?}");
    }
    runner.end(sequence);
}
