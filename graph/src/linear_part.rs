//! Some rows of a linear's matrix as a graph of their own: what one device computes where a product is
//! split.

use std::ops::Range;

use crate::ops::{Embed, Linear, Op, SelectRows};
use crate::{GraphBuilder, LayerGraph, NodeIndex, Rows, Segment, UnitId, UnitKind, Weight};

/// Rows `part` of the product `node`: a graph and the segment of it that computes them. The segment
/// reads one tensor, of the shape that `node` reads, and makes one of `part.len()` columns; it uses the
/// matrix where it lies.
///
/// `None` if `node` is no linear with rows of tokens or of outputs, `part` is empty or not within the
/// matrix, or the bias cannot be cut there.
pub fn linear_part(
    graph: &LayerGraph,
    node: NodeIndex,
    part: Range<usize>,
) -> Option<(LayerGraph, Segment)> {
    let whole = graph.node(node);
    let Op::Linear(linear) = &whole.op else { return None };
    if part.is_empty() || part.end > linear.weight.rows {
        return None;
    }
    let weight = linear.weight.slice_rows(linear.weight.name.clone(), part.start, part.len());
    let bias = match &linear.bias {
        None => None,
        Some(bias) => Some(elements(bias, part)?),
    };
    // Says of which shape the input is; never run.
    let width = linear.weight.cols;
    let table = Weight::from_f32("input", 1, width, &vec![0.0; width]);
    let mut builder = GraphBuilder::default();
    builder.begin_unit(UnitKind::Embed, None);
    let embed = Embed { table, scale: 1.0, positions: None, types: None };
    let mut input = builder.push("input", embed, &[]).ok()?;
    match whole.shape.rows {
        Rows::Tokens => {}
        Rows::Outputs => input = builder.push("input_rows", SelectRows, &[input]).ok()?,
        Rows::Sequences => return None,
    }
    let unit = graph.unit(whole.unit);
    builder.begin_unit(unit.kind, unit.layer);
    let output = builder.push(whole.name.clone(), Linear { weight, bias }, &[input]).ok()?;
    let graph = builder.finish(output);
    let segment = graph.segment(&[UnitId(1)]);
    Some((graph, segment))
}

/// Elements `part` of a vector whose elements are stored one by one.
fn elements(vector: &Weight, part: Range<usize>) -> Option<Weight> {
    let info = vector.block.info();
    let offset = vector.offset() + part.start * info.bytes;
    let fits = info.elements == 1 && part.end <= vector.elements();
    let (name, storage) = (vector.name.clone(), vector.storage().clone());
    fits.then(|| Weight::new(name, vector.block, 1, part.len(), storage, offset)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_shows_its_rows_of_the_matrix_and_of_the_bias() {
        let weight = Weight::from_f32("w", 4, 2, &[0., 1., 2., 3., 4., 5., 6., 7.]);
        let bias = Weight::from_f32("b", 1, 4, &[10., 11., 12., 13.]);
        let table = Weight::from_f32("t", 3, 2, &[0.0; 6]);
        let mut builder = GraphBuilder::default();
        builder.begin_unit(UnitKind::Embed, None);
        let embed = Embed { table, scale: 1.0, positions: None, types: None };
        let input = builder.push("embed", embed, &[]).expect("fits");
        builder.begin_unit(UnitKind::Head, None);
        let linear = Linear { weight: weight.clone(), bias: Some(bias) };
        let node = builder.push("output", linear, &[input]).expect("fits");
        let graph = builder.finish(node);
        let (part, segment) = linear_part(&graph, node, 1..3).expect("is a linear");
        let Op::Linear(linear) = &part.node(segment.outputs[0]).op else { panic!("a linear") };
        assert_eq!(linear.weight.bytes(), [weight.row(1), weight.row(2)].concat());
        let bias: &[f32] = &[11.0, 12.0];
        let want: Vec<u8> = bias.iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(linear.bias.as_ref().expect("cut too").bytes(), want);
        assert_eq!((segment.inputs.len(), part.node(part.output()).shape.width), (1, 2));
        assert!(linear_part(&graph, node, 3..5).is_none(), "outside");
        assert!(linear_part(&graph, node, 2..2).is_none(), "empty");
        assert!(linear_part(&graph, input, 0..1).is_none(), "no linear");
    }
}
