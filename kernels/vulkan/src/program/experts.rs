//! Mixture of experts.

use trefoil_graph::NodeIndex;
use trefoil_graph::ops::{Experts, Route};

use super::Emit;
use super::linear::Extras;
use crate::dispatch::{Counts, Dispatch, Place};

pub(super) fn route_bytes(op: &Route, counts: &Counts) -> u64 {
    op.weight.rows as u64 * u64::from(counts.tokens) * 4
}

pub(super) fn group_bytes(op: &Experts, counts: &Counts) -> u64 {
    let pairs = op.top_k as u64 * u64::from(counts.tokens);
    pairs * (op.gate[0].rows + op.down[0].rows) as u64 * 4
}

impl Emit<'_> {
    pub(super) fn route(&mut self, id: NodeIndex, op: &Route, x: NodeIndex) {
        let logits = (Place::Groups, 0);
        self.product(id, &op.weight, x, &Extras { out: logits, bias: None, residual: None });
        let constants = [op.top_k as u32, u32::from(op.renormalise)];
        let dispatch = Dispatch::new("route", &constants, [self.rows_of(id), 1, 1])
            .read(logits)
            .write(self.tensor(id))
            .words([op.weight.rows as u32]);
        self.push(dispatch);
    }

    pub(super) fn experts(&mut self, _id: NodeIndex, _op: &Experts, _x: NodeIndex, _route: NodeIndex) {
        todo!()
    }
}
