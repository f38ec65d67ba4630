use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use trefoil_graph::ops::Op;
use trefoil_graph::{
    KvShape, LayerGraph, Lifetime, NodeIndex, Rows, Segment, StepInputs, assign_slots,
};

use super::{HostKernels, HostScratch, KvView, LinearPart, NormArgs, decode_vector};

/// Layout of a layer's pages: page `p` holds keys, then values, each `[kv_heads][page_tokens]
/// [head_dim]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayout {
    /// Tokens per page.
    pub page_tokens: usize,
    /// Heads and their width.
    pub shape: KvShape,
    /// Is each element an f16 (else f32)?
    pub half: bool,
}

impl KvLayout {
    /// Bytes of one element.
    pub fn element_bytes(&self) -> usize {
        if self.half { 2 } else { 4 }
    }

    /// Bytes of one page.
    pub fn page_bytes(&self) -> usize {
        self.page_tokens * self.shape.elements_per_token() * self.element_bytes()
    }

    /// Offset of the first element of a head's key or value at `slot` of `page`.
    pub fn offset(&self, value: bool, page: u32, head: usize, slot: usize) -> usize {
        let KvShape { kv_heads, head_dim, .. } = self.shape;
        let plane = usize::from(value) * kv_heads + head;
        let element = (plane * self.page_tokens + slot) * head_dim;
        page as usize * self.page_bytes() + element * self.element_bytes()
    }
}

/// A layer's pages for a run.
pub struct KvBytes<B> {
    /// All pages.
    pub bytes: B,
    /// How they are laid out.
    pub layout: KvLayout,
}

/// Tensors bound to a run: `inputs` and `outputs` in the order of the segment's lists, `kv` in the
/// order of [`HostProgram::kv_layers`].
pub struct Tensors<'a, I, O, K> {
    /// Tensors made outside.
    pub inputs: &'a [I],
    /// Tensors made here for others.
    pub outputs: &'a mut [O],
    /// Pages of the KV layers.
    pub kv: &'a mut [KvBytes<K>],
}

/// Where a tensor lives during a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Input(usize),
    Output(usize),
    Slot(usize),
    Nothing,
}

#[derive(Debug)]
struct Instruction {
    op: Op,
    inputs: Vec<Place>,
    output: Place,
    rows: Rows,
    widths: Vec<usize>,
    width: usize,
    /// Decoded norm weight (offset added) and bias, or a linear's bias.
    vectors: [Option<Vec<f32>>; 2],
    /// Index into the KV bindings.
    kv: usize,
    /// This many instructions, this one first, are linears of the same rows and run together.
    together: usize,
}

/// Most linears that run together: query, key and value.
const TOGETHER: usize = 3;

/// Finds linears next to each other that read the same tensor.
fn group_linears(instructions: &mut [Instruction]) {
    let is_part =
        |i: &Instruction| matches!(i.op, Op::Linear(_)) && matches!(i.output, Place::Slot(_));
    let mut at = 0;
    while at < instructions.len() {
        let (first, rest) = instructions[at..].split_first_mut().expect("not at the end");
        let mut taken = vec![first.output];
        if is_part(first) {
            for next in rest.iter().take(TOGETHER - 1) {
                let same = next.inputs == first.inputs && next.rows == first.rows;
                if !(is_part(next) && same) || taken.contains(&next.output) {
                    break;
                }
                taken.push(next.output);
            }
        }
        first.together = taken.len();
        at += taken.len();
    }
}

/// All sorts of rows, in the order of `HostProgram::max_rows`.
const SORTS: [Rows; 3] = [Rows::Tokens, Rows::Outputs, Rows::Sequences];

/// A run that cannot begin or go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: expected {expected}, got {got}")]
pub struct RunError {
    /// Thing that was wrong.
    pub what: String,
    /// What the program needs.
    pub expected: String,
    /// What came.
    pub got: String,
}

fn wrong(what: impl Into<String>, expected: impl ToString, got: impl ToString) -> RunError {
    RunError { what: what.into(), expected: expected.to_string(), got: got.to_string() }
}

/// A segment's ops over host memory.
#[derive(Debug)]
pub struct HostProgram {
    instructions: Vec<Instruction>,
    /// Elements of each slot.
    slots: Vec<usize>,
    kv_layers: Vec<usize>,
    max_rows: [usize; 3],
    /// Keeps the weights, and the rope tables' addresses, for as long as the program lives.
    _graph: Arc<LayerGraph>,
}

