use std::sync::Arc;

use trefoil_graph::ops::{Op, RopeTable};
use trefoil_graph::{LayerGraph, NodeIndex, Rows, Segment};

/// Ops of a segment that run as one model: all their tensors have as many rows.
#[derive(Clone, Debug)]
pub struct Part {
    /// The ops, in an order in which they can run.
    pub nodes: Vec<NodeIndex>,
    /// Tensors made before it and read in it.
    pub inputs: Vec<NodeIndex>,
    /// Tensors made in it and read after it.
    pub outputs: Vec<NodeIndex>,
    /// What its rows stand for.
    pub rows: Rows,
    /// Tables of angles that its ropes use, each once: their cosines and sines are inputs as well.
    pub tables: Vec<Arc<RopeTable>>,
}

/// What a segment does, one after the other.
#[derive(Clone, Debug)]
pub enum Stage {
    /// A model runs.
    Run(Part),
    /// The wanted rows of a tensor are copied.
    Select {
        /// Tensor of all rows.
        from: NodeIndex,
        /// Tensor of the wanted rows.
        to: NodeIndex,
    },
}

/// The stages of a segment whose ops all have an ONNX form ([`crate::refusal`] gives no reason).
pub fn stages(graph: &LayerGraph, segment: &Segment) -> Vec<Stage> {
    let mut groups: Vec<(Rows, Vec<NodeIndex>)> = Vec::new();
    for &node in &segment.nodes {
        let own = graph.node(node);
        let selects = matches!(own.op, Op::SelectRows(_));
        match groups.last_mut() {
            Some((rows, nodes))
                if *rows == own.shape.rows && !selects && !is_selection(graph, nodes) =>
            {
                nodes.push(node);
            }
            _ => groups.push((own.shape.rows, vec![node])),
        }
    }
    groups.into_iter().map(|(rows, nodes)| stage(graph, segment, rows, nodes)).collect()
}

fn is_selection(graph: &LayerGraph, nodes: &[NodeIndex]) -> bool {
    matches!(nodes, [only] if matches!(graph.node(*only).op, Op::SelectRows(_)))
}

fn stage(graph: &LayerGraph, segment: &Segment, rows: Rows, nodes: Vec<NodeIndex>) -> Stage {
    if is_selection(graph, &nodes) {
        return Stage::Select { from: graph.inputs(nodes[0])[0], to: nodes[0] };
    }
    let cut = graph.cut(nodes);
    let outputs = cut.nodes.iter().copied();
    let outputs = outputs.filter(|n| cut.outputs.contains(n) || segment.outputs.contains(n));
    let mut tables: Vec<Arc<RopeTable>> = Vec::new();
    for &node in &cut.nodes {
        if let Op::Rope(rope) = &graph.node(node).op
            && tables.iter().all(|table| !Arc::ptr_eq(table, &rope.table))
        {
            tables.push(rope.table.clone());
        }
    }
    Stage::Run(Part {
        outputs: outputs.collect(),
        inputs: cut.inputs,
        nodes: cut.nodes,
        rows,
        tables,
    })
}
