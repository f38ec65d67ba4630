//! Integer products with few rows of x: sizes of their workgroups, and several matrices in one launch.

use trefoil_graph::ops::Op;
use trefoil_graph::{BlockType, NodeIndex, Weight};

use super::Emit;
use super::fusion::SIDES;
use crate::dispatch::{Dispatch, Features, Place, Spot};
use crate::spirv::has_shader;

/// Sizes of integer products with few rows, as `linear_dot.comp` has them.
#[derive(Clone, Copy, Debug)]
pub(super) struct DotProducts {
    /// Threads that share a row of the matrix.
    team: u32,
    /// Teams of a workgroup.
    teams: u32,
    /// Subgroups of a team.
    subgroups: u32,
    /// Elements of a chunk.
    chunk: u32,
    /// Chunks of x that a thread keeps for each of its rows.
    share: u32,
    /// Rows of x that a workgroup takes.
    pub(super) columns: u32,
    /// Matrix rows that a team takes together, and how often.
    rows: u32,
    loops: u32,
    /// Matrices that are multiplied.
    parts: u32,
}

/// Elements of a row that a thread takes together, as the blocks' DOT_FOURS says: where a block's many
/// scales take long, more of them.
fn dot_chunk(block: BlockType) -> u32 {
    if block == BlockType::Q6_K { 64 } else { 32 }
}

/// The largest power of two that is at most `most`; 1 if there is none.
fn below(most: u32) -> u32 {
    1 << most.max(1).ilog2()
}

impl DotProducts {
    /// A thread keeps at most this many elements of x, over all its rows, in registers.
    const ELEMENTS: u32 = 128;
    /// A team takes rows at most this often.
    const LOOPS: u32 = 16;

    /// For `rows` rows of x and matrices of the shape of `matrix` with `outputs` rows in all.
    pub(super) fn new(
        matrix: &Weight,
        outputs: u32,
        rows: u32,
        gated: bool,
        features: &Features,
    ) -> Self {
        let Features { subgroup, tuning, shared_bytes, max_threads, .. } = *features;
        let chunk = dot_chunk(matrix.block);
        let chunks = matrix.cols as u32 / chunk;
        let share = chunks.div_ceil(tuning.dot_threads.max(subgroup));
        let team = chunks.div_ceil(share).next_multiple_of(subgroup);
        let columns = rows.next_power_of_two().min((Self::ELEMENTS / (share * chunk)).max(1));
        let parts = if gated { 2 } else { 1 };
        // Sums are reduced over the subgroup, no more of them than it has threads.
        let together = below(tuning.dot_rows.min(subgroup / parts));
        // The words of a chunk's bytes are dealt to as many threads, next to each other.
        let teams = below((tuning.dot_workgroup.min(max_threads) / team).min(subgroup).min(8));
        // As many workgroups as a GPU holds at once, if there is work for them: making x ready costs
        // as much as several rows of the matrix.
        let share_of_rows = outputs.div_ceil(together * teams * tuning.dot_groups.max(1));
        let loops = share_of_rows.clamp(1, Self::LOOPS);
        let subgroups = team / subgroup;
        let mut kernel =
            Self { team, teams, subgroups, chunk, share, columns, rows: together, loops, parts };
        while kernel.shared_bytes() > shared_bytes && kernel.loops > 1 {
            kernel.loops /= 2;
        }
        while kernel.shared_bytes() > shared_bytes && kernel.columns > 1 {
            kernel.columns /= 2;
        }
        kernel
    }

    /// Rows of the matrix that a workgroup takes.
    pub(super) fn outputs(&self) -> u32 {
        self.teams * self.rows * self.loops
    }

    /// Shared memory: both planes of a team's chunks and their units, then a sum of every subgroup for
    /// each result, and of squares.
    fn shared_bytes(&self) -> u32 {
        let sums = self.parts * self.outputs() * self.subgroups + self.teams * self.subgroups;
        self.team * (2 * self.chunk + 4) + self.columns * sums * 4
    }

    /// All constants; numbers 3 to 5 are not set.
    pub(super) fn constants(&self) -> [u32; 10] {
        let threads = self.team * self.teams;
        let Self { rows, columns, share, loops, teams, subgroups, .. } = *self;
        [threads, rows, columns, 0, 0, 0, share, loops, teams, subgroups]
    }
}

impl Emit<'_> {
    /// Are few-row products with this matrix made of integer products?
    pub(super) fn has_dot(&self, matrix: &Weight) -> bool {
        self.program.features.integer_dot
            && !self.program.form.exact
            && has_shader(&format!("linear_dot.{}", matrix.block.name()))
    }

    /// Is a linear one of several of the same few rows that share a launch? The last one's turn is
    /// when all of them run.
    pub(super) fn side_by_side(&mut self, id: NodeIndex) -> bool {
        let Some(last) = self.program.fusion.beside.get(&id) else { return false };
        let all = &self.program.fusion.sides[last];
        let matrices = all.iter().filter_map(|&node| match &self.graph().node(node).op {
            Op::Linear(op) => Some(&op.weight),
            _ => None,
        });
        let matrices: Vec<&Weight> = matrices.collect();
        let whole = all.iter().all(|&node| self.parts(node, 0).len() == 1);
        if !self.few(self.rows_of(id)) || !whole || !self.has_dot(matrices[0]) {
            return false;
        }
        if id != *last {
            return true;
        }
        let rows = self.rows_of(id);
        let x = self.graph().inputs(id)[0];
        let norm = self.fused_norm(x, rows);
        let outputs = matrices.iter().map(|matrix| matrix.rows as u32).sum();
        let features = &self.program.features;
        let kernel = DotProducts::new(matrices[0], outputs, rows, false, features);
        let mut constants = kernel.constants();
        constants[5] = u32::from(norm.is_some());
        let groups = matrices.iter().map(|matrix| (matrix.rows as u32).div_ceil(kernel.outputs()));
        let groups = [groups.sum(), rows.div_ceil(kernel.columns), 1];
        let shader = format!("linear_dots.{}", matrices[0].block.name());
        let mut dispatch = Dispatch::new(shader, &constants, groups)
            .read(self.tensor(norm.map_or(x, |(source, ..)| source)))
            .read_if(norm.map(|(_, weight, _)| weight));
        // Matrices, results and biases, each with room for the most.
        let of = |spot: &dyn Fn(NodeIndex) -> Option<Spot>| {
            let mut spots = [None; SIDES];
            spots.iter_mut().zip(all).for_each(|(to, &node)| *to = spot(node));
            spots
        };
        let weights = of(&|node| Some((Place::Weight(self.parts(node, 0)[0].0), 0)));
        let results = of(&|node| Some(self.tensor(node)));
        let biases = of(&|node| self.vector(node, 1));
        dispatch = weights.into_iter().fold(dispatch, Dispatch::read_if);
        dispatch = results.into_iter().fold(dispatch, Dispatch::write_if);
        dispatch = biases.into_iter().fold(dispatch, Dispatch::read_if);
        let mut sizes = [0; SIDES];
        for (size, matrix) in sizes.iter_mut().zip(&matrices) {
            *size = matrix.rows as u32;
        }
        let eps = norm.map_or(0.0, |(.., eps)| eps);
        let dispatch = dispatch.words([matrices[0].cols as u32, rows, eps.to_bits()]).words(sizes);
        self.push(dispatch);
        true
    }
}