impl HostProgram {
    /// Compiles `segment` of `graph` for steps of up to `max_rows` rows of each sort.
    pub fn new(
        graph: &Arc<LayerGraph>,
        segment: &Segment,
        max_rows: impl Fn(Rows) -> usize,
    ) -> Self {
        let position = |node: NodeIndex| segment.nodes.iter().position(|&n| n == node);
        let mut internal = Vec::new();
        let mut lifetimes = Vec::new();
        for (at, &node) in segment.nodes.iter().enumerate() {
            let shape = graph.node(node).shape;
            if shape.width == 0 || segment.outputs.contains(&node) {
                continue;
            }
            let last = graph.readers(node).filter_map(position).max().unwrap_or(at);
            internal.push(node);
            lifetimes.push(Lifetime { first: at, last, size: shape.width * max_rows(shape.rows) });
        }
        let slots = assign_slots(&lifetimes);
        let place = |node: NodeIndex| {
            if let Some(k) = segment.inputs.iter().position(|&n| n == node) {
                Place::Input(k)
            } else if graph.node(node).shape.width == 0 {
                Place::Nothing
            } else if let Some(k) = segment.outputs.iter().position(|&n| n == node) {
                Place::Output(k)
            } else {
                let k = internal.iter().position(|&n| n == node).expect("every node has a place");
                Place::Slot(slots.slot_of[k])
            }
        };
        let mut kv_layers = Vec::new();
        let mut instructions = Vec::with_capacity(segment.nodes.len());
        for &id in &segment.nodes {
            let node = graph.node(id);
            let inputs = graph.inputs(id);
            let kv = match &node.op {
                Op::KvWrite(op) => Some(op.layer),
                Op::Attention(op) => Some(op.layer),
                _ => None,
            };
            let kv = kv.map_or(0, |layer| {
                kv_layers.iter().position(|&l| l == layer).unwrap_or_else(|| {
                    kv_layers.push(layer);
                    kv_layers.len() - 1
                })
            });
            instructions.push(Instruction {
                vectors: decoded_vectors(&node.op),
                op: node.op.clone(),
                widths: inputs.iter().map(|&n| graph.node(n).shape.width).collect(),
                inputs: inputs.into_iter().map(place).collect(),
                output: place(id),
                rows: node.shape.rows,
                width: node.shape.width,
                kv,
                together: 1,
            });
        }
        group_linears(&mut instructions);
        Self {
            instructions,
            slots: slots.sizes,
            kv_layers,
            max_rows: SORTS.map(max_rows),
            _graph: graph.clone(),
        }
    }

    /// KV layers that the program writes or reads.
    pub fn kv_layers(&self) -> &[usize] {
        &self.kv_layers
    }

    /// Bytes of scratch that a run needs at most.
    pub fn scratch_bytes(&self) -> u64 {
        self.slots.iter().map(|elements| (elements * size_of::<f32>()) as u64).sum()
    }

