//! Ops that touch each element once: look-ups, norms, element by element, row by row.

use trefoil_graph::NodeIndex;
use trefoil_graph::ops::{
    Activation, Embed, Gate, Norm, NormKind, Op, Pool, Pooling, Scale, SoftCap,
};

use super::linear::function_number;
use super::{Emit, attention, experts};
use crate::dispatch::{Dispatch, Features, Place, Spot, StepField};
use crate::spirv::has_shader;

/// Most workgroups along one axis that every device takes.
const AXIS: u32 = 65_535;

/// `count` workgroups over the first two axes.
pub(super) fn spread(count: u32) -> [u32; 3] {
    let y = count.div_ceil(AXIS).max(1);
    [count.div_ceil(y), y, 1]
}

/// `count` elements of `out` from those of `a` and `b`.
pub(super) fn elementwise(
    kind: [u32; 2],
    a: Spot,
    b: Option<Spot>,
    out: Spot,
    count: u32,
    number: f32,
) -> Dispatch {
    Dispatch::new("elementwise", &kind, spread(count.div_ceil(1024)))
        .read(a)
        .read_if(b)
        .write(out)
        .words([count, number.to_bits()])
}

/// What `elementwise.comp` computes, as it numbers it.
#[derive(Clone, Copy)]
pub(super) enum Elementwise {
    Gate = 0,
    Activation = 1,
    Add = 2,
    Scale = 3,
    SoftCap = 4,
}

impl Emit<'_> {
    pub(super) fn embed(&mut self, id: NodeIndex, op: &Embed) {
        let rows = self.rows_of(id);
        let tables = [
            (Some(&op.table), StepField::Tokens, op.scale, false),
            (op.positions.as_ref(), StepField::Positions, 1.0, false),
            (op.types.as_ref(), StepField::Tokens, 1.0, true),
        ];
        for (which, (table, index, factor, constant)) in tables.into_iter().enumerate() {
            let Some(table) = table else { continue };
            for &(weight, first) in self.parts(id, which) {
                let part_rows = self.program.layout.weights[weight].rows as u32;
                let shader = format!("embed.{}", table.block.name());
                let dispatch = Dispatch::new(shader, &[], [rows, 1, 1])
                    .read((Place::Weight(weight), 0))
                    .read((Place::Step(index), 0))
                    .update(self.tensor(id))
                    .read((Place::Tables, 0))
                    .words([table.cols as u32, first as u32, part_rows, factor.to_bits()])
                    .words([which > 0, constant].map(u32::from));
                self.push(dispatch);
            }
        }
    }

    pub(super) fn norm(&mut self, id: NodeIndex, op: &Norm, x: NodeIndex) {
        let rows = self.rows_of(id);
        if self.program.fusion.norms.contains(&id) && self.few(rows) {
            // Its readers do it.
            return;
        }
        let group = op.weight.elements() as u32;
        let groups = rows * (self.width(id) / group);
        let subgroup = self.program.features.subgroup;
        let threads = (group / 4).next_power_of_two().clamp(subgroup, subgroup.max(256));
        let centred = u32::from(op.kind == NormKind::Layer);
        let weight = self.vector(id, 0).expect("norms have a weight");
        let fours = u32::from(group.is_multiple_of(4));
        let constants = [threads, centred, u32::from(op.bias.is_some()), fours];
        let dispatch = Dispatch::new("norm", &constants, spread(groups))
            .read(self.tensor(x))
            .read(weight)
            .read_if(self.vector(id, 1))
            .write(self.tensor(id))
            .words([group, groups, op.eps.to_bits()]);
        self.push(dispatch);
    }

    pub(super) fn gate(&mut self, id: NodeIndex, op: &Gate, gate: NodeIndex, up: NodeIndex) {
        if !self.gated_linears(id, op.function) {
            let function = function_number(op.function);
            self.elementwise(id, Elementwise::Gate, function, gate, Some(up), 0.0);
        }
    }

    pub(super) fn activation(&mut self, id: NodeIndex, op: &Activation, x: NodeIndex) {
        let function = function_number(op.function);
        self.elementwise(id, Elementwise::Activation, function, x, None, 0.0);
    }

    pub(super) fn add(&mut self, id: NodeIndex, a: NodeIndex, b: NodeIndex) {
        match self.program.fusion.sums.get(&id) {
            Some(&linear) => self.linear_sum(linear, id),
            None => self.elementwise(id, Elementwise::Add, 0, a, Some(b), 0.0),
        }
    }

    pub(super) fn scale(&mut self, id: NodeIndex, op: &Scale, x: NodeIndex) {
        self.elementwise(id, Elementwise::Scale, 0, x, None, op.factor);
    }

    pub(super) fn soft_cap(&mut self, id: NodeIndex, op: &SoftCap, x: NodeIndex) {
        self.elementwise(id, Elementwise::SoftCap, 0, x, None, op.cap);
    }

    fn elementwise(
        &mut self,
        id: NodeIndex,
        what: Elementwise,
        function: u32,
        a: NodeIndex,
        b: Option<NodeIndex>,
        number: f32,
    ) {
        let count = self.rows_of(id) * self.width(id);
        let (a, b) = (self.tensor(a), b.map(|b| self.tensor(b)));
        self.push(elementwise([what as u32, function], a, b, self.tensor(id), count, number));
    }

    pub(super) fn select_rows(&mut self, id: NodeIndex, x: NodeIndex) {
        self.rows_kernel(id, x, 0);
    }

    pub(super) fn pool(&mut self, id: NodeIndex, op: &Pool, x: NodeIndex) {
        let how = match op.pooling {
            Pooling::Cls => 1,
            Pooling::Last => 2,
            Pooling::Mean => 3,
        };
        self.rows_kernel(id, x, how);
    }

    fn rows_kernel(&mut self, id: NodeIndex, x: NodeIndex, how: u32) {
        let list = if how == 0 { StepField::RowsOut } else { StepField::Sequences };
        let width = self.width(id);
        let dispatch = Dispatch::new("rows", &[how], [width.div_ceil(64), self.rows_of(id), 1])
            .read(self.tensor(x))
            .read((Place::Step(list), 0))
            .write(self.tensor(id))
            .words([width]);
        self.push(dispatch);
    }

    pub(super) fn normalise(&mut self, id: NodeIndex, x: NodeIndex) {
        let rows = self.rows_of(id);
        let dispatch = Dispatch::new("normalise", &[], spread(rows))
            .read(self.tensor(x))
            .write(self.tensor(id))
            .words([self.width(id), rows]);
        self.push(dispatch);
    }
}

