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

#[cfg(test)]
mod tests {
    use trefoil_graph::{BlockType, LowerOptions, ModelFile, UnitId, lower};
    use trefoil_kernels::cases;

    use super::*;
    use crate::{NumericForm, PartWeights, describe, identity, model, refusal};

    fn graph(name: &str) -> LayerGraph {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/models");
        let path = format!("{root}/{name}/model-f32.gguf");
        let file = ModelFile::open(std::path::Path::new(&path)).expect("opens");
        lower(&file, LowerOptions::default()).expect("lowers").1
    }

    fn segment(graph: &LayerGraph, names: &[&str]) -> Segment {
        let units = (0..graph.units().len()).map(UnitId);
        let units = units.filter(|&unit| names.contains(&graph.unit(unit).name().as_str()));
        graph.segment(&units.collect::<Vec<_>>())
    }

    fn parts(graph: &LayerGraph, names: &[&str]) -> Vec<Part> {
        let segment = segment(graph, names);
        assert!(segment.nodes.iter().all(|&node| refusal(graph, node).is_none()), "{names:?}");
        let parts = stages(graph, &segment).into_iter().filter_map(|stage| match stage {
            Stage::Run(part) => Some(part),
            Stage::Select { .. } => None,
        });
        parts.collect()
    }

    #[test]
    fn a_block_without_attention_is_one_model() {
        let graph = graph("smollm");
        let parts = parts(&graph, &["blk.0.attn_out", "blk.0.ffn", "blk.1.attn_in"]);
        let [part] = &parts[..] else { panic!("{} models", parts.len()) };
        assert_eq!((part.inputs.len(), part.tables.len()), (2, 1), "attention's result, residual");
        // Query, key, value, and the residual that goes on.
        assert_eq!(part.outputs.len(), 4);
        let weights = PartWeights::pack(&graph, part, NumericForm::F32);
        let [small, large] = [1, 128].map(|rows| model(&graph, part, &weights, rows));
        assert_eq!(small.inputs.len(), 4, "cosines and sines as well");
        assert_eq!(small.inputs, large.inputs);
        assert!(small.bytes.len() < weights.data.len() / 4, "weights lie beside the model");
    }

    #[test]
    fn the_head_is_a_choice_of_rows_and_a_model() {
        let graph = graph("smollm");
        let stages = stages(&graph, &segment(&graph, &["head"]));
        assert!(
            matches!(&stages[..], [Stage::Select { .. }, Stage::Run(part)] if part.rows == Rows::Outputs)
        );
    }

    #[test]
    fn identities_follow_ops_weights_and_form_and_not_places() {
        let graph = graph("smollm");
        let of = |unit: &str, form| {
            let part = parts(&graph, &[unit]).remove(0);
            (identity(&graph, &part, form), describe(&graph, &part))
        };
        let (first, shape) = of("blk.0.ffn", NumericForm::F32);
        assert_eq!(of("blk.0.ffn", NumericForm::F32).0, first);
        let (other, same) = of("blk.1.ffn", NumericForm::F32);
        assert_eq!(shape, same, "the same form with other weights");
        assert_ne!(first, other);
        assert_ne!(of("blk.0.ffn", NumericForm::F16).0, first);
        assert_ne!(of("blk.0.attn_out", NumericForm::F32).0, first);
    }

    #[test]
    fn what_rounding_costs_is_stated() {
        for (format, form, least, most) in [
            (BlockType::F32, NumericForm::F32, 0.0, 0.0),
            (BlockType::Q8_0, NumericForm::Codes, 0.0, 0.0),
            (BlockType::Q4_0, NumericForm::Int4, 0.0, 0.0),
            (BlockType::F32, NumericForm::F16, 1e-9, 1e-6),
            (BlockType::F32, NumericForm::Int4, 1e-4, 2e-2),
        ] {
            let case = cases::with_formats(vec![format]).remove(0);
            let Some(Stage::Run(part)) = stages(&case.graph, &case.segment()).pop() else {
                panic!("a linear is a model")
            };
            let error = PartWeights::pack(&case.graph, &part, form).error;
            assert!((least..=most).contains(&error), "{format} as {form}: {error:e}");
        }
    }

    #[test]
    fn what_an_npu_cannot_do_has_a_reason() {
        let graph = graph("qwen3moe");
        for unit in ["embed", "blk.0.attn", "blk.0.moe"] {
            let segment = segment(&graph, &[unit]);
            assert!(segment.nodes.iter().any(|&node| refusal(&graph, node).is_some()), "{unit}");
        }
    }
}
