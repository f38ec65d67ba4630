//! What tells one part from another: for caches, and for people.

use std::fmt::Write as _;

use trefoil_graph::ops::Op;
use trefoil_graph::{LayerGraph, NodeIndex};

use crate::{KERNEL_SET, NumericForm, Part};

/// A part's form without its weights: ops in order with widths and number formats, as one line.
pub fn describe(graph: &LayerGraph, part: &Part) -> String {
    let mut text = String::new();
    for &node in &part.nodes {
        let own = graph.node(node);
        if !text.is_empty() {
            text.push_str(", ");
        }
        text.push_str(own.op.kind());
        let written = match &own.op {
            Op::Linear(op) => {
                let (block, cols, rows) = (op.weight.block, op.weight.cols, op.weight.rows);
                write!(text, " {cols}->{rows} {block}")
            }
            Op::Norm(op) => write!(text, " {:?} {}/{}", op.kind, own.shape.width, op.weight.cols),
            Op::Rope(op) => write!(text, " {:?} {}/{}", op.style, own.shape.width, op.head_dim),
            Op::Gate(op) => write!(text, " {:?} {}", op.function, own.shape.width),
            Op::Activation(op) => write!(text, " {:?} {}", op.function, own.shape.width),
            _ => write!(text, " {}", own.shape.width),
        };
        written.expect("strings take text");
    }
    text
}

/// blake3 of all that a part's compiled model follows from: the version of what is built here, its ops
/// with their constants, how they are joined, its weights' bytes, the numeric form. Rows are not in it.
pub fn identity(graph: &LayerGraph, part: &Part, form: NumericForm) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    let mut line = |text: String| {
        hasher.update(text.as_bytes());
        hasher.update(b"\n");
    };
    line(format!("trefoil segment, kernels {KERNEL_SET}, {form}"));
    line(describe(graph, part));
    // Places instead of numbers of the graph: the same block in two layers differs in weights only.
    let place = |node: &NodeIndex| {
        let inside = part.nodes.iter().position(|other| other == node).map(|i| format!("n{i}"));
        let outside =
            || part.inputs.iter().position(|other| other == node).map(|i| format!("i{i}"));
        inside.or_else(outside).unwrap_or_default()
    };
    for node in &part.nodes {
        let own = graph.node(*node);
        let inputs: Vec<String> = graph.inputs(*node).iter().map(place).collect();
        let table = match &own.op {
            Op::Rope(op) => part.tables.iter().position(|t| std::sync::Arc::ptr_eq(t, &op.table)),
            _ => None,
        };
        let constants = match &own.op {
            Op::Norm(op) => format!("{} {}", op.eps.to_bits(), op.weight_offset.to_bits()),
            Op::Scale(op) => op.factor.to_bits().to_string(),
            Op::SoftCap(op) => op.cap.to_bits().to_string(),
            _ => String::new(),
        };
        line(format!("{} {inputs:?} {table:?} {constants}", place(node)));
    }
    line(part.tables.iter().map(|table| format!("{} ", table.frequencies.len())).collect());
    line(part.outputs.iter().map(|node| format!("{} ", place(node))).collect());
    for weight in part.nodes.iter().flat_map(|&node| graph.node(node).op.weights()) {
        hasher.update(weight.block.name().as_bytes());
        hasher.update(&(weight.len_bytes() as u64).to_le_bytes());
        hasher.update(weight.bytes());
    }
    hasher.finalize()
}
