//! Where a program's tensors, weights and vectors are.

use std::collections::HashMap;
use std::sync::Arc;

use trefoil_graph::ops::{Op, RopeTable};
use trefoil_graph::{LayerGraph, Lifetime, NodeIndex, Rows, Segment, Weight, assign_slots};
use trefoil_kernels::host::decode_vector;

use super::fusion::Fusion;
use crate::dispatch::Place;

/// A weight in pieces that buffers can hold: index in the list of weights, and first row.
pub(super) type WeightParts = Vec<(usize, usize)>;

#[derive(Debug, Default)]
pub(super) struct Layout {
    places: HashMap<NodeIndex, Place>,
    /// Bytes of each slot.
    pub(super) slots: Vec<u64>,
    pub(super) weights: Vec<Weight>,
    pub(super) lists: Vec<Vec<usize>>,
    /// First list of an experts node: gate, up, down follow each other.
    pub(super) expert_lists: HashMap<NodeIndex, usize>,
    pub(super) parts: HashMap<(NodeIndex, usize), WeightParts>,
    pub(super) constants: Vec<f32>,
    /// Offset in `constants`, in elements, of a node's vectors.
    pub(super) vectors: HashMap<(NodeIndex, usize), usize>,
    pub(super) turns: Vec<Arc<RopeTable>>,
    pub(super) kv_layers: Vec<usize>,
}

impl Layout {
    pub(super) fn new(
        graph: &LayerGraph,
        segment: &Segment,
        fusion: &Fusion,
        max_rows: impl Fn(Rows) -> usize,
        max_part: usize,
    ) -> Self {
        let mut layout = Self::default();
        layout.place_tensors(graph, segment, fusion, max_rows);
        for &id in &segment.nodes {
            layout.place_node(graph, id, max_part);
        }
        layout
    }

    /// Gives every tensor a place. A tensor lives until the kernel that reads it runs, which may be
    /// that of a later op; kernels never write what they read.
    fn place_tensors(
        &mut self,
        graph: &LayerGraph,
        segment: &Segment,
        fusion: &Fusion,
        max_rows: impl Fn(Rows) -> usize,
    ) {
        let at: HashMap<NodeIndex, usize> =
            segment.nodes.iter().enumerate().map(|(at, &node)| (node, at)).collect();
        // A fused norm's input is read by the norm's readers.
        let last_read = |node: NodeIndex| {
            let direct = graph.readers(node);
            let through = graph
                .readers(node)
                .filter(|reader| fusion.norms.contains(reader))
                .flat_map(|norm| graph.readers(norm));
            direct
                .chain(through)
                .filter_map(|reader| at.get(&fusion.runs_at(reader)))
                .max()
                .copied()
        };
        let mut internal = Vec::new();
        let mut lifetimes = Vec::new();
        for (first, &node) in segment.nodes.iter().enumerate() {
            let shape = graph.node(node).shape;
            if shape.width == 0 || segment.outputs.contains(&node) || fusion.passing(node) {
                continue;
            }
            let size = shape.width * max_rows(shape.rows) * size_of::<f32>();
            internal.push(node);
            lifetimes.push(Lifetime { first, last: last_read(node).unwrap_or(first), size });
        }
        let plan = assign_slots(&lifetimes);
        self.slots = plan.sizes.iter().map(|&bytes| bytes as u64).collect();
        let slots = internal.into_iter().zip(plan.slot_of.into_iter().map(Place::Slot));
        let inputs = segment.inputs.iter().enumerate().map(|(k, &n)| (n, Place::Input(k)));
        let outputs = segment.outputs.iter().enumerate().map(|(k, &n)| (n, Place::Output(k)));
        self.places = slots.chain(inputs).chain(outputs).collect();
    }

