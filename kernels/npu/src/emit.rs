//! Each op in terms of ONNX ops.

use trefoil_graph::ops::{Nonlinearity, Norm, NormKind, Op};
use trefoil_graph::{LayerGraph, NodeIndex};
use trefoil_kernels::host::decode_vector;

use crate::builder::{Builder, int, ints};
use crate::rope::rope;

/// Length below which a row counts as zero when it is normalised.
const SHORTEST: f32 = 1e-30;

/// Adds an op of the layer graph; the name of its tensor.
pub(crate) fn emit(builder: &mut Builder<'_>, graph: &LayerGraph, node: NodeIndex) -> String {
    let own = graph.node(node);
    let (role, width) = (own.name.as_str(), own.shape.width);
    let sources = graph.inputs(node);
    let inputs: Vec<String> = sources.iter().map(|&source| builder.value(source)).collect();
    let x = inputs.first().map_or("", String::as_str);
    let second = inputs.get(1).map_or("", String::as_str);
    match &own.op {
        Op::Linear(linear) => {
            let y = builder.product(role, node, x, linear.weight.rows, linear.weight.cols);
            match &linear.bias {
                None => y,
                Some(bias) => {
                    let bias = decode_vector(bias);
                    let bias = builder.floats(&bias, &[bias.len()]);
                    builder.op(role, "Add", &[&y, &bias])
                }
            }
        }
        Op::Norm(op) => norm(builder, role, op, x, width),
        Op::Rope(op) => rope(builder, role, op, x, width),
        Op::Gate(op) => {
            let gate = nonlinearity(builder, role, op.function, x);
            builder.op(role, "Mul", &[&gate, second])
        }
        Op::Activation(op) => nonlinearity(builder, role, op.function, x),
        Op::Add(_) => builder.op(role, "Add", &[x, second]),
        Op::Scale(op) => {
            let factor = builder.number(op.factor);
            builder.op(role, "Mul", &[x, &factor])
        }
        Op::SoftCap(op) => {
            let cap = builder.number(op.cap);
            let y = builder.op(role, "Div", &[x, &cap]);
            let y = builder.op(role, "Tanh", &[&y]);
            builder.op(role, "Mul", &[&y, &cap])
        }
        Op::Normalise(_) => {
            // By the mean, which norms use as well: fewer providers take sums and lengths.
            let square = builder.op(role, "Mul", &[x, x]);
            let mean = mean(builder, role, &square);
            let count = builder.number(width as f32);
            let sum = builder.op(role, "Mul", &[&mean, &count]);
            let length = builder.op(role, "Sqrt", &[&sum]);
            let shortest = builder.number(SHORTEST);
            let length = builder.op(role, "Max", &[&length, &shortest]);
            builder.op(role, "Div", &[x, &length])
        }
        Op::Embed(_)
        | Op::KvWrite(_)
        | Op::Attention(_)
        | Op::Route(_)
        | Op::Experts(_)
        | Op::SelectRows(_)
        | Op::Pool(_) => unreachable!("parts hold only ops that `refusal` lets pass: {role}"),
    }
}

/// Mean over the last dimension.
fn mean(builder: &mut Builder<'_>, role: &str, x: &str) -> String {
    builder.op_with(role, "ReduceMean", &[x], vec![ints("axes", &[-1]), int("keepdims", 1)])
}

/// In plain arithmetic: few providers take norms as one op, all take these.
fn norm(builder: &mut Builder<'_>, role: &str, op: &Norm, x: &str, width: usize) -> String {
    let group = op.weight.elements();
    let (rows, grouped) = (builder.rows, group != width);
    let mut x = x.to_owned();
    if grouped {
        x = builder.reshape(role, &x, &[rows, width / group, group]);
    }
    if op.kind == NormKind::Layer {
        let mean = mean(builder, role, &x);
        x = builder.op(role, "Sub", &[&x, &mean]);
    }
    let square = builder.op(role, "Mul", &[&x, &x]);
    let square = mean(builder, role, &square);
    let eps = builder.number(op.eps);
    let square = builder.op(role, "Add", &[&square, &eps]);
    let size = builder.op(role, "Sqrt", &[&square]);
    let y = builder.op(role, "Div", &[&x, &size]);
    let mut weight = decode_vector(&op.weight);
    weight.iter_mut().for_each(|weight| *weight += op.weight_offset);
    let weight = builder.floats(&weight, &[group]);
    let mut y = builder.op(role, "Mul", &[&y, &weight]);
    if let Some(bias) = &op.bias {
        let bias = builder.floats(&decode_vector(bias), &[group]);
        y = builder.op(role, "Add", &[&y, &bias]);
    }
    if grouped { builder.reshape(role, &y, &[rows, width]) } else { y }
}

fn nonlinearity(builder: &mut Builder<'_>, role: &str, function: Nonlinearity, x: &str) -> String {
    match function {
        Nonlinearity::Silu => {
            let share = builder.op(role, "Sigmoid", &[x]);
            builder.op(role, "Mul", &[x, &share])
        }
        Nonlinearity::GeluTanh => {
            let square = builder.op(role, "Mul", &[x, x]);
            let cube = builder.op(role, "Mul", &[&square, x]);
            let factor = builder.number(0.044_715);
            let cube = builder.op(role, "Mul", &[&cube, &factor]);
            let sum = builder.op(role, "Add", &[x, &cube]);
            let root = builder.number((2.0 / std::f64::consts::PI).sqrt() as f32);
            let sum = builder.op(role, "Mul", &[&sum, &root]);
            let bend = builder.op(role, "Tanh", &[&sum]);
            half_of_one_more(builder, role, x, &bend)
        }
        Nonlinearity::GeluErf => {
            let root = builder.number(std::f32::consts::FRAC_1_SQRT_2);
            let scaled = builder.op(role, "Mul", &[x, &root]);
            let bend = builder.op(role, "Erf", &[&scaled]);
            half_of_one_more(builder, role, x, &bend)
        }
    }
}

/// `x / 2 * (1 + bend)`.
fn half_of_one_more(builder: &mut Builder<'_>, role: &str, x: &str, bend: &str) -> String {
    let one = builder.number(1.0);
    let bend = builder.op(role, "Add", &[bend, &one]);
    let y = builder.op(role, "Mul", &[x, &bend]);
    let half = builder.number(0.5);
    builder.op(role, "Mul", &[&y, &half])
}
