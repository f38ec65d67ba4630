//! Attention against double precision, and its independence of batch, threads and page size.

use super::*;
use crate::cpu::{KvFormat, KvSlot, Level, kv_write};
use crate::testing::{Random, nmse_wide, normal};

/// Sequences in one slab, pages dealt out at random.
struct Cache {
    layout: KvLayout,
    pages: Vec<u8>,
    page_ids: Vec<u32>,
    /// Per sequence: its table, its keys and values as stored.
    sequences: Vec<(u32, Vec<f32>, Vec<f32>)>,
}

fn cache(pool: &ThreadPool, layout: KvLayout, lengths: &[usize]) -> Cache {
    let needed: Vec<usize> = lengths.iter().map(|n| n.div_ceil(layout.page_tokens)).collect();
    let total: usize = needed.iter().sum();
    let mut free: Vec<u32> = (0..total as u32 + 3).collect();
    let mut random = Random::new(17);
    // Not-a-number wherever nothing is stored: reading it would show.
    let mut cache = Cache {
        layout,
        pages: vec![0xff; (total + 3) * layout.page_stride],
        page_ids: Vec::new(),
        sequences: Vec::new(),
    };
    let width = layout.kv_heads * layout.head_dim;
    for (i, (&length, needed)) in lengths.iter().zip(needed).enumerate() {
        let table = cache.page_ids.len() as u32;
        for _ in 0..needed {
            cache.page_ids.push(free.swap_remove(random.below(free.len())));
        }
        let half = |v: f32| half::f16::from_f32(v).to_f32();
        let numbers = |seed| normal(length * width, seed).into_iter().map(half).collect();
        let (keys, values): (Vec<f32>, Vec<f32>) =
            (numbers(100 + i as u64), numbers(200 + i as u64));
        let slots: Vec<KvSlot> = (0..length)
            .map(|at| KvSlot {
                page: cache.page_ids[table as usize + at / layout.page_tokens],
                token: (at % layout.page_tokens) as u32,
            })
            .collect();
        kv_write(pool, &layout, &keys, &values, &slots, &mut cache.pages);
        cache.sequences.push((table, keys, values));
    }
    cache
}

#[derive(Clone, Copy)]
struct Model {
    heads: usize,
    scale: f32,
    softcap: Option<f32>,
}

fn exact(cache: &Cache, model: Model, rows: &[(usize, AttentionRow)], q: &[f32]) -> Vec<f64> {
    let KvLayout { kv_heads, head_dim: dim, .. } = cache.layout;
    let mut out = vec![0.0; q.len()];
    for (i, (sequence, row)) in rows.iter().enumerate() {
        let (_, keys, values) = &cache.sequences[*sequence];
        for head in 0..model.heads {
            let at = (i * model.heads + head) * dim;
            let kv = head * kv_heads / model.heads;
            let place = |t: usize| (t * kv_heads + kv) * dim;
            let seen = row.first as usize..row.end as usize;
            let weight = |t: usize| {
                let dot = q[at..at + dim].iter().zip(&keys[place(t)..]);
                let score = dot.map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>()
                    * f64::from(model.scale);
                model.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
            };
            let sum: f64 = seen.clone().map(|t| weight(t).exp()).sum();
            for t in seen {
                let weight = weight(t).exp() / sum;
                for d in 0..dim {
                    out[at + d] += weight * f64::from(values[place(t) + d]);
                }
            }
        }
    }
    out
}

fn run(
    pool: &ThreadPool,
    cache: &Cache,
    model: Model,
    rows: &[AttentionRow],
    q: &[f32],
) -> Vec<f32> {
    let args = Attention {
        layout: cache.layout,
        pages: &cache.pages,
        page_ids: &cache.page_ids,
        rows,
        heads: model.heads,
        scale: model.scale,
        softcap: model.softcap,
        sinks: None,
    };
    let mut out = vec![f32::NAN; q.len()];
    attention(pool, &mut Scratch::new(), &args, q, &mut out);
    out
}

