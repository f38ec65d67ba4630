//! The CPU kernels as a family for host programs.

use trefoil_graph::ops::{
    self, Embed, Experts, Gate, KvWrite, Linear, Nonlinearity, NormKind, Pool, Rope, RopeStyle,
    Route,
};
use trefoil_graph::{SequenceRows, StepInputs};

use super::{
    Activation, Attention, AttentionRow, Form, Input, KvFormat, KvLayout, KvSlot, Matrix,
    Projection, RopePairs, Scratch, ThreadPool,
};
use crate::host::{self, HostKernels, KvView, LinearPart, NormArgs, Turns};
use crate::reference::{moe, pool_rows};

/// CPU kernels with their threads and working memory.
#[derive(Debug)]
pub struct CpuKernels {
    pool: ThreadPool,
    scratch: Scratch,
    form: Form,
    rows: Vec<AttentionRow>,
    slots: Vec<KvSlot>,
    logits: Vec<f32>,
    mixture: Mixture,
}

/// Buffers of a mixture of experts: rows sorted by expert.
#[derive(Debug, Default)]
struct Mixture {
    /// Rows that chose each expert, expert after expert.
    rows: Vec<u32>,
    /// First entry of each expert in `rows`; one more than experts.
    starts: Vec<usize>,
    /// Entry in `rows` of each row's choices, row after row.
    entries: Vec<usize>,
    /// `[rows.len(), ffn]`.
    gate: Vec<f32>,
    /// `[rows.len(), ffn]`.
    up: Vec<f32>,
    /// `[rows.len(), width]`.
    down: Vec<f32>,
}

impl CpuKernels {
    /// Kernels on `threads` threads (0: one per physical core), computing products in `form`.
    pub fn new(threads: usize, form: Form) -> std::io::Result<Self> {
        let pool =
            if threads == 0 { ThreadPool::for_this_machine()? } else { ThreadPool::new(threads)? };
        Ok(Self {
            pool,
            scratch: Scratch::new(),
            form,
            rows: Vec::new(),
            slots: Vec::new(),
            logits: Vec::new(),
            mixture: Mixture::default(),
        })
    }

    /// The threads.
    pub fn pool(&self) -> &ThreadPool {
        &self.pool
    }
}

fn layout_of(layout: host::KvLayout) -> KvLayout {
    let format = if layout.half { KvFormat::F16 } else { KvFormat::F32 };
    KvLayout::packed(format, layout.shape.kv_heads, layout.shape.head_dim, layout.page_tokens)
}

fn activation(function: Nonlinearity) -> Activation {
    match function {
        Nonlinearity::Silu => Activation::Silu,
        Nonlinearity::GeluTanh => Activation::GeluTanh,
        Nonlinearity::GeluErf => Activation::GeluErf,
    }
}

/// Positions of a sequence's rows in this step.
fn positions(sequence: &SequenceRows) -> std::ops::Range<u32> {
    sequence.past..sequence.past + sequence.rows
}

impl HostKernels for CpuKernels {
    fn embed(&mut self, op: &Embed, step: &StepInputs, out: &mut [f32]) {
        super::gather_rows(&self.pool, Matrix::from(&op.table), &step.tokens, out);
        if op.scale != 1.0 {
            super::scale(&self.pool, out, op.scale);
        }
        if op.positions.is_some() || op.types.is_some() {
            self.logits.resize(out.len(), 0.0);
        }
        if let Some(table) = &op.positions {
            super::gather_rows(&self.pool, Matrix::from(table), &step.positions, &mut self.logits);
            super::add(&self.pool, out, &self.logits);
        }
        if let Some(table) = &op.types {
            let row = &mut self.logits[..table.cols];
            super::gather_rows(&self.pool, Matrix::from(table), &[0], row);
            super::add_bias(&self.pool, out, row);
        }
    }

    fn norm(&mut self, args: NormArgs<'_>, x: &[f32], out: &mut [f32]) {
        let (cols, eps) = (args.weight.len(), args.op.eps);
        match args.op.kind {
            NormKind::Rms => {
                super::rms_norm(&self.pool, x, cols, Some(args.weight), eps, out);
                if let Some(bias) = args.bias {
                    super::add_bias(&self.pool, out, bias);
                }
            }
            NormKind::Layer => {
                super::layer_norm(&self.pool, x, cols, args.weight, args.bias, eps, out);
            }
        }
    }

    fn linear(&mut self, op: &Linear, bias: Option<&[f32]>, x: &[f32], out: &mut [f32]) {
        let weight = Matrix::from(&op.weight);
        super::linear(&self.pool, &mut self.scratch, self.form, x, weight, bias, out);
    }

