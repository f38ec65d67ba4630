use trefoil_graph::ops::Op;
use trefoil_graph::{LayerGraph, NodeIndex, Rows};

/// Why an op has no ONNX form here; `None` where it has one (or is a mere choice of rows).
pub fn refusal(graph: &LayerGraph, node: NodeIndex) -> Option<String> {
    let own = graph.node(node);
    match &own.op {
        Op::Norm(_)
        | Op::Linear(_)
        | Op::Gate(_)
        | Op::Activation(_)
        | Op::Add(_)
        | Op::Scale(_)
        | Op::SoftCap(_)
        | Op::Normalise(_)
        | Op::SelectRows(_) => None,
        Op::Rope(_) if own.shape.rows == Rows::Tokens => None,
        Op::Rope(_) => Some("rope of rows other than those of the step".to_owned()),
        Op::Embed(_) => {
            Some("looking up tokens is a read of memory, not work for an NPU".to_owned())
        }
        Op::KvWrite(_) | Op::Attention(_) => {
            Some("keys and values grow from step to step, an NPU's shapes are static".to_owned())
        }
        Op::Route(_) | Op::Experts(_) => {
            Some("which experts run is known only in the step, an NPU's work is fixed".to_owned())
        }
        Op::Pool(_) => Some("rows per sequence change from step to step".to_owned()),
    }
}
