//! What a bucket's devices run, in order: its segments, cut where a product is split and where
//! weights are streamed.

use std::ops::Range;

use trefoil_graph::{LayerGraph, NodeIndex, Segment, UnitId};

use crate::plan::{BucketPlan, SegmentPlan};

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
    /// Are its weights streamed to the device? All of them then are.
    pub streamed: bool,
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
        let runs = self.segments().into_iter().enumerate().flat_map(|(index, segment)| {
            let device = segment.device;
            let runs = self.runs(graph, &segment.units).into_iter();
            runs.map(move |(units, streamed)| (index, device.clone(), units, streamed))
        });
        for (index, device, units, streamed) in runs {
            let segment = graph.segment(&units);
            let nodes = segment.nodes.clone();
            if !nodes.iter().any(|&node| self.shares(graph, node).is_some()) {
                let unit = |at: usize| graph.unit(units[at]).name();
                let name = format!("{}..{}", unit(0), unit(units.len() - 1));
                let shares = Vec::new();
                pieces.push(Piece { device, name, segment, index, shares, streamed });
                continue;
            }
            let mut piece = |nodes: &mut Vec<NodeIndex>, shares: Vec<PieceShare>| {
                let (Some(&first), Some(&last)) = (nodes.first(), nodes.last()) else { return };
                let name = format!("{}..{}", graph.node(first).name, graph.node(last).name);
                let segment = graph.cut(std::mem::take(nodes));
                let (device, streamed) = (device.clone(), false);
                pieces.push(Piece { device, name, segment, index, shares, streamed });
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

    /// Is a unit's weights' copy made for every step?
    pub fn is_streamed(&self, unit: usize) -> bool {
        self.streamed.contains(&self.units[unit].unit)
    }

    /// The bucket's segments, cut where weights are streamed; are they, in each?
    pub(crate) fn streamed_runs(&self, graph: &LayerGraph) -> Vec<(SegmentPlan, bool)> {
        let segments = self.segments().into_iter().flat_map(|segment| {
            let runs = self.runs(graph, &segment.units).into_iter();
            runs.map(move |(units, streamed)| {
                (SegmentPlan { device: segment.device.clone(), units }, streamed)
            })
        });
        segments.collect()
    }

    /// Cuts the units of a segment where weights begin or end to be streamed, and streamed ones by
    /// layers: what is streamed at a time is at most a layer. Units without weights go with those
    /// before them.
    fn runs(&self, graph: &LayerGraph, units: &[UnitId]) -> Vec<(Vec<UnitId>, bool)> {
        if self.streamed.is_empty() {
            return vec![(units.to_vec(), false)];
        }
        /// Streamed or not, and the layer where that cuts; unknown while no unit has weights.
        type Kind = Option<(bool, Option<usize>)>;
        let mut runs: Vec<(Vec<UnitId>, Kind)> = Vec::new();
        for &id in units {
            let unit = graph.unit(id);
            let mut weights = unit.nodes.iter().flat_map(|&node| graph.node(node).op.weights());
            let streamed = self.is_streamed(id.0);
            let kind =
                weights.next().is_some().then_some((streamed, unit.layer.filter(|_| streamed)));
            match runs.last_mut() {
                Some((run, known)) if kind.is_none() || known.is_none() || *known == kind => {
                    run.push(id);
                    *known = known.or(kind);
                }
                _ => runs.push((vec![id], kind)),
            }
        }
        let streams =
            |kind: Option<(bool, Option<usize>)>| kind.is_some_and(|(streamed, _)| streamed);
        runs.into_iter().map(|(units, kind)| (units, streams(kind))).collect()
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
