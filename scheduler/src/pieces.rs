//! What a bucket's devices run, in order: its segments, cut where a product is split.

use std::ops::Range;

use trefoil_graph::{LayerGraph, NodeIndex, Segment};

use crate::plan::BucketPlan;

/// Ops that run as one program, or one product that several devices share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The device; of a split product: the one that gets the whole result.
    pub device: String,
    /// First and last unit, or op where the segment is cut: `blk.0.attn_in..head`.
    pub name: String,
    /// The ops.
    pub segment: Segment,
    /// Place among the bucket's segments.
    pub index: usize,
    /// Who computes what of a split product, in the order of its rows; empty for all else.
    pub shares: Vec<PieceShare>,
}

/// A device's rows of a split product.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PieceShare {
    /// The device.
    pub device: String,
    /// Rows of the matrix.
    pub rows: Range<usize>,
}

impl BucketPlan {
    /// What the devices run, in order. The plan was checked against the graph.
    pub fn pieces(&self, graph: &LayerGraph) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for (index, part) in self.segments().into_iter().enumerate() {
            let segment = graph.segment(&part.units);
            let nodes = segment.nodes.clone();
            if !nodes.iter().any(|&node| self.shares(graph, node).is_some()) {
                let unit = |at: usize| graph.unit(part.units[at]).name();
                let name = format!("{}..{}", unit(0), unit(part.units.len() - 1));
                let shares = Vec::new();
                pieces.push(Piece { device: part.device, name, segment, index, shares });
                continue;
            }
            let mut piece = |nodes: &mut Vec<NodeIndex>, shares: Vec<PieceShare>| {
                let (Some(&first), Some(&last)) = (nodes.first(), nodes.last()) else { return };
                let name = format!("{}..{}", graph.node(first).name, graph.node(last).name);
                let segment = graph.cut(std::mem::take(nodes));
                let device = part.device.clone();
                pieces.push(Piece { device, name, segment, index, shares });
            };
            let mut run = Vec::new();
            for node in nodes {
                match self.shares(graph, node) {
                    None => run.push(node),
                    Some(shares) => {
                        piece(&mut run, Vec::new());
                        piece(&mut vec![node], shares);
                    }
                }
            }
            piece(&mut run, Vec::new());
        }
        pieces
    }

    /// Shares of an op, if it is split.
    fn shares(&self, graph: &LayerGraph, node: NodeIndex) -> Option<Vec<PieceShare>> {
        if self.splits.is_empty() {
            return None;
        }
        let name = &graph.node(node).name;
        let split = self.splits.iter().find(|split| split.op == *name)?;
        let shares = split.shares.iter().scan(0, |begin, share| {
            let rows = *begin..*begin + share.rows;
            *begin = rows.end;
            Some(PieceShare { device: share.device.clone(), rows })
        });
        Some(shares.collect())
    }
}
