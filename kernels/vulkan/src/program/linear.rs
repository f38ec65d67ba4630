//! Products with weight matrices.

use trefoil_graph::ops::{Linear, Nonlinearity, Op};
use trefoil_graph::{BlockType, NodeIndex, Weight};

use super::Emit;
use super::fusion::FEW_ROWS;
use super::linear_dot::DotProducts;
use super::simple::spread;
use crate::dispatch::{Dispatch, Features, Place, Spot};

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

/// A kernel for few rows: rows of x and outputs that a workgroup takes.
struct FewRows {
    shader: String,
    constants: Vec<u32>,
    columns: u32,
    outputs: u32,
}

/// Most elements of a matrix that is turned into halves as a whole.
pub(super) const UNPACKED: usize = 1 << 28;

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
    pub(super) fn fused_norm(&self, x: NodeIndex, rows: u32) -> Option<(NodeIndex, Spot, f32)> {
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
        if self.side_by_side(id) {
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
        let kernel = self.few_rows_kernel(matrix, rows, gated.is_some());
        let mut constants = kernel.constants;
        constants[3] = u32::from(gated.is_some());
        constants[4] = gated.map_or(0, |(_, function)| function_number(function));
        constants[5] = u32::from(norm.is_some());
        let source = norm.map_or(x, |(source, ..)| source);
        let width = matrix.rows as u32;
        for (part, &(weight, first)) in self.parts(id, 0).iter().enumerate() {
            let outputs = self.part_rows(id, part);
            let up = gated.map(|(up, _)| (Place::Weight(self.parts(up, 0)[part].0), 0));
            let at = |spot: Spot| (spot.0, spot.1 + first as u64 * 4);
            let groups = [outputs.div_ceil(kernel.outputs), rows.div_ceil(kernel.columns), 1];
            let dispatch = Dispatch::new(kernel.shader.as_str(), &constants, groups)
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

    /// The kernel for products with `rows` rows of x. Constants 0 to 2 and those after 5 are set.
    fn few_rows_kernel(&self, matrix: &Weight, rows: u32, gated: bool) -> FewRows {
        let subgroup = self.program.features.subgroup;
        let name = matrix.block.name();
        if !self.has_dot(matrix) {
            let columns = rows.clamp(1, FEW_ROWS).next_power_of_two();
            return FewRows {
                shader: format!("linear_vec.{name}"),
                constants: vec![SUBGROUPS * subgroup, ROWS_PER_SUBGROUP, columns, 0, 0, 0],
                columns,
                outputs: SUBGROUPS * ROWS_PER_SUBGROUP,
            };
        }
        let features = &self.program.features;
        let kernel = DotProducts::new(matrix, matrix.rows as u32, rows, gated, features);
        FewRows {
            shader: format!("linear_dot.{name}"),
            constants: kernel.constants().to_vec(),
            columns: kernel.columns,
            outputs: kernel.outputs(),
        }
    }

    fn many_rows(&mut self, id: NodeIndex, matrix: &Weight, x: NodeIndex, extras: &Extras) {
        let rows = self.rows_of(id);
        let width = matrix.rows as u32;
        let cols = matrix.cols as u32;
        // Halves are read eight at a time.
        let edge = self.coop_edge().filter(|_| cols.is_multiple_of(8));
        let from = match edge {
            Some(_) => self.halves(x, rows, cols),
            None => self.tensor(x),
        };
        let name = matrix.block.name();
        for (part, &(weight, first)) in self.parts(id, 0).iter().enumerate() {
            let outputs = self.part_rows(id, part);
            let mut source = (Place::Weight(weight), 0);
            let at = |spot: Spot| (spot.0, spot.1 + first as u64 * 4);
            let dispatch = match edge {
                Some(edge) => {
                    let bias = extras.bias.is_some();
                    let (constants, groups) = self.coop_tiles(edge, rows, outputs, bias);
                    // Stored halves are what the products take.
                    let shader = if matrix.block == BlockType::F16 {
                        "product_coop".to_owned()
                    } else if self.unpacks(rows, matrix) {
                        source = self.unpack(source, name, outputs, cols);
                        "product_coop".to_owned()
                    } else {
                        format!("linear_coop.{name}")
                    };
                    Dispatch::new(shader, &constants, groups)
                }
                None => {
                    let groups = [outputs.div_ceil(TILE), rows.div_ceil(TILE), 1];
                    Dispatch::new(format!("linear_mat.{name}"), &[], groups)
                }
            };
            let dispatch = dispatch
                .read(source)
                .read(from)
                .write(at(extras.out))
                .read((Place::Tables, 0))
                .read_if(extras.bias.map(at))
                .read_if(extras.residual.map(at))
                .words([cols, outputs, rows, width])
                .words([extras.bias.is_some(), extras.residual.is_some()].map(u32::from));
            self.push(dispatch);
        }
    }

    /// Rows of a tensor as halves; made when first asked for.
    fn halves(&mut self, x: NodeIndex, rows: u32, cols: u32) -> Spot {
        let halves = (Place::Halves, 0);
        if self.halves_of != Some(x) {
            self.halves_of = Some(x);
            let eights = rows * cols / 8;
            let dispatch = Dispatch::new("to_half", &[], spread(eights.div_ceil(256)))
                .read(self.tensor(x))
                .write(halves)
                .words([eights]);
            self.push(dispatch);
        }
        halves
    }

    /// Is a matrix turned into halves before the products with this many rows of x?
    fn unpacks(&self, rows: u32, matrix: &Weight) -> bool {
        rows >= self.program.features.tuning.unpack_rows && matrix.elements() <= UNPACKED
    }

    /// A matrix as halves, in the buffer whose turn it is.
    fn unpack(&mut self, from: Spot, name: &str, rows: u32, cols: u32) -> Spot {
        let to = (Place::Unpacked(self.unpacked), 0);
        self.unpacked = 1 - self.unpacked;
        // 256 threads take a run each; the shortest run has four elements.
        let groups = [(cols / 4).div_ceil(256), rows, 1];
        let dispatch = Dispatch::new(format!("unpack.{name}"), &[], groups)
            .read(from)
            .write(to)
            .read((Place::Tables, 0))
            .words([cols, rows]);
        self.push(dispatch);
        to
    }

    /// Edge of the cooperative matrices to use, if any.
    pub(super) fn coop_edge(&self) -> Option<u32> {
        self.program.features.matrices.filter(|_| !self.program.form.exact)
    }

    /// Constants and workgroups of products through cooperative matrices: the usual tile, or a smaller
    /// one where that would leave too few workgroups to keep a GPU busy.
    fn coop_tiles(&self, edge: u32, rows: u32, outputs: u32, bias: bool) -> ([u32; 8], [u32; 3]) {
        let Features { subgroup, tuning, .. } = self.program.features;
        let depth = tuning.coop_tile[4];
        let smaller = [[64, 128, 32, 32, depth], [64, 64, 32, 32, depth], [32, 64, 16, 32, depth]];
        let groups = |tile: &[u32; 5]| [outputs.div_ceil(tile[1]), rows.div_ceil(tile[0]), 1];
        let enough =
            |tile: &&[u32; 5]| groups(tile)[..2].iter().product::<u32>() >= tuning.coop_groups;
        let all = [[tuning.coop_tile].as_slice(), &smaller].concat();
        let tile = all.iter().find(enough).or(all.last()).expect("there are tiles");
        let [tile_r, tile_o, sub_r, sub_o, depth] = *tile;
        let threads = (tile_r / sub_r) * (tile_o / sub_o) * subgroup;
        // Matrices are stored whole where nothing sticks out (and lie on 16-byte boundaries).
        let whole = rows.is_multiple_of(tile_r) && outputs.is_multiple_of(tile_o) && !bias;
        let whole = u32::from(whole);
        ([threads, tile_r, tile_o, sub_r, sub_o, edge, depth, whole], groups(tile))
    }

    /// Rows of the matrix in one of its parts.
    pub(super) fn part_rows(&self, id: NodeIndex, part: usize) -> u32 {
        let (weight, _) = self.parts(id, 0)[part];
        self.program.layout.weights[weight].rows as u32
    }
}
