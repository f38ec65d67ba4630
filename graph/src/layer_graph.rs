//! The layer graph: ops as nodes, tensors as edges, grouped into units of placement.

use std::collections::HashSet;
use std::fmt;

use petgraph::Direction;
use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::EdgeRef;

use crate::StepShape;
use crate::ops::{Op, OpCost, TensorShape};

/// An op in its place. Its output tensor is known by the node's index.
#[derive(Clone, Debug)]
pub struct Node {
    /// Role name as users write it in pins and see it in metrics: `blk.7.ffn_down`.
    pub name: String,
    /// The computation.
    pub op: Op,
    /// Unit that the op belongs to.
    pub unit: UnitId,
    /// Shape of the output tensor.
    pub shape: TensorShape,
}

/// Index of a unit in [`LayerGraph::units`].
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct UnitId(pub usize);

/// What a unit holds (DESIGN: units of placement).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnitKind {
    /// Token look-up.
    Embed,
    /// Norm, query/key/value projections, rope.
    AttnIn,
    /// KV write and attention.
    Attn,
    /// Output projection and residual.
    AttnOut,
    /// Feed-forward network, norm to residual.
    Ffn,
    /// Mixture of experts, norm to residual.
    Moe,
    /// Final norm and logits, or pooling.
    Head,
}

impl UnitKind {
    /// Name as it stands in unit names.
    pub fn name(self) -> &'static str {
        match self {
            Self::Embed => "embed",
            Self::AttnIn => "attn_in",
            Self::Attn => "attn",
            Self::AttnOut => "attn_out",
            Self::Ffn => "ffn",
            Self::Moe => "moe",
            Self::Head => "head",
        }
    }
}

/// Ops that always stay together.
#[derive(Clone, Debug)]
pub struct Unit {
    /// What it holds.
    pub kind: UnitKind,
    /// Block number, if it belongs to one.
    pub layer: Option<usize>,
    /// Its ops, in an order in which they can run.
    pub nodes: Vec<NodeIndex>,
}

impl Unit {
    /// `embed`, `blk.3.attn_in`, `head`.
    pub fn name(&self) -> String {
        match self.layer {
            Some(layer) => format!("blk.{layer}.{}", self.kind.name()),
            None => self.kind.name().to_owned(),
        }
    }
}

/// Shape of one layer's KV pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct KvShape {
    /// Heads of keys and of values.
    pub kv_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// Positions a query sees at most.
    pub window: Option<u32>,
}

impl KvShape {
    /// Elements that one token stores: its keys and its values.
    pub fn elements_per_token(&self) -> usize {
        2 * self.kv_heads * self.head_dim
    }
}

/// One model as a graph. Units are stored in an order in which they can run.
pub struct LayerGraph {
    graph: DiGraph<Node, usize>,
    units: Vec<Unit>,
    kv: Vec<KvShape>,
    output: NodeIndex,
}

/// A graph that cannot be built: an op's inputs do not fit.
#[derive(Debug, thiserror::Error)]
#[error("{name} ({kind}): {problem}; is the file damaged, or a variant that is not known here?")]
pub struct ShapeError {
    /// Role name of the op.
    pub name: String,
    /// Kind of the op.
    pub kind: &'static str,
    /// Expected and got.
    pub problem: String,
}

impl LayerGraph {
    /// All units, in an order in which they can run.
    pub fn units(&self) -> &[Unit] {
        &self.units
    }

    /// A unit.
    pub fn unit(&self, id: UnitId) -> &Unit {
        &self.units[id.0]
    }

    /// An op.
    pub fn node(&self, node: NodeIndex) -> &Node {
        &self.graph[node]
    }

