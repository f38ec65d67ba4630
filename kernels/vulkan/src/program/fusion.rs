//! Which ops run inside another op's kernel.

use std::collections::{BTreeMap, BTreeSet};

use trefoil_graph::ops::{NormKind, Op};
use trefoil_graph::{LayerGraph, NodeIndex, Segment};

use super::attention_in::AttentionIn;

/// How many rows of a step few-row kernels are for; more rows go through tiles.
pub(super) const FEW_ROWS: u32 = 8;

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
        fusion
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
        let at = inside.copied().unwrap_or(node);
        self.writes.get(&at).and_then(|write| write.attention).unwrap_or(at)
    }
}
