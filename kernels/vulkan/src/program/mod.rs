//! A segment's ops as dispatches.

mod attention;
mod attention_in;
mod awake;
mod experts;
mod fusion;
mod largest;
mod layout;
mod linear;
mod linear_dot;
mod simple;

use std::sync::Arc;

use trefoil_graph::ops::{Op, RopeTable};
use trefoil_graph::{LayerGraph, NodeIndex, Rows, Segment, Weight};

use crate::dispatch::{Counts, Dispatch, Features, Place, Spot};
pub use attention::SPLIT;
pub use awake::awake;
use fusion::Fusion;
pub use largest::{Largest, MOST_CANDIDATES};
pub use layout::Turns;
use layout::{Layout, WeightParts};
pub use simple::supported;

/// Sort of steps that a program is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    /// Are a row's results bitwise the same alone and among others? (Rows are few.)
    pub steady: bool,
    /// Are products exact in f32, where halves would be faster?
    pub exact: bool,
}

/// A segment compiled for a device: where its tensors, weights and vectors are, and which dispatches
/// a step of given sizes takes.
#[derive(Debug)]
pub struct Program {
    graph: Arc<LayerGraph>,
    nodes: Vec<NodeIndex>,
    fusion: Fusion,
    layout: Layout,
    features: Features,
    form: Form,
}

impl Program {
    /// Compiles `segment` for steps of up to `max_rows` rows of each sort.
    pub fn new(
        graph: &Arc<LayerGraph>,
        segment: &Segment,
        max_rows: impl Fn(Rows) -> usize,
        features: Features,
        form: Form,
    ) -> Self {
        let fusion = Fusion::new(graph, segment);
        let layout = Layout::new(graph, segment, &fusion, max_rows, features.max_part);
        Self { graph: graph.clone(), nodes: segment.nodes.clone(), fusion, layout, features, form }
    }

    /// Bytes of each slot.
    pub fn slots(&self) -> &[u64] {
        &self.layout.slots
    }

    /// Weights that must be where the device reads them.
    pub fn weights(&self) -> &[Weight] {
        &self.layout.weights
    }

    /// Lists of weights whose addresses the device keeps: the experts of a layer.
    pub fn lists(&self) -> &[Vec<usize>] {
        &self.layout.lists
    }

    /// Small vectors, decoded to f32.
    pub fn constants(&self) -> &[f32] {
        &self.layout.constants
    }

    /// Rope tables, in the order of [`Place::Turns`].
    pub fn turns(&self) -> &[Arc<RopeTable>] {
        &self.layout.turns
    }

    /// KV layers, in the order of [`Place::Kv`].
    pub fn kv_layers(&self) -> &[usize] {
        &self.layout.kv_layers
    }

    /// Bytes for counters of attention in a step of these sizes.
    pub fn counter_bytes(&self, counts: &Counts) -> u64 {
        let ops = self.nodes.iter().filter_map(|&node| match &self.graph.node(node).op {
            Op::Attention(op) => Some(attention::counter_bytes(op, counts)),
            _ => None,
        });
        ops.max().unwrap_or(0)
    }

    /// Bytes for parts of attention in a step of these sizes.
    pub fn partial_bytes(&self, counts: &Counts) -> u64 {
        let ops = self.nodes.iter().filter_map(|&node| match &self.graph.node(node).op {
            Op::Attention(op) => Some(attention::partial_bytes(op, counts)),
            _ => None,
        });
        ops.max().unwrap_or(0)
    }

    /// Bytes for the lists of the mixture of experts in a step of these sizes.
    pub fn group_bytes(&self, counts: &Counts) -> u64 {
        let ops = self.nodes.iter().filter_map(|&node| match &self.graph.node(node).op {
            Op::Experts(op) => Some(experts::group_bytes(op, counts)),
            Op::Route(op) => Some(experts::route_bytes(op, counts)),
            _ => None,
        });
        ops.max().unwrap_or(0)
    }

