//! Products that several devices compute together, by rows of their matrix.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use trefoil_graph::ops::Op;
use trefoil_graph::{LayerGraph, Rows};

use crate::plan::{Plan, PlanError};

/// A product whose rows of output are computed on several devices at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LinearSplit {
    /// Name of the op: `blk.3.ffn_down`, `output`.
    pub op: String,
    /// Who computes how much, in the order of the matrix' rows; together all of them.
    pub shares: Vec<Share>,
}

/// A device's share of a product.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Share {
    /// Name of the device.
    pub device: String,
    /// Rows of the matrix.
    pub rows: usize,
}

impl Plan {
    /// Checks that splits are of products of the model, and that shares make up the whole.
    pub(crate) fn check_splits(
        &self,
        graph: &LayerGraph,
        devices: &[&str],
    ) -> Result<(), PlanError> {
        for (index, bucket) in self.buckets.iter().enumerate() {
            for (number, split) in bucket.splits.iter().enumerate() {
                let wrong = |expected: String, got: String| {
                    let op = split.op.clone();
                    Err(PlanError::Split { bucket: index, op, expected, got })
                };
                let all = match split_rows(graph, &split.op) {
                    Ok(all) => all,
                    Err(got) => return wrong("a product with one matrix".to_owned(), got),
                };
                if bucket.splits[..number].iter().any(|other| other.op == split.op) {
                    return wrong("one split of an op".to_owned(), "two".to_owned());
                }
                let sum = split.shares.iter().try_fold(0usize, |sum, s| sum.checked_add(s.rows));
                if sum != Some(all) || split.shares.iter().any(|share| share.rows == 0) {
                    let rows: Vec<String> =
                        split.shares.iter().map(|share| share.rows.to_string()).collect();
                    return wrong(
                        format!("shares of at least 1 row that make {all} together"),
                        rows.join(" + "),
                    );
                }
                for share in &split.shares {
                    if !devices.contains(&share.device.as_str()) {
                        return Err(PlanError::unknown_device(&share.device, devices));
                    }
                }
            }
        }
        Ok(())
    }
}

/// Rows of the matrix of an op that can be split; else what it is.
pub(crate) fn split_rows(graph: &LayerGraph, name: &str) -> Result<usize, String> {
    let node = graph.nodes().find(|&node| graph.node(node).name == name);
    let node = graph.node(node.ok_or("no op of that name")?);
    match &node.op {
        Op::Linear(_) if node.shape.rows == Rows::Sequences => Err("rows of sequences".to_owned()),
        Op::Linear(linear) => match &linear.bias {
            Some(bias) if bias.block.info().elements > 1 => Err("a bias in blocks".to_owned()),
            _ => Ok(linear.weight.rows),
        },
        other => Err(format!("op of kind {}", other.kind())),
    }
}