    fn place_node(&mut self, graph: &LayerGraph, id: NodeIndex, max_part: usize) {
        match &graph.node(id).op {
            Op::Embed(op) => {
                let tables = [Some(&op.table), op.positions.as_ref(), op.types.as_ref()];
                for (which, table) in tables.into_iter().enumerate() {
                    if let Some(table) = table {
                        self.weight(id, which, table, max_part);
                    }
                }
            }
            Op::Norm(op) => {
                let mut weight = decode_vector(&op.weight);
                weight.iter_mut().for_each(|w| *w += op.weight_offset);
                self.vector(id, 0, &weight);
                if let Some(bias) = &op.bias {
                    self.vector(id, 1, &decode_vector(bias));
                }
            }
            Op::Linear(op) => {
                self.weight(id, 0, &op.weight, max_part);
                if let Some(bias) = &op.bias {
                    self.vector(id, 1, &decode_vector(bias));
                }
            }
            Op::Rope(op) if !self.turns.iter().any(|table| Arc::ptr_eq(table, &op.table)) => {
                self.turns.push(op.table.clone());
            }
            Op::KvWrite(op) => self.kv(op.layer),
            Op::Attention(op) => self.kv(op.layer),
            Op::Route(op) => self.weight(id, 0, &op.weight, max_part),
            Op::Experts(op) => {
                self.expert_lists.insert(id, self.lists.len());
                for list in [&op.gate, &op.up, &op.down] {
                    let list = list.iter().map(|weight| self.intern(weight)).collect();
                    self.lists.push(list);
                }
            }
            _ => {}
        }
    }

    fn kv(&mut self, layer: usize) {
        if !self.kv_layers.contains(&layer) {
            self.kv_layers.push(layer);
        }
    }

    fn intern(&mut self, weight: &Weight) -> usize {
        self.weights.push(weight.clone());
        self.weights.len() - 1
    }

    /// Adds a weight in pieces of whole rows.
    fn weight(&mut self, id: NodeIndex, which: usize, weight: &Weight, max_part: usize) {
        let rows = (max_part / weight.row_bytes().max(1)).clamp(1, weight.rows.max(1));
        let parts = (0..weight.rows).step_by(rows).map(|first| {
            let part = weight.slice_rows(weight.name.clone(), first, rows.min(weight.rows - first));
            (self.intern(&part), first)
        });
        let parts = parts.collect();
        self.parts.insert((id, which), parts);
    }

    /// Adds values on a 16-byte boundary and returns their offset in elements.
    fn constant(&mut self, values: &[f32]) -> usize {
        let offset = self.constants.len().next_multiple_of(4);
        self.constants.resize(offset, 0.0);
        self.constants.extend_from_slice(values);
        offset
    }

    fn vector(&mut self, id: NodeIndex, which: usize, values: &[f32]) {
        let offset = self.constant(values);
        self.vectors.insert((id, which), offset);
    }

    pub(super) fn place(&self, node: NodeIndex) -> Place {
        self.places[&node]
    }

    pub(super) fn turns_place(&self, table: &Arc<RopeTable>) -> Place {
        let found = self.turns.iter().position(|known| Arc::ptr_eq(known, table));
        Place::Turns(found.expect("placed with its rope"))
    }

    pub(super) fn kv_place(&self, layer: usize) -> Place {
        let found = self.kv_layers.iter().position(|&known| known == layer);
        Place::Kv(found.expect("placed with its ops"))
    }
}

/// Rope tables in two steps: a position's turn is that of its multiple of [`Turns::FINE`] times that
/// of the rest. Cosines and sines are made in f64 here, so that large positions lose nothing.
#[derive(Clone, Copy, Debug)]
pub struct Turns;

impl Turns {
    /// Positions of the fine table.
    pub const FINE: usize = 256;
    /// Entries of the coarse table: positions up to `FINE * COARSE`.
    pub const COARSE: usize = 4096;

    /// Pairs of (cosine, sine): fine `[FINE][pairs]` with the magnitude, coarse `[COARSE][pairs]`,
    /// and both again for long sequences where the table has other frequencies for them.
    pub fn of(table: &RopeTable) -> Vec<f32> {
        let pairs = table.frequencies.len();
        let mut values = Vec::new();
        let forms = if table.long_frequencies.is_some() { 2 } else { 1 };
        for long in (0..forms).map(|form| form == 1) {
            let frequencies = table.for_sequence(long);
            let mut add = |positions: usize, step: usize, magnitude: f64| {
                for position in (0..positions).map(|p| (p * step) as f64) {
                    for &frequency in &frequencies[..pairs] {
                        let (sin, cos) = (position * f64::from(frequency)).sin_cos();
                        values.extend([(cos * magnitude) as f32, (sin * magnitude) as f32]);
                    }
                }
            };
            add(Self::FINE, 1, f64::from(table.magnitude));
            add(Self::COARSE, Self::FINE, 1.0);
        }
        values
    }
}
