//! Rotary position embedding. Angles grow with the position, so that they are no work for an NPU's
//! number formats: cosines and sines are inputs, made on the host.

use trefoil_graph::ops::{Rope, RopeStyle};

use crate::builder::{Builder, int};

/// Turns each head's pairs; elements past them stay as they are.
pub(crate) fn rope(
    builder: &mut Builder<'_>,
    role: &str,
    op: &Rope,
    x: &str,
    width: usize,
) -> String {
    let (rows, heads) = (builder.rows, width / op.head_dim);
    let pairs = op.table.frequencies.len();
    let rest = op.head_dim - 2 * pairs;
    let x = builder.reshape(role, x, &[rows, heads, op.head_dim]);
    let mut pieces = split(builder, role, &x, 2, &[2 * pairs, rest]);
    let still = (rest > 0).then(|| pieces.pop()).flatten();
    let moving = pieces.remove(0);
    let turned = match op.style {
        RopeStyle::Halves => {
            let [cos, sin] = turns(builder, role, op, &[rows, 1, pairs]);
            let halves = split(builder, role, &moving, 2, &[pairs, pairs]);
            let [a, b] = turn(builder, role, [&halves[0], &halves[1]], [&cos, &sin]);
            concat(builder, role, [&a, &b], 2)
        }
        RopeStyle::Interleaved => {
            let [cos, sin] = turns(builder, role, op, &[rows, 1, pairs, 1]);
            let moving = builder.reshape(role, &moving, &[rows, heads, pairs, 2]);
            let parts = split(builder, role, &moving, 3, &[1, 1]);
            let [a, b] = turn(builder, role, [&parts[0], &parts[1]], [&cos, &sin]);
            let turned = concat(builder, role, [&a, &b], 3);
            builder.reshape(role, &turned, &[rows, heads, 2 * pairs])
        }
    };
    let all = match still {
        Some(still) => concat(builder, role, [&turned, &still], 2),
        None => turned,
    };
    builder.reshape(role, &all, &[rows, width])
}

/// The table's cosines and sines in this shape.
fn turns(builder: &mut Builder<'_>, role: &str, op: &Rope, dims: &[usize]) -> [String; 2] {
    builder.turns(&op.table).map(|name| builder.reshape(role, &name, dims))
}

/// `a cos - b sin` and `a sin + b cos`.
fn turn(
    builder: &mut Builder<'_>,
    role: &str,
    [a, b]: [&str; 2],
    [cos, sin]: [&str; 2],
) -> [String; 2] {
    let mut product = |x: &str, y: &str| builder.op(role, "Mul", &[x, y]);
    let [ac, bs, as_, bc] = [product(a, cos), product(b, sin), product(a, sin), product(b, cos)];
    [builder.op(role, "Sub", &[&ac, &bs]), builder.op(role, "Add", &[&as_, &bc])]
}

/// Cuts `axis` into pieces of these sizes; empty ones are left out.
fn split(
    builder: &mut Builder<'_>,
    role: &str,
    x: &str,
    axis: usize,
    sizes: &[usize],
) -> Vec<String> {
    let sizes: Vec<usize> = sizes.iter().copied().filter(|&size| size > 0).collect();
    if sizes.len() == 1 {
        return vec![x.to_owned()];
    }
    let list = builder.integers(&sizes);
    builder.push(role, "Split", "", &[x, &list], vec![int("axis", axis)], sizes.len())
}

fn concat(builder: &mut Builder<'_>, role: &str, parts: [&str; 2], axis: usize) -> String {
    builder.op_with(role, "Concat", &parts, vec![int("axis", axis)])
}
