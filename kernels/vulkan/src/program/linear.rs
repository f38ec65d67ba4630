//! Products with weight matrices.

use trefoil_graph::ops::{Linear, Nonlinearity, Op};
use trefoil_graph::{NodeIndex, Weight};

use super::Emit;
use super::fusion::FEW_ROWS;
use crate::dispatch::{Dispatch, Place, Spot};

/// Number of a function, as `functions.glsl` has it.
pub(super) fn function_number(function: Nonlinearity) -> u32 {
    match function {
        Nonlinearity::Silu => 0,
        Nonlinearity::GeluTanh => 1,
        Nonlinearity::GeluErf => 2,
    }
}

/// Subgroups in a workgroup of few-row products, and matrix rows that each takes.
pub(super) const SUBGROUPS: u32 = 4;
pub(super) const ROWS_PER_SUBGROUP: u32 = 2;

/// Rows of x and outputs of a tile in many-row products.
pub(super) const TILE: u32 = 64;

/// Tile of products through cooperative matrices: rows of x and outputs of a workgroup, then of each
/// of its subgroups.
const COOP_TILE: [u32; 4] = [128, 128, 64, 32];

/// What a linear's kernel does besides the product.
pub(super) struct Extras {
    /// Where the result goes.
    pub(super) out: Spot,
    /// A vector added to each row.
    pub(super) bias: Option<Spot>,
    /// A tensor added to it.
    pub(super) residual: Option<Spot>,
}