/// Does a kernel exist for the op? `Err` says why not.
pub fn supported(op: &Op, features: &Features) -> Result<(), String> {
    let fours = |what: &str, n: usize| {
        if n.is_multiple_of(4) { Ok(()) } else { Err(format!("{what} {n} is no multiple of 4")) }
    };
    let format = |block: trefoil_graph::BlockType| {
        let name = block.name();
        let found = has_shader(&format!("linear_vec.{name}"));
        found.then_some(()).ok_or_else(|| format!("no kernel for {name}"))
    };
    match op {
        Op::Embed(op) => {
            fours("width", op.table.cols)?;
            let tables = [Some(&op.table), op.positions.as_ref(), op.types.as_ref()];
            tables.into_iter().flatten().try_for_each(|table| format(table.block))
        }
        Op::Linear(op) => {
            fours("input width", op.weight.cols)?;
            format(op.weight.block)
        }
        Op::Attention(op) => {
            fours("head", op.head_dim)?;
            let (need, have) = (attention::shared_bytes(op, features), features.shared_bytes);
            let heads = op.heads / op.kv_heads;
            let no = || {
                format!(
                    "{heads} query heads on one KV head need {need} bytes of shared memory, the device has {have}"
                )
            };
            if need <= have { Ok(()) } else { Err(no()) }
        }
        Op::KvWrite(op) => fours("head", op.head_dim),
        Op::Route(op) => {
            fours("input width", op.weight.cols)?;
            let experts = op.weight.rows;
            if experts > experts::MOST {
                return Err(format!("{experts} experts, at most {}", experts::MOST));
            }
            format(op.weight.block)
        }
        Op::Experts(op) => {
            fours("input width", op.gate[0].cols)?;
            fours("experts' width", op.down[0].cols)?;
            [&op.gate, &op.up, &op.down].into_iter().flatten().try_for_each(|w| format(w.block))
        }
        _ => Ok(()),
    }
}