    /// Bytes for halves in a step of these sizes: rows of x, and each of two matrices of weights.
    pub fn half_bytes(&self, counts: &Counts) -> [u64; 2] {
        if self.features.matrices.is_none() || self.form.exact || self.form.steady {
            return [0, 0];
        }
        let weights = self.nodes.iter().filter_map(|&node| match &self.graph.node(node).op {
            Op::Linear(op) => Some(&op.weight),
            Op::Route(op) => Some(&op.weight),
            _ => None,
        });
        let rows = u64::from(counts.tokens.max(counts.outputs));
        let unpacks = rows >= u64::from(self.features.tuning.unpack_rows);
        weights.fold([0, 0], |[x, w], weight| {
            let fits = unpacks && weight.elements() <= linear::UNPACKED;
            let unpacked = if fits { weight.elements() as u64 * 2 } else { 0 };
            [x.max(rows * weight.cols as u64 * 2), w.max(unpacked)]
        })
    }

    /// The dispatches of a step, in order. One must see what those before it wrote.
    pub fn dispatches(&self, counts: &Counts) -> Vec<Dispatch> {
        let mut emit =
            Emit { program: self, counts, out: Vec::new(), halves_of: None, unpacked: 0 };
        for &node in &self.nodes {
            emit.node(node);
        }
        emit.out
    }
}

/// Writes the dispatches of one step.
struct Emit<'a> {
    program: &'a Program,
    counts: &'a Counts,
    out: Vec<Dispatch>,
    /// Tensor that [`Place::Halves`] holds.
    halves_of: Option<NodeIndex>,
    /// Which [`Place::Unpacked`] is next.
    unpacked: usize,
}

impl<'a> Emit<'a> {
    fn graph(&self) -> &'a LayerGraph {
        &self.program.graph
    }

    fn rows(&self, rows: Rows) -> u32 {
        match rows {
            Rows::Tokens => self.counts.tokens,
            Rows::Outputs => self.counts.outputs,
            Rows::Sequences => self.counts.sequences,
        }
    }

    /// Rows of a node's tensor.
    fn rows_of(&self, node: NodeIndex) -> u32 {
        self.rows(self.graph().node(node).shape.rows)
    }

    fn width(&self, node: NodeIndex) -> u32 {
        self.graph().node(node).shape.width as u32
    }

    /// Where a node's tensor is.
    fn tensor(&self, node: NodeIndex) -> Spot {
        (self.program.layout.place(node), 0)
    }

    /// Where a decoded vector of a node is.
    fn vector(&self, node: NodeIndex, which: usize) -> Option<Spot> {
        let offset = self.program.layout.vectors.get(&(node, which))?;
        Some((Place::Constants, *offset as u64 * 4))
    }

    /// The pieces of a weight.
    fn parts(&self, node: NodeIndex, which: usize) -> &'a WeightParts {
        &self.program.layout.parts[&(node, which)]
    }

    fn turns(&self, table: &Arc<RopeTable>) -> Spot {
        (self.program.layout.turns_place(table), 0)
    }

    fn push(&mut self, dispatch: Dispatch) {
        if dispatch.groups.iter().all(|&count| count > 0) {
            self.out.push(dispatch);
        }
    }

    fn node(&mut self, id: NodeIndex) {
        if self.program.fusion.absorbed.contains_key(&id) {
            return;
        }
        let graph = self.graph();
        let inputs = graph.inputs(id);
        match &graph.node(id).op {
            Op::Embed(op) => self.embed(id, op),
            Op::Norm(op) => self.norm(id, op, inputs[0]),
            Op::Linear(op) => self.linear(id, op, inputs[0]),
            Op::Rope(op) => self.rope(id, op, inputs[0]),
            Op::KvWrite(op) => self.attention_in(id, op),
            Op::Attention(op) => self.attention(id, op, inputs[0], inputs[1]),
            Op::Gate(op) => self.gate(id, op, inputs[0], inputs[1]),
            Op::Activation(op) => self.activation(id, op, inputs[0]),
            Op::Add(_) => self.add(id, inputs[0], inputs[1]),
            Op::Scale(op) => self.scale(id, op, inputs[0]),
            Op::SoftCap(op) => self.soft_cap(id, op, inputs[0]),
            Op::Route(op) => self.route(id, op, inputs[0]),
            Op::Experts(op) => self.experts(id, op, inputs[0], inputs[1]),
            Op::SelectRows(_) => self.select_rows(id, inputs[0]),
            Op::Pool(op) => self.pool(id, op, inputs[0]),
            Op::Normalise(_) => self.normalise(id, inputs[0]),
        }
    }
}
