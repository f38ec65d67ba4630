//! Which ops run inside another op's kernel.

use std::collections::{BTreeMap, BTreeSet};

use trefoil_graph::ops::{NormKind, Op};
use trefoil_graph::{LayerGraph, NodeIndex, Segment};

use super::attention_in::AttentionIn;

/// How many rows of a step few-row kernels are for; more rows go through tiles.
pub(super) const FEW_ROWS: u32 = 8;

/// Most matrices that one launch of few-row products takes.
pub(super) const SIDES: usize = 3;

/// Ops of a segment that need no dispatch of their own.
#[derive(Debug, Default)]
pub(super) struct Fusion {
    /// A linear whose result goes into a sum alone: the sum's node and the other summand.
    pub(super) residual: BTreeMap<NodeIndex, (NodeIndex, NodeIndex)>,
    /// Sums that a linear makes: the linear, by the sum.
    pub(super) sums: BTreeMap<NodeIndex, NodeIndex>,
    /// A gate and the two linears of the same rows that feed it alone.
    pub(super) gated: BTreeMap<NodeIndex, [NodeIndex; 2]>,
    /// The linears of `gated`, and their gate.
    pub(super) gate_of: BTreeMap<NodeIndex, NodeIndex>,
    /// Linears next to each other that read the same rows and have matrices of one format: by the last
    /// of them, in whose turn they may share a launch.
    pub(super) sides: BTreeMap<NodeIndex, Vec<NodeIndex>>,
    /// The linears of `sides`, and their last.
    pub(super) beside: BTreeMap<NodeIndex, NodeIndex>,
    /// Norms that only linears read: with few rows the linears norm as they go.
    pub(super) norms: BTreeSet<NodeIndex>,
    /// What a KV write's kernel does besides.
    pub(super) writes: BTreeMap<NodeIndex, AttentionIn>,
    /// Norms and ropes of heads that a KV write's kernel does: the KV write.
    pub(super) absorbed: BTreeMap<NodeIndex, NodeIndex>,
}

impl Fusion {
    pub(super) fn new(graph: &LayerGraph, segment: &Segment) -> Self {
        let mut fusion = Self::default();
        let inner =
            |node: NodeIndex| segment.nodes.contains(&node) && !segment.outputs.contains(&node);
        let only_reader = |node: NodeIndex, reader: NodeIndex| {
            inner(node) && graph.readers(node).all(|other| other == reader)
        };
        let linear = |node: NodeIndex| match &graph.node(node).op {
            Op::Linear(op) => Some(op),
            _ => None,
        };
        for &node in &segment.nodes {
            let inputs = graph.inputs(node);
            match &graph.node(node).op {
                Op::Gate(_) => {
                    let pair = [inputs[0], inputs[1]];
                    let [Some(gate), Some(up)] = pair.map(linear) else { continue };
                    let alone = pair.iter().all(|&part| only_reader(part, node));
                    let same = graph.inputs(pair[0]) == graph.inputs(pair[1])
                        && gate.weight.block == up.weight.block
                        && gate.bias.is_none()
                        && up.bias.is_none();
                    if alone && same && pair[0] != pair[1] {
                        fusion.gated.insert(node, pair);
                        fusion.gate_of.extend(pair.map(|part| (part, node)));
                    }
                }
                Op::Add(_) if inputs[0] != inputs[1] => {
                    let made = [1, 0]
                        .into_iter()
                        .find(|&i| linear(inputs[i]).is_some() && only_reader(inputs[i], node));
                    if let Some(i) = made {
                        fusion.residual.insert(inputs[i], (node, inputs[1 - i]));
                        fusion.sums.insert(node, inputs[i]);
                    }
                }
                Op::Norm(op) => {
                    let whole = op.weight.elements() == graph.node(node).shape.width;
                    let plain = op.kind == NormKind::Rms && op.bias.is_none();
                    let linears = graph.readers(node).all(|reader| linear(reader).is_some());
                    if whole && plain && linears && inner(node) {
                        fusion.norms.insert(node);
                    }
                }
                Op::KvWrite(op) => {
                    let write = AttentionIn::new(graph, segment, node, op, only_reader);
                    fusion.absorbed.extend(write.absorbed().map(|part| (part, node)));
                    fusion.writes.insert(node, write);
                }
                _ => {}
            }
        }
        fusion.find_sides(graph, segment);
        fusion
    }

    /// Fills `sides`: runs of linears in the segment's order. What reads the first must run after the
    /// last.
    fn find_sides(&mut self, graph: &LayerGraph, segment: &Segment) {
        let at = |node: NodeIndex| segment.nodes.iter().position(|&other| other == node);
        let format = |node: NodeIndex| match &graph.node(node).op {
            Op::Linear(op) => Some((graph.inputs(node)[0], op.weight.block, op.weight.cols)),
            _ => None,
        };
        let mut runs: Vec<Vec<NodeIndex>> = Vec::new();
        for &node in &segment.nodes {
            if format(node).is_none()
                || self.residual.contains_key(&node)
                || self.gate_of.contains_key(&node)
            {
                continue;
            }
            match runs.last_mut() {
                Some(run) if run.len() < SIDES && format(run[0]) == format(node) => run.push(node),
                _ => runs.push(vec![node]),
            }
        }
        for run in runs.into_iter().filter(|run| run.len() > 1) {
            let last = run[run.len() - 1];
            let readers = run.iter().flat_map(|&node| graph.readers(node));
            let early = |reader: NodeIndex| at(self.runs_at(reader)) <= at(last);
            let within = readers.filter(|&reader| at(reader).is_some()).any(early);
            if !within {
                self.beside.extend(run.iter().map(|&node| (node, last)));
                self.sides.insert(last, run);
            }
        }
    }

    /// Is there no tensor for a node's result, since it never leaves a kernel?
    pub(super) fn passing(&self, node: NodeIndex) -> bool {
        self.absorbed.get(&node).is_some_and(|write| {
            self.writes[write].query.as_ref().is_none_or(|query| query.result != node)
        })
    }

    /// The node at whose turn a node's kernel runs; the later one, where it depends on the step.
    pub(super) fn runs_at(&self, node: NodeIndex) -> NodeIndex {
        if let Some(&(sum, _)) = self.residual.get(&node) {
            return sum;
        }
        let inside = self.gate_of.get(&node).or_else(|| self.absorbed.get(&node));
        let inside = inside.or_else(|| self.beside.get(&node));
        let at = inside.copied().unwrap_or(node);
        self.writes.get(&at).and_then(|write| write.attention).unwrap_or(at)
    }
}