/// A long prompt's end, single tokens, a sliding window, a row that sees all, one that sees one.
fn mixed_rows(cache: &Cache) -> Vec<(usize, AttentionRow)> {
    let row = |sequence: usize, first, end| {
        (sequence, AttentionRow { table: cache.sequences[sequence].0, first, end })
    };
    let mut rows: Vec<_> = (570..600).map(|at| row(0, 0, at + 1)).collect();
    rows.push(row(1, 0, 1));
    rows.extend((40..75).map(|at| row(2, at - 24, at + 1)));
    rows.push(row(0, 255, 257));
    rows.push(row(0, 100, 600));
    rows
}

#[test]
fn results_are_right_and_independent_of_everything_around() {
    let pools = [(1, Level::Avx512), (3, Level::Avx512), (2, Level::Avx2), (2, Level::Portable)]
        .map(|(threads, level)| ThreadPool::with_level(threads, level).expect("threads start"));
    let mut reference: Option<Vec<f32>> = None;
    for (format, tokens, heads, kv_heads, dim) in [
        (KvFormat::F32, 16, 6, 2, 64),
        (KvFormat::F16, 16, 6, 2, 64),
        (KvFormat::F16, 4, 6, 2, 64),
        (KvFormat::F16, 64, 6, 2, 64),
        (KvFormat::F32, 32, 3, 3, 24),
        (KvFormat::F16, 16, 4, 1, 130),
    ] {
        let layout = KvLayout::packed(format, kv_heads, dim, tokens);
        let cache = cache(&pools[0], layout, &[600, 1, 75]);
        let rows = mixed_rows(&cache);
        let model = Model { heads, scale: 1.0 / (dim as f32).sqrt(), softcap: None };
        let q = normal(rows.len() * heads * dim, 5);
        let plain: Vec<AttentionRow> = rows.iter().map(|(_, row)| *row).collect();
        let got = run(&pools[0], &cache, model, &plain, &q);
        let error = nmse_wide(&exact(&cache, model, &rows, &q), &got);
        assert!(error < 1e-12, "{format:?} {tokens} {dim}: {error:e}");
        for pool in &pools {
            assert_eq!(got, run(pool, &cache, model, &plain, &q), "{pool:?}");
            let width = heads * dim;
            for (i, row) in plain.iter().enumerate() {
                let q = &q[i * width..(i + 1) * width];
                let alone = run(pool, &cache, model, &[*row], q);
                assert_eq!(alone, got[i * width..(i + 1) * width], "row {i} alone, {pool:?}");
            }
        }
        // The same numbers are in the first four caches, whatever their format and pages.
        if dim == 64 {
            assert_eq!(*reference.get_or_insert_with(|| got.clone()), got);
        }
    }
}

#[test]
fn soft_caps_sinks_and_rows_that_see_nothing() {
    let pool = ThreadPool::new(2).expect("threads start");
    let layout = KvLayout::packed(KvFormat::F32, 1, 32, 16);
    let cache = cache(&pool, layout, &[600]);
    let row = AttentionRow { table: 0, first: 0, end: 600 };
    let model = Model { heads: 2, scale: 1.5, softcap: Some(4.0) };
    let q = normal(64, 9);
    let got = run(&pool, &cache, model, &[row], &q);
    let error = nmse_wide(&exact(&cache, model, &[(0, row)], &q), &got);
    assert!(error < 1e-12, "{error:e}");

    let model = Model { heads: 2, scale: 0.3, softcap: None };
    let plain = run(&pool, &cache, model, &[row], &q);
    let mut with_sinks = vec![0.0; 64];
    let args = Attention {
        layout,
        pages: &cache.pages,
        page_ids: &cache.page_ids,
        rows: &[row],
        heads: 2,
        scale: 0.3,
        softcap: None,
        sinks: Some(&[20.0, f32::NEG_INFINITY]),
    };
    attention(&pool, &mut Scratch::new(), &args, &q, &mut with_sinks);
    // The first head's sink takes nearly all weight, the second's none.
    assert!(
        with_sinks[..32].iter().zip(&plain).all(|(sunk, plain)| sunk.abs() <= 1e-3 * plain.abs())
    );
    assert_eq!(with_sinks[32..], plain[32..]);

    let nothing = AttentionRow { table: 0, first: 5, end: 5 };
    let got = run(&pool, &cache, model, &[nothing, row], &[&q[..], &q[..]].concat());
    assert!(got[..64].iter().all(|v| *v == 0.0));
    assert_eq!(got[64..], plain);
}