    /// All ops, in an order in which they can run.
    pub fn nodes(&self) -> impl Iterator<Item = NodeIndex> + '_ {
        self.units.iter().flat_map(|unit| unit.nodes.iter().copied())
    }

    /// Shapes of the KV pages, by KV layer.
    pub fn kv(&self) -> &[KvShape] {
        &self.kv
    }

    /// The node whose tensor is the model's result: logits or embeddings.
    pub fn output(&self) -> NodeIndex {
        self.output
    }

    /// Nodes whose tensors `node` reads, in the order of its operands.
    pub fn inputs(&self, node: NodeIndex) -> Vec<NodeIndex> {
        let mut edges: Vec<_> = self
            .graph
            .edges_directed(node, Direction::Incoming)
            .map(|edge| (*edge.weight(), edge.source()))
            .collect();
        edges.sort_by_key(|(operand, _)| *operand);
        edges.into_iter().map(|(_, source)| source).collect()
    }

    /// Nodes that read `node`'s tensor.
    pub fn readers(&self, node: NodeIndex) -> impl Iterator<Item = NodeIndex> + '_ {
        self.graph.neighbors_directed(node, Direction::Outgoing)
    }

    /// Cost of one op in a step.
    pub fn node_cost(&self, node: NodeIndex, step: &StepShape) -> OpCost {
        let inputs: Vec<_> = self.inputs(node).iter().map(|&n| self.graph[n].shape).collect();
        let node = &self.graph[node];
        node.op.cost(&inputs, node.shape, step)
    }

    /// Cost of one unit in a step.
    pub fn unit_cost(&self, unit: UnitId, step: &StepShape) -> OpCost {
        self.units[unit.0].nodes.iter().map(|&node| self.node_cost(node, step)).sum()
    }

    /// Cost of the whole model in a step.
    pub fn cost(&self, step: &StepShape) -> OpCost {
        self.nodes().map(|node| self.node_cost(node, step)).sum()
    }

    /// Index of the KV layer that a unit writes and reads, if it does.
    pub fn unit_kv_layer(&self, unit: UnitId) -> Option<usize> {
        self.units[unit.0].nodes.iter().find_map(|&node| self.kv_layer(node))
    }

    /// Index of the KV layer that an op reads, if it is attention.
    pub fn kv_layer(&self, node: NodeIndex) -> Option<usize> {
        match &self.graph[node].op {
            Op::Attention(op) => Some(op.layer),
            _ => None,
        }
    }

    /// The part of the graph made of `units` (ascending), with the tensors that cross its border.
    pub fn segment(&self, units: &[UnitId]) -> Segment {
        self.cut(units.iter().flat_map(|unit| self.units[unit.0].nodes.iter().copied()).collect())
    }

    /// The part of the graph made of `nodes`, which are in an order in which they can run, with the
    /// tensors that cross its border.
    pub fn cut(&self, nodes: Vec<NodeIndex>) -> Segment {
        let mut units: Vec<UnitId> = nodes.iter().map(|&node| self.graph[node].unit).collect();
        units.dedup();
        let within: HashSet<NodeIndex> = nodes.iter().copied().collect();
        let inside = |node: NodeIndex| within.contains(&node);
        let mut inputs = Vec::new();
        let mut outputs = Vec::new();
        for &node in &nodes {
            for source in self.inputs(node) {
                if !inside(source) && !inputs.contains(&source) {
                    inputs.push(source);
                }
            }
            if node == self.output || self.readers(node).any(|reader| !inside(reader)) {
                outputs.push(node);
            }
        }
        Segment { units, nodes, inputs, outputs }
    }
}

impl fmt::Debug for LayerGraph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (ops, units) = (self.graph.node_count(), self.units.len());
        write!(f, "LayerGraph({ops} ops in {units} units, {} KV layers)", self.kv.len())
    }
}

/// Ops next to each other, compiled as one program: whole units, or parts where one of their products
/// is split over devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The units that it has ops of, ascending.
    pub units: Vec<UnitId>,
    /// The ops, in an order in which they can run.
    pub nodes: Vec<NodeIndex>,
    /// Tensors made outside and read inside.
    pub inputs: Vec<NodeIndex>,
    /// Tensors made inside and read outside, or the model's result.
    pub outputs: Vec<NodeIndex>,
}

/// Builds a [`LayerGraph`] op by op, checking shapes as it goes.
#[derive(Default)]
pub struct GraphBuilder {
    graph: DiGraph<Node, usize>,
    units: Vec<Unit>,
    kv: Vec<KvShape>,
}

