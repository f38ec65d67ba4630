//! The graph as Graphviz draws it.

use std::fmt::Write;

use crate::{LayerGraph, NodeIndex, Rows};

/// The graph in Graphviz's language (`dot -Tsvg`): a cluster per unit, a box per op with its kind,
/// its result's shape and its weights' types.
pub fn dot(graph: &LayerGraph) -> String {
    let mut out = String::from("digraph model {\n  node [shape=box, fontname=\"sans-serif\"];\n");
    out.push_str("  graph [fontname=\"sans-serif\", style=rounded];\n");
    for (index, unit) in graph.units().iter().enumerate() {
        let name = quoted(&unit.name());
        line(&mut out, format_args!("  subgraph cluster_{index} {{\n    label={name};"));
        for &node in &unit.nodes {
            let label = quoted(&label(graph, node));
            line(&mut out, format_args!("    n{} [label={label}];", node.index()));
        }
        out.push_str("  }\n");
    }
    for node in graph.nodes() {
        for source in graph.inputs(node) {
            line(&mut out, format_args!("  n{} -> n{};", source.index(), node.index()));
        }
    }
    out.push_str("}\n");
    out
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    writeln!(out, "{text}").expect("a string takes everything");
}

fn label(graph: &LayerGraph, node: NodeIndex) -> String {
    let node = graph.node(node);
    let rows = match node.shape.rows {
        Rows::Tokens => "tokens",
        Rows::Outputs => "outputs",
        Rows::Sequences => "sequences",
    };
    let mut types: Vec<_> = node.op.weights().iter().map(|weight| weight.block.name()).collect();
    types.sort_unstable();
    types.dedup();
    let weights = if types.is_empty() { String::new() } else { format!("\n{}", types.join(" ")) };
    format!("{}\n{} [{rows}, {}]{weights}", node.name, node.op.kind(), node.shape.width)
}

/// A quoted string; a line break is `\n` in it.
fn quoted(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("\"{escaped}\"")
}
