//! Mixture of experts.

use trefoil_graph::NodeIndex;
use trefoil_graph::ops::{Experts, Route};

use super::Emit;
use super::linear::{Extras, ROWS_PER_SUBGROUP, SUBGROUPS, TILE, function_number};
use super::simple::{Elementwise, elementwise, spread};
use crate::dispatch::{Counts, Dispatch, Place, Spot};

/// Most experts that `route.comp` chooses from.
pub(super) const MOST: usize = 1024;

/// Boundary between the parts of the lists.
const PART: u64 = 256;

pub(super) fn route_bytes(op: &Route, counts: &Counts) -> u64 {
    op.weight.rows as u64 * u64::from(counts.tokens) * 4
}

/// Where the parts of a mixture are in [`Place::Groups`].
struct Parts {
    /// `[pairs, ffn]`: gate and up, then their product in the place of the gate.
    gate: u64,
    up: u64,
    /// `[pairs, width]`.
    down: u64,
    /// First pair of each expert, and the pairs in order of experts.
    first: u64,
    order: u64,
    end: u64,
}

impl Parts {
    fn new(op: &Experts, counts: &Counts) -> Self {
        let pairs = op.top_k as u64 * u64::from(counts.tokens);
        let mut at = 0;
        let mut take = |words: u64| {
            let here = at;
            at = (at + words * 4).next_multiple_of(PART);
            here
        };
        let gate = take(pairs * op.gate[0].rows as u64);
        let up = take(pairs * op.gate[0].rows as u64);
        let down = take(pairs * op.down[0].rows as u64);
        let first = take(op.gate.len() as u64 + 1);
        let order = take(pairs);
        Self { gate, up, down, first, order, end: at }
    }
}

pub(super) fn group_bytes(op: &Experts, counts: &Counts) -> u64 {
    Parts::new(op, counts).end
}

impl Emit<'_> {
    pub(super) fn route(&mut self, id: NodeIndex, op: &Route, x: NodeIndex) {
        let logits = (Place::Groups, 0);
        self.product(id, &op.weight, x, &Extras { out: logits, bias: None, residual: None });
        let rows = self.rows_of(id);
        let dispatch = Dispatch::new("route", &[u32::from(op.renormalise)], spread(rows))
            .read(logits)
            .write(self.tensor(id))
            .words([op.weight.rows as u32, op.top_k as u32, rows]);
        self.push(dispatch);
    }

    pub(super) fn experts(&mut self, id: NodeIndex, op: &Experts, x: NodeIndex, route: NodeIndex) {
        let rows = self.rows_of(id);
        let parts = Parts::new(op, self.counts);
        if self.few(rows) {
            self.experts_of_few(id, op, x, route, &parts);
        } else {
            self.experts_of_many(id, op, x, route, &parts);
        }
        let width = self.width(id);
        let sum = Dispatch::new("experts_sum", &[], [width.div_ceil(256), rows, 1])
            .read((Place::Groups, parts.down))
            .read(self.tensor(route))
            .write(self.tensor(id))
            .read_if(None)
            .words([width, op.top_k as u32, 0]);
        self.push(sum);
    }

    /// Addresses of the experts' matrices: gate, up, down.
    fn expert_matrices(&self, id: NodeIndex) -> [Spot; 3] {
        let first = self.program.layout.expert_lists[&id];
        [0, 1, 2].map(|which| (Place::List(first + which), 0))
    }

    fn experts_of_few(
        &mut self,
        id: NodeIndex,
        op: &Experts,
        x: NodeIndex,
        route: NodeIndex,
        parts: &Parts,
    ) {
        let [gate, up, down] = self.expert_matrices(id);
        let threads = SUBGROUPS * self.program.features.subgroup;
        let pairs = self.rows_of(id) * op.top_k as u32;
        let function = function_number(op.function);
        let (ffn, width) = (op.gate[0].rows as u32, op.down[0].rows as u32);
        // Gate and up of one format run in one kernel.
        let same = op.gate[0].block == op.up[0].block;
        let hidden = (Place::Groups, parts.gate);
        let product = |emit: &Self,
                       matrix,
                       second: Option<Spot>,
                       from,
                       out,
                       block: &str,
                       of_pair: bool,
                       rows: u32,
                       cols: usize| {
            let gated = u32::from(second.is_some());
            let constants = [threads, ROWS_PER_SUBGROUP, gated, function, u32::from(of_pair)];
            let groups = [rows.div_ceil(SUBGROUPS * ROWS_PER_SUBGROUP), pairs, 1];
            Dispatch::new(format!("experts_vec.{block}"), &constants, groups)
                .read(matrix)
                .read(from)
                .write(out)
                .read((Place::Tables, 0))
                .read_if(second)
                .read(emit.tensor(route))
                .words([cols as u32, rows, op.top_k as u32])
        };
        let from = self.tensor(x);
        let name = op.gate[0].block.name();
        let cols = op.gate[0].cols;
        if same {
            let both = product(self, gate, Some(up), from, hidden, name, false, ffn, cols);
            self.push(both);
        } else {
            let second = (Place::Groups, parts.up);
            let first = product(self, gate, None, from, hidden, name, false, ffn, cols);
            self.push(first);
            let name = op.up[0].block.name();
            let other = product(self, up, None, from, second, name, false, ffn, cols);
            self.push(other);
            let kind = [Elementwise::Gate as u32, function];
            self.push(elementwise(kind, hidden, Some(second), hidden, pairs * ffn, 0.0));
        }
        let (name, cols) = (op.down[0].block.name(), op.down[0].cols);
        let out = (Place::Groups, parts.down);
        let last = product(self, down, None, hidden, out, name, true, width, cols);
        self.push(last);
    }

    fn experts_of_many(
        &mut self,
        id: NodeIndex,
        op: &Experts,
        x: NodeIndex,
        route: NodeIndex,
        parts: &Parts,
    ) {
        let [gate, up, down] = self.expert_matrices(id);
        let rows = self.rows_of(id);
        let experts = op.gate.len() as u32;
        let (first, order) = ((Place::Groups, parts.first), (Place::Groups, parts.order));
        let sort = Dispatch::new("experts_group", &[], [experts, 1, 1])
            .read(self.tensor(route))
            .write(first)
            .write(order)
            .words([rows, op.top_k as u32]);
        self.push(sort);
        let product = |matrix, from, out, list: &[trefoil_graph::Weight], of_pair: bool| {
            let weight = &list[0];
            let groups = [(weight.rows as u32).div_ceil(TILE), rows.div_ceil(TILE), experts];
            let shader = format!("experts_mat.{}", weight.block.name());
            Dispatch::new(shader, &[u32::from(of_pair)], groups)
                .read(matrix)
                .read(from)
                .write(out)
                .read((Place::Tables, 0))
                .read(first)
                .read(order)
                .words([weight.cols as u32, weight.rows as u32, op.top_k as u32])
        };
        let (hidden, second) = ((Place::Groups, parts.gate), (Place::Groups, parts.up));
        let x = self.tensor(x);
        self.push(product(gate, x, hidden, &op.gate, false));
        self.push(product(up, x, second, &op.up, false));
        let kind = [Elementwise::Gate as u32, function_number(op.function)];
        let count = rows * op.top_k as u32 * op.gate[0].rows as u32;
        self.push(elementwise(kind, hidden, Some(second), hidden, count, 0.0));
        self.push(product(down, hidden, (Place::Groups, parts.down), &op.down, true));
    }
}