    fn linear_many(&mut self, x: &[f32], parts: &mut [LinearPart<'_>]) {
        let Some(first) = parts.first() else { return };
        let input = Input { x, cols: first.op.weight.cols, rows: None };
        let mut projections: Vec<Projection<'_>> = parts
            .iter_mut()
            .map(|part| Projection::new(0, Matrix::from(&part.op.weight), part.bias, part.out))
            .collect();
        let (pool, scratch) = (&self.pool, &mut self.scratch);
        super::linear_many(pool, scratch, self.form, &[input], &mut projections);
    }

    fn rope(&mut self, op: &Rope, turns: Turns<'_>, x: &[f32], out: &mut [f32]) {
        let rows = turns.cos.len() / turns.pairs.max(1);
        let heads = x.len() / rows.max(1) / op.head_dim;
        let pairs = match op.style {
            RopeStyle::Interleaved => RopePairs::Interleaved,
            RopeStyle::Halves => RopePairs::Halves,
        };
        let angles = (turns.cos, turns.sin);
        super::rope_from(&self.pool, x, out, heads, op.head_dim, turns.pairs, pairs, angles);
    }

    fn kv_write(
        &mut self,
        _op: &KvWrite,
        step: &StepInputs,
        layout: host::KvLayout,
        key: &[f32],
        value: &[f32],
        pages: &mut [u8],
    ) {
        self.slots.clear();
        let page_tokens = step.page_tokens;
        for sequence in &step.sequences {
            let table = step.pages(sequence);
            self.slots.extend(positions(sequence).map(|position| KvSlot {
                page: table[(position / page_tokens) as usize],
                token: position % page_tokens,
            }));
        }
        super::kv_write(&self.pool, &layout_of(layout), key, value, &self.slots, pages);
    }

    fn attention(
        &mut self,
        op: &ops::Attention,
        step: &StepInputs,
        kv: KvView<'_>,
        query: &[f32],
        out: &mut [f32],
    ) {
        self.rows.clear();
        for sequence in &step.sequences {
            let length = sequence.past + sequence.rows;
            self.rows.extend(positions(sequence).map(|position| {
                let visible = op.visible(position, length);
                AttentionRow { table: sequence.first_page, first: visible.start, end: visible.end }
            }));
        }
        let args = Attention {
            layout: layout_of(kv.layout),
            pages: kv.bytes,
            page_ids: &step.page_table,
            rows: &self.rows,
            heads: op.heads,
            scale: op.scale,
            softcap: op.softcap,
            sinks: None,
        };
        super::attention(&self.pool, &mut self.scratch, &args, query, out);
    }

    fn gate(&mut self, op: &Gate, gate: &[f32], up: &[f32], out: &mut [f32]) {
        super::gated_from(&self.pool, activation(op.function), gate, up, out);
    }

    fn activation(&mut self, op: &ops::Activation, x: &[f32], out: &mut [f32]) {
        out.copy_from_slice(x);
        super::activate(&self.pool, activation(op.function), out);
    }

    fn add(&mut self, a: &[f32], b: &[f32], out: &mut [f32]) {
        super::sum(&self.pool, a, b, out);
    }

    fn scale(&mut self, factor: f32, x: &[f32], out: &mut [f32]) {
        out.copy_from_slice(x);
        super::scale(&self.pool, out, factor);
    }

    fn soft_cap(&mut self, cap: f32, x: &[f32], out: &mut [f32]) {
        out.copy_from_slice(x);
        super::softcap(&self.pool, out, cap);
    }

    fn route(&mut self, op: &Route, x: &[f32], out: &mut [f32]) {
        let (experts, rows) = (op.weight.rows, x.len() / op.weight.cols);
        self.logits.resize(rows * experts, 0.0);
        let weight = Matrix::from(&op.weight);
        // Which experts a row gets must not hang on rounding: the router is always computed exactly.
        let (logits, form) = (&mut self.logits[..rows * experts], Form::Exact);
        super::linear(&self.pool, &mut self.scratch, form, x, weight, None, logits);
        for (logits, out) in logits.chunks_exact(experts).zip(out.chunks_exact_mut(2 * op.top_k)) {
            moe::choose(logits, op.renormalise, out);
        }
    }

    fn experts(&mut self, op: &Experts, x: &[f32], route: &[f32], out: &mut [f32]) {
        let (width, ffn, count) = (op.gate[0].cols, op.gate[0].rows, op.gate.len());
        self.mixture.sort(route, op.top_k, count);
        let Mixture { rows, starts, entries, gate, up, down } = &mut self.mixture;
        gate.resize(rows.len() * ffn, 0.0);
        up.resize(rows.len() * ffn, 0.0);
        down.resize(rows.len() * width, 0.0);
        // All experts in two hand-overs: a thread that is done with one goes on with the next.
        let asked =
            || (0..count).map(|e| (e, starts[e]..starts[e + 1])).filter(|(_, r)| !r.is_empty());
        let inputs: Vec<Input<'_>> =
            asked().map(|(_, part)| Input { x, cols: width, rows: Some(&rows[part]) }).collect();
        let (mut gate_rest, mut up_rest, mut down_rest) =
            (&mut gate[..], &mut up[..], &mut down[..]);
        let mut both = Vec::with_capacity(2 * inputs.len());
        for (index, (expert, part)) in asked().enumerate() {
            let gate = take(&mut gate_rest, part.len() * ffn);
            let up = take(&mut up_rest, part.len() * ffn);
            both.push(Projection::new(index, Matrix::from(&op.gate[expert]), None, gate));
            both.push(Projection::new(index, Matrix::from(&op.up[expert]), None, up));
        }
        let (pool, form) = (&self.pool, self.form);
        super::linear_many(pool, &mut self.scratch, form, &inputs, &mut both);
        drop(both);
        super::gated(pool, activation(op.function), gate, up);
        let inputs: Vec<Input<'_>> = asked()
            .map(|(_, part)| Input {
                x: &up[part.start * ffn..part.end * ffn],
                cols: ffn,
                rows: None,
            })
            .collect();
        let mut back = Vec::with_capacity(inputs.len());
        for (index, (expert, part)) in asked().enumerate() {
            let down = take(&mut down_rest, part.len() * width);
            back.push(Projection::new(index, Matrix::from(&op.down[expert]), None, down));
        }
        super::linear_many(pool, &mut self.scratch, form, &inputs, &mut back);
        drop(back);
        // Added in the order of the row's own choice, so that the sum does not depend on which
        // experts other rows chose.
        out.fill(0.0);
        for (row, out) in out.chunks_exact_mut(width).enumerate() {
            let shares = &route[(2 * row + 1) * op.top_k..(2 * row + 2) * op.top_k];
            let entries = &entries[row * op.top_k..(row + 1) * op.top_k];
            for (&entry, &share) in entries.iter().zip(shares) {
                let part = &down[entry * width..(entry + 1) * width];
                super::add_scaled(&self.pool, out, part, share);
            }
        }
    }

    fn pool(&mut self, op: &Pool, step: &StepInputs, x: &[f32], out: &mut [f32]) {
        pool_rows(op.pooling, step, x, out);
    }

    fn normalise(&mut self, width: usize, x: &[f32], out: &mut [f32]) {
        out.copy_from_slice(x);
        super::l2_normalise(&self.pool, out, width, f32::MIN_POSITIVE);
    }
}

/// Cuts the first `len` elements off.
fn take<'a>(rest: &mut &'a mut [f32], len: usize) -> &'a mut [f32] {
    let (first, later) = std::mem::take(rest).split_at_mut(len);
    *rest = later;
    first
}

