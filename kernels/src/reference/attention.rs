use half::f16;
use trefoil_graph::StepInputs;
use trefoil_graph::ops::{Attention, KvWrite};

use super::elementwise::soft_cap;
use crate::host::{KvLayout, KvView};

/// Stores this step's keys and values at their positions.
pub(super) fn kv_write(
    op: &KvWrite,
    step: &StepInputs,
    layout: KvLayout,
    key: &[f32],
    value: &[f32],
    pages: &mut [u8],
) {
    let width = op.kv_heads * op.head_dim;
    for sequence in &step.sequences {
        let table = step.pages(sequence);
        for i in 0..sequence.rows as usize {
            let row = sequence.first_row as usize + i;
            let position = sequence.past as usize + i;
            let page = table[position / layout.page_tokens];
            let slot = position % layout.page_tokens;
            for (is_value, source) in [(false, key), (true, value)] {
                for head in 0..op.kv_heads {
                    let from = row * width + head * op.head_dim;
                    let mut at = layout.offset(is_value, page, head, slot);
                    for &x in &source[from..from + op.head_dim] {
                        if layout.half {
                            pages[at..at + 2].copy_from_slice(&f16::from_f32(x).to_le_bytes());
                        } else {
                            pages[at..at + 4].copy_from_slice(&x.to_le_bytes());
                        }
                        at += layout.element_bytes();
                    }
                }
            }
        }
    }
}

/// Softmax of the query's products with the visible keys, then that mixture of the values.
pub(super) fn attention(
    op: &Attention,
    step: &StepInputs,
    kv: KvView<'_>,
    query: &[f32],
    out: &mut [f32],
) {
    let page_tokens = kv.layout.page_tokens;
    let width = op.heads * op.head_dim;
    let mut scores = Vec::new();
    for sequence in &step.sequences {
        let table = step.pages(sequence);
        let place = |t: u32| (table[t as usize / page_tokens], t as usize % page_tokens);
        let length = sequence.past + sequence.rows;
        for i in 0..sequence.rows {
            let row = (sequence.first_row + i) as usize;
            let visible = op.visible(sequence.past + i, length);
            for head in 0..op.heads {
                let kv_head = head / (op.heads / op.kv_heads);
                let at = row * width + head * op.head_dim;
                let query = &query[at..at + op.head_dim];
                scores.clear();
                scores.extend(visible.clone().map(|t| {
                    let (page, slot) = place(t);
                    let product: f64 = (0..op.head_dim)
                        .map(|d| {
                            let key = kv.element(false, page, kv_head, slot, d);
                            f64::from(query[d]) * f64::from(key)
                        })
                        .sum();
                    let score = product as f32 * op.scale;
                    op.softcap.map_or(score, |cap| soft_cap(cap, score))
                }));
                let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let total: f64 = scores.iter().map(|s| f64::from(s - most).exp()).sum();
                for d in 0..op.head_dim {
                    let mixed: f64 = visible
                        .clone()
                        .zip(&scores)
                        .map(|(t, score)| {
                            let (page, slot) = place(t);
                            let value = kv.element(true, page, kv_head, slot, d);
                            f64::from(score - most).exp() * f64::from(value)
                        })
                        .sum();
                    out[at + d] = (mixed / total) as f32;
                }
            }
        }
    }
}