    /// Runs the ops on the rows of `step`.
    pub fn run<I, O, K>(
        &self,
        kernels: &mut dyn HostKernels,
        scratch: &mut HostScratch,
        step: &StepInputs,
        tensors: Tensors<'_, I, O, K>,
    ) -> Result<(), RunError>
    where
        I: Deref<Target = [f32]>,
        O: DerefMut<Target = [f32]>,
        K: DerefMut<Target = [u8]>,
    {
        for (sort, most) in SORTS.into_iter().zip(self.max_rows) {
            if step.count(sort) > most {
                return Err(wrong(format!("{sort:?}"), format!("up to {most}"), step.count(sort)));
            }
        }
        if tensors.kv.len() != self.kv_layers.len() {
            return Err(wrong("KV bindings", self.kv_layers.len(), tensors.kv.len()));
        }
        scratch.reserve(self.slots.iter().copied());
        scratch.begin_step();
        let mut rest = &self.instructions[..];
        while let Some(instruction) = rest.first() {
            let (now, later) = rest.split_at(instruction.together);
            rest = later;
            if now.len() > 1 {
                run_together(now, kernels, scratch, step, tensors.inputs, tensors.outputs)?;
                continue;
            }
            self.run_one(
                instruction,
                kernels,
                scratch,
                step,
                tensors.inputs,
                tensors.outputs,
                tensors.kv,
            )?;
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments)] // one call site; a struct would only rename the list
    fn run_one<I, O, K>(
        &self,
        instruction: &Instruction,
        kernels: &mut dyn HostKernels,
        scratch: &mut HostScratch,
        step: &StepInputs,
        inputs: &[I],
        outputs: &mut [O],
        kv: &mut [KvBytes<K>],
    ) -> Result<(), RunError>
    where
        I: Deref<Target = [f32]>,
        O: DerefMut<Target = [f32]>,
        K: DerefMut<Target = [u8]>,
    {
        if let Op::Rope(op) = &instruction.op {
            scratch.make_turns(&op.table, step);
        }
        let rows = step.count(instruction.rows);
        let len = rows * instruction.width;
        // The output slot is taken out of the scratch while its op runs: an op never reads it.
        let mut slot = match instruction.output {
            Place::Slot(slot) => std::mem::take(&mut scratch.slots[slot]),
            _ => Vec::new(),
        };
        let (before, rest) = match instruction.output {
            Place::Output(k) => {
                let (before, rest) = outputs.split_at_mut(k);
                (before, Some(rest))
            }
            _ => (outputs, None),
        };
        let mut rest = rest;
        let (out, after): (&mut [f32], &[O]) = match &mut rest {
            Some(rest) => {
                let (first, after) = rest.split_first_mut().expect("output is bound");
                let have = first.len();
                let out = first.get_mut(..len).ok_or_else(|| wrong("output", len, have))?;
                (out, after)
            }
            None => (slot.get_mut(..len).unwrap_or(&mut []), &[]),
        };
        let read = Reader { inputs, scratch, before, after, output: instruction.output, step };
        let result = dispatch(instruction, kernels, &read, out, kv);
        if let Place::Slot(index) = instruction.output {
            scratch.slots[index] = slot;
        }
        result
    }
}

/// Runs linears of the same rows; their outputs are slots.
fn run_together<I, O>(
    instructions: &[Instruction],
    kernels: &mut dyn HostKernels,
    scratch: &mut HostScratch,
    step: &StepInputs,
    inputs: &[I],
    outputs: &[O],
) -> Result<(), RunError>
where
    I: Deref<Target = [f32]>,
    O: Deref<Target = [f32]>,
{
    let rows = step.count(instructions[0].rows);
    let mut slots: [Vec<f32>; TOGETHER] = Default::default();
    for (slot, instruction) in slots.iter_mut().zip(instructions) {
        if let Place::Slot(index) = instruction.output {
            *slot = std::mem::take(&mut scratch.slots[index]);
        }
    }
    let read =
        Reader { inputs, scratch, before: outputs, after: &[], output: Place::Nothing, step };
    let x = read.get(instructions[0].inputs[0], rows * instructions[0].widths[0]);
    let result = x.map(|x| {
        let mut parts: Vec<LinearPart<'_>> = instructions
            .iter()
            .zip(&mut slots)
            .filter_map(|(instruction, slot)| {
                let Op::Linear(op) = &instruction.op else { return None };
                let out = &mut slot[..rows * instruction.width];
                Some(LinearPart { op, bias: instruction.vectors[1].as_deref(), out })
            })
            .collect();
        kernels.linear_many(x, &mut parts);
    });
    for (slot, instruction) in slots.into_iter().zip(instructions) {
        if let Place::Slot(index) = instruction.output {
            scratch.slots[index] = slot;
        }
    }
    result
}

/// Finds the tensors that an op reads.
struct Reader<'a, I, O> {
    inputs: &'a [I],
    scratch: &'a HostScratch,
    before: &'a [O],
    after: &'a [O],
    output: Place,
    step: &'a StepInputs,
}

impl<I, O> Reader<'_, I, O>
where
    I: Deref<Target = [f32]>,
    O: Deref<Target = [f32]>,
{
    /// The first `len` elements of a tensor.
    fn get(&self, place: Place, len: usize) -> Result<&[f32], RunError> {
        let all: &[f32] = match place {
            Place::Input(k) => &self.inputs[k],
            Place::Slot(slot) => &self.scratch.slots[slot],
            Place::Output(k) => match self.output {
                Place::Output(own) if k > own => &self.after[k - own - 1],
                _ => &self.before[k],
            },
            Place::Nothing => &[],
        };
        all.get(..len).ok_or_else(|| wrong("tensor", format!("{len} elements"), all.len()))
    }
}