impl Mixture {
    /// Sorts the rows of a route by the experts that they chose.
    fn sort(&mut self, route: &[f32], top_k: usize, experts: usize) {
        let choices = || {
            let rows = route.chunks_exact(2 * top_k).enumerate();
            rows.flat_map(|(row, route)| route[..top_k].iter().map(move |e| (row, *e as usize)))
        };
        self.starts.clear();
        self.starts.resize(experts + 1, 0);
        for (_, expert) in choices() {
            self.starts[expert] += 1;
        }
        // From counts to ends; filling from the back turns the ends into starts.
        let mut end = 0;
        for start in &mut self.starts {
            end += *start;
            *start = end;
        }
        self.rows.resize(end, 0);
        self.entries.resize(end, 0);
        for choice in (0..end).rev() {
            let row = choice / top_k;
            let expert = route[row * 2 * top_k + choice % top_k] as usize;
            self.starts[expert] -= 1;
            self.rows[self.starts[expert]] = row as u32;
            self.entries[choice] = self.starts[expert];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_sorted_by_expert_and_found_again() {
        let mut mixture = Mixture::default();
        // Rows choose experts (2, 0), (0, 1), (2, 1).
        let route = [2.0, 0.0, 0.5, 0.5, 0.0, 1.0, 0.5, 0.5, 2.0, 1.0, 0.5, 0.5];
        mixture.sort(&route, 2, 4);
        assert_eq!(mixture.starts, [0, 2, 4, 6, 6]);
        assert_eq!(mixture.rows, [0, 1, 1, 2, 0, 2]);
        assert_eq!(mixture.entries, [4, 0, 1, 2, 5, 3]);
    }
}