impl GraphBuilder {
    /// Starts the next unit: all ops pushed from here on belong to it.
    pub fn begin_unit(&mut self, kind: UnitKind, layer: Option<usize>) {
        self.units.push(Unit { kind, layer, nodes: Vec::new() });
    }

    /// Adds an op to the current unit and returns the index of its output tensor.
    pub fn push(
        &mut self,
        name: impl Into<String>,
        op: impl Into<Op>,
        inputs: &[NodeIndex],
    ) -> Result<NodeIndex, ShapeError> {
        let (name, op) = (name.into(), op.into());
        let shapes: Vec<TensorShape> = inputs.iter().map(|&n| self.graph[n].shape).collect();
        let shape = op.output(&shapes).map_err(|problem| ShapeError {
            name: name.clone(),
            kind: op.kind(),
            problem,
        })?;
        let unit = UnitId(self.units.len().checked_sub(1).expect("begin_unit comes first"));
        let node = self.graph.add_node(Node { name, op, unit, shape });
        for (operand, &source) in inputs.iter().enumerate() {
            self.graph.add_edge(source, node, operand);
        }
        self.units[unit.0].nodes.push(node);
        Ok(node)
    }

    /// Declares the next KV layer and returns its index.
    pub fn kv_layer(&mut self, shape: KvShape) -> usize {
        self.kv.push(shape);
        self.kv.len() - 1
    }

    /// Width of a tensor.
    pub fn width(&self, node: NodeIndex) -> usize {
        self.graph[node].shape.width
    }

    /// The finished graph with `output` as its result.
    pub fn finish(self, output: NodeIndex) -> LayerGraph {
        LayerGraph { graph: self.graph, units: self.units, kv: self.kv, output }
    }
}

/// Where each tensor of a program lives: tensors that are never alive together share a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotPlan {
    /// Slot of each tensor asked about, in the order of the list given to [`assign_slots`].
    pub slot_of: Vec<usize>,
    /// Size of the largest tensor in each slot.
    pub sizes: Vec<usize>,
}

/// Lifetime of a tensor in the order of ops: made at `first`, last read at `last` (inclusive).
#[derive(Clone, Copy, Debug)]
pub struct Lifetime {
    /// Position of the op that makes it.
    pub first: usize,
    /// Position of the last op that reads it.
    pub last: usize,
    /// Its size, in any one unit.
    pub size: usize,
}

/// Gives each tensor a slot such that no two tensors alive at the same op share one. `tensors` is in
/// the order of `first`. Takes the free slot that needs the least growth.
pub fn assign_slots(tensors: &[Lifetime]) -> SlotPlan {
    let mut free_from: Vec<usize> = Vec::new();
    let mut sizes: Vec<usize> = Vec::new();
    let mut slot_of = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        let best = (0..sizes.len())
            .filter(|&slot| free_from[slot] <= tensor.first)
            .min_by_key(|&slot| (tensor.size.saturating_sub(sizes[slot]), sizes[slot]));
        let slot = best.unwrap_or_else(|| {
            free_from.push(0);
            sizes.push(0);
            sizes.len() - 1
        });
        sizes[slot] = sizes[slot].max(tensor.size);
        free_from[slot] = tensor.last + 1;
        slot_of.push(slot);
    }
    SlotPlan { slot_of, sizes }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_alive_together_never_share_a_slot() {
        let life = |first, last, size| Lifetime { first, last, size };
        let tensors = [life(0, 3, 8), life(1, 2, 4), life(3, 4, 4), life(4, 5, 8), life(4, 6, 2)];
        let plan = assign_slots(&tensors);
        for (i, a) in tensors.iter().enumerate() {
            for (j, b) in tensors.iter().enumerate().skip(i + 1) {
                let together = a.first <= b.last && b.first <= a.last;
                assert!(!(together && plan.slot_of[i] == plan.slot_of[j]), "{i} and {j}");
            }
            assert!(plan.sizes[plan.slot_of[i]] >= a.size);
        }
        assert!(plan.sizes.len() < tensors.len(), "slots are reused");
    }
}