fn decoded_vectors(op: &Op) -> [Option<Vec<f32>>; 2] {
    match op {
        Op::Norm(norm) => {
            let mut weight = decode_vector(&norm.weight);
            weight.iter_mut().for_each(|w| *w += norm.weight_offset);
            [Some(weight), norm.bias.as_ref().map(decode_vector)]
        }
        Op::Linear(linear) => [None, linear.bias.as_ref().map(decode_vector)],
        _ => [None, None],
    }
}

fn dispatch<I, O, K>(
    instruction: &Instruction,
    kernels: &mut dyn HostKernels,
    read: &Reader<'_, I, O>,
    out: &mut [f32],
    kv: &mut [KvBytes<K>],
) -> Result<(), RunError>
where
    I: Deref<Target = [f32]>,
    O: Deref<Target = [f32]>,
    K: DerefMut<Target = [u8]>,
{
    let step = read.step;
    let tokens = step.tokens.len();
    // All ops but the row selections read as many rows as they write.
    let rows = match &instruction.op {
        Op::SelectRows(_) | Op::Pool(_) | Op::KvWrite(_) => tokens,
        _ => step.count(instruction.rows),
    };
    let input = |i: usize| read.get(instruction.inputs[i], rows * instruction.widths[i]);
    let bias = instruction.vectors[1].as_deref();
    match &instruction.op {
        Op::Embed(op) => kernels.embed(op, step, out),
        Op::Norm(op) => {
            let weight = instruction.vectors[0].as_deref().expect("decoded at compile time");
            kernels.norm(NormArgs { op, weight, bias }, input(0)?, out);
        }
        Op::Linear(op) => kernels.linear(op, bias, input(0)?, out),
        Op::Rope(op) => {
            kernels.rope(op, read.scratch.turns(&op.table), input(0)?, out);
        }
        Op::KvWrite(op) => {
            let kv = &mut kv[instruction.kv];
            check_pages(step, kv)?;
            kernels.kv_write(op, step, kv.layout, input(0)?, input(1)?, &mut kv.bytes);
        }
        Op::Attention(op) => {
            let kv = &kv[instruction.kv];
            let view = KvView { bytes: &kv.bytes, layout: kv.layout };
            kernels.attention(op, step, view, input(0)?, out);
        }
        Op::Gate(op) => kernels.gate(op, input(0)?, input(1)?, out),
        Op::Activation(op) => kernels.activation(op, input(0)?, out),
        Op::Add(_) => kernels.add(input(0)?, input(1)?, out),
        Op::Scale(op) => kernels.scale(op.factor, input(0)?, out),
        Op::SoftCap(op) => kernels.soft_cap(op.cap, input(0)?, out),
        Op::Route(op) => kernels.route(op, input(0)?, out),
        Op::Experts(op) => kernels.experts(op, input(0)?, input(1)?, out),
        Op::SelectRows(_) => {
            let x = input(0)?;
            let width = instruction.width;
            for (to, &row) in out.chunks_exact_mut(width).zip(&step.rows_out) {
                to.copy_from_slice(&x[row as usize * width..(row as usize + 1) * width]);
            }
        }
        Op::Pool(op) => kernels.pool(op, step, input(0)?, out),
        Op::Normalise(_) => kernels.normalise(instruction.width, input(0)?, out),
    }
    Ok(())
}

/// Every page of the step must lie within the layer's pages.
fn check_pages<K: Deref<Target = [u8]>>(
    step: &StepInputs,
    kv: &KvBytes<K>,
) -> Result<(), RunError> {
    let pages = kv.bytes.len() / kv.layout.page_bytes().max(1);
    match step.page_table.iter().max() {
        Some(&page) if page as usize >= pages => {
            Err(wrong("KV page", format!("one of {pages}"), page))
        }
        _ if step.page_tokens as usize != kv.layout.page_tokens => {
            Err(wrong("tokens per KV page", kv.layout.page_tokens, step.page_tokens))
        }
        _ => Ok(()),
    }
}