impl Emit<'_> {
    /// Do steps of this many rows go through few-row kernels?
    pub(super) fn few(&self, rows: u32) -> bool {
        self.program.form.steady || rows <= FEW_ROWS
    }

    /// The norm that the linears reading it do themselves, its input and its weight.
    fn fused_norm(&self, x: NodeIndex, rows: u32) -> Option<(NodeIndex, Spot, f32)> {
        if !self.program.fusion.norms.contains(&x) || !self.few(rows) {
            return None;
        }
        let Op::Norm(norm) = &self.graph().node(x).op else { return None };
        let weight = self.vector(x, 0)?;
        Some((self.graph().inputs(x)[0], weight, norm.eps))
    }

    pub(super) fn linear(&mut self, id: NodeIndex, op: &Linear, x: NodeIndex) {
        let fusion = &self.program.fusion;
        let few = self.few(self.rows_of(id));
        if fusion.residual.contains_key(&id) || (few && fusion.gate_of.contains_key(&id)) {
            // Runs in its sum's or gate's turn.
            return;
        }
        let extras = Extras { out: self.tensor(id), bias: self.vector(id, 1), residual: None };
        self.product(id, &op.weight, x, &extras);
    }

    /// The linear that makes a sum.
    pub(super) fn linear_sum(&mut self, linear: NodeIndex, sum: NodeIndex) {
        let Op::Linear(op) = &self.graph().node(linear).op else { return };
        let (_, other) = self.program.fusion.residual[&linear];
        let x = self.graph().inputs(linear)[0];
        let residual = Some(self.tensor(other));
        let extras = Extras { out: self.tensor(sum), bias: self.vector(linear, 1), residual };
        self.product(linear, &op.weight, x, &extras);
    }

    /// Two linears of few rows and the gate between them; false if there are many rows.
    pub(super) fn gated_linears(&mut self, gate: NodeIndex, function: Nonlinearity) -> bool {
        let Some(&[first, second]) = self.program.fusion.gated.get(&gate) else { return false };
        if !self.few(self.rows_of(gate)) {
            return false;
        }
        let Op::Linear(op) = &self.graph().node(first).op else { return false };
        let x = self.graph().inputs(first)[0];
        let extras = Extras { out: self.tensor(gate), bias: None, residual: None };
        self.few_rows(first, &op.weight, x, &extras, Some((second, function)));
        true
    }

    /// The product of x with the weight of node `id`.
    pub(super) fn product(
        &mut self,
        id: NodeIndex,
        weight: &Weight,
        x: NodeIndex,
        extras: &Extras,
    ) {
        if self.few(self.rows_of(id)) {
            self.few_rows(id, weight, x, extras, None);
        } else {
            self.many_rows(id, weight, x, extras);
        }
    }

    fn few_rows(
        &mut self,
        id: NodeIndex,
        matrix: &Weight,
        x: NodeIndex,
        extras: &Extras,
        gated: Option<(NodeIndex, Nonlinearity)>,
    ) {
        let rows = self.rows_of(id);
        let norm = self.fused_norm(x, rows);
        let columns = rows.clamp(1, FEW_ROWS).next_power_of_two();
        let subgroup = self.program.features.subgroup;
        let constants = [
            SUBGROUPS * subgroup,
            ROWS_PER_SUBGROUP,
            columns,
            u32::from(gated.is_some()),
            gated.map_or(0, |(_, function)| function_number(function)),
            u32::from(norm.is_some()),
        ];
        let shader = format!("linear_vec.{}", matrix.block.name());
        let source = norm.map_or(x, |(source, ..)| source);
        let width = matrix.rows as u32;
        for (part, &(weight, first)) in self.parts(id, 0).iter().enumerate() {
            let outputs = self.part_rows(id, part);
            let up = gated.map(|(up, _)| (Place::Weight(self.parts(up, 0)[part].0), 0));
            let at = |spot: Spot| (spot.0, spot.1 + first as u64 * 4);
            let groups =
                [outputs.div_ceil(SUBGROUPS * ROWS_PER_SUBGROUP), rows.div_ceil(columns), 1];
            let dispatch = Dispatch::new(shader.as_str(), &constants, groups)
                .read((Place::Weight(weight), 0))
                .read(self.tensor(source))
                .write(at(extras.out))
                .read((Place::Tables, 0))
                .read_if(up)
                .read_if(norm.map(|(_, weight, _)| weight))
                .read_if(extras.bias.map(at))
                .read_if(extras.residual.map(at))
                .words([matrix.cols as u32, outputs, rows, width])
                .words([norm.map_or(0.0, |(.., eps)| eps).to_bits()])
                .words([extras.bias.is_some(), extras.residual.is_some()].map(u32::from));
            self.push(dispatch);
        }
    }

    fn many_rows(&mut self, id: NodeIndex, matrix: &Weight, x: NodeIndex, extras: &Extras) {
        let rows = self.rows_of(id);
        let width = matrix.rows as u32;
        for (part, &(weight, first)) in self.parts(id, 0).iter().enumerate() {
            let outputs = self.part_rows(id, part);
            let at = |spot: Spot| (spot.0, spot.1 + first as u64 * 4);
            let name = matrix.block.name();
            let dispatch = match self.matrices() {
                Some(edge) => {
                    let (constants, groups) = self.coop_tiles(edge, rows, outputs);
                    Dispatch::new(format!("linear_coop.{name}"), &constants, groups)
                }
                None => {
                    let groups = [outputs.div_ceil(TILE), rows.div_ceil(TILE), 1];
                    Dispatch::new(format!("linear_mat.{name}"), &[], groups)
                }
            };
            let dispatch = dispatch
                .read((Place::Weight(weight), 0))
                .read(self.tensor(x))
                .write(at(extras.out))
                .read((Place::Tables, 0))
                .read_if(extras.bias.map(at))
                .read_if(extras.residual.map(at))
                .words([matrix.cols as u32, outputs, rows, width])
                .words([extras.bias.is_some(), extras.residual.is_some()].map(u32::from));
            self.push(dispatch);
        }
    }

    /// Edge of the cooperative matrices to use, if any.
    pub(super) fn matrices(&self) -> Option<u32> {
        self.program.features.matrices.filter(|_| !self.program.form.exact)
    }

    /// Constants and workgroups of products through cooperative matrices.
    fn coop_tiles(&self, edge: u32, rows: u32, outputs: u32) -> ([u32; 6], [u32; 3]) {
        let [tile_r, tile_o, sub_r, sub_o] = COOP_TILE;
        let subgroups = (tile_r / sub_r) * (tile_o / sub_o);
        let threads = subgroups * self.program.features.subgroup;
        let groups = [outputs.div_ceil(tile_o), rows.div_ceil(tile_r), 1];
        ([threads, tile_r, tile_o, sub_r, sub_o, edge], groups)
    }

    /// Rows of the matrix in one of its parts.
    pub(super) fn part_rows(&self, id: NodeIndex, part: usize) -> u32 {
        let (weight, _) = self.parts(id, 0)[part];
        self.program.layout.weights[weight].rows as u32
    }
}
