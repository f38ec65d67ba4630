//! Ops that compute: arithmetic, products, norms and activations, and what several of them amount to.

use super::products;
use super::value::{Dense, Dim, Expr, Id, Ints, Layout, Moment, Value};
use super::walk::{At, Stop, integers, number};
use crate::ops::{Nonlinearity, NormKind};

/// How far a number may be from what it should be: files have them in single precision.
const NEAR: f64 = 1e-6;

fn near(got: f64, want: f64) -> bool {
    (got - want).abs() <= NEAR * want.abs()
}

/// The value of an op of this kind; `None` if it is of another kind.
pub(super) fn value(at: &mut At<'_, '_>) -> Result<Option<Value>, Stop> {
    Ok(Some(match at.node.op {
        "Add" => add(at)?,
        "Sub" => sub(at)?,
        "Mul" => mul(at)?,
        "Div" => div(at)?,
        "Pow" => pow(at)?,
        "Sqrt" => sqrt(at)?,
        "Reciprocal" => reciprocal(at)?,
        "Clip" => clip(at)?,
        "MatMul" => products::matmul(at)?,
        "Gemm" => products::gemm(at)?,
        "Softmax" => products::softmax(at)?,
        "Erf" => erf(at)?,
        "Gelu" => gelu(at)?,
        "Sigmoid" => unary(at, Expr::Sigmoid)?,
        "ReduceMean" => reduce_mean(at)?,
        "ReduceSum" => reduce_sum(at)?,
        "ReduceL2" => match at.arg(0)? {
            Value::Data(id, Layout::Pooled) => Value::Length(id),
            _ => return Err("expected a pooled row".into()),
        },
        _ => return Ok(None),
    }))
}

impl At<'_, '_> {
    /// A new expression as wide as `like`.
    pub(super) fn push(&mut self, expr: Expr, like: Id) -> Id {
        let width = self.walk.arena.width(like);
        self.walk.arena.add(expr, width)
    }

    /// An expression by its number.
    pub(super) fn expr(&self, id: Id) -> &Expr {
        self.walk.arena.expr(id)
    }

    /// A norm with its weight and bias, as far as they are known yet.
    pub(super) fn norm(
        &mut self,
        x: Id,
        kind: NormKind,
        eps: f32,
        [weight, bias]: [Option<Dense>; 2],
    ) -> Result<Id, Stop> {
        if !(eps.is_finite() && eps >= 0.0) {
            return Err(format!("expected an epsilon of at least 0, got {eps}").into());
        }
        Ok(self.push(Expr::Norm { x, kind, eps, weight, bias }, x))
    }

    /// `x + bias` for what may have a bias that it has not got yet.
    pub(super) fn biased(&mut self, x: Id, vector: Dense) -> Result<Id, Stop> {
        if !self.is_vector(vector, self.walk.arena.width(x)) {
            return Err("expected a bias as long as a row".into());
        }
        let expr = match self.expr(x).clone() {
            Expr::Product { x, matrix, bias: None } => {
                Expr::Product { x, matrix, bias: Some(vector) }
            }
            Expr::Norm { x, kind: NormKind::Layer, eps, weight: weight @ Some(_), bias: None } => {
                let kind = NormKind::Layer;
                Expr::Norm { x, kind, eps, weight, bias: Some(vector) }
            }
            other => return Err(format!("expected no bias on {}", other.kind()).into()),
        };
        Ok(self.push(expr, x))
    }

    /// Numbers in, a number out; shapes keep their entries.
    fn arithmetic(&self, a: &Value, b: &Value, work: fn(f64, f64) -> f64) -> Option<Value> {
        if let (Some(x), Some(y)) = (number(a), number(b)) {
            let result = work(x, y);
            let whole = matches!((a, b), (Value::Ints(_), Value::Ints(_)));
            return Some(match (a, whole) {
                (Value::Ints(ints), true) => Value::Ints(Ints {
                    // Integer division is towards zero.
                    dims: vec![Dim::Known(result.trunc() as i64)],
                    scalar: ints.scalar,
                }),
                _ => Value::Number(result),
            });
        }
        match (a, b) {
            (Value::Ints(a), Value::Ints(b)) => {
                let dims = vec![Dim::Dynamic; a.dims.len().max(b.dims.len())];
                Some(Value::Ints(Ints { dims, scalar: a.scalar && b.scalar }))
            }
            (Value::Mask, Value::Mask | Value::Number(_) | Value::Ints(_))
            | (Value::Number(_) | Value::Ints(_), Value::Mask) => Some(Value::Mask),
            _ => None,
        }
    }

    fn scaled(&mut self, id: Id, layout: Layout, factor: f64) -> Result<Value, Stop> {
        if !factor.is_finite() {
            return Err("expected a finite number".into());
        }
        if let Expr::Scores { query, key, scale, heads } = *self.expr(id) {
            let expr = Expr::Scores { query, key, scale: scale * factor, heads };
            return Ok(Value::Data(self.push(expr, id), layout));
        }
        Ok(Value::Data(self.walk.arena.scaled(id, factor), layout))
    }
}

fn unary(at: &mut At<'_, '_>, expr: fn(Id) -> Expr) -> Result<Value, Stop> {
    let x = at.rows(0)?;
    Ok(Value::Data(at.push(expr(x), x), Layout::Rows))
}

fn add(at: &mut At<'_, '_>) -> Result<Value, Stop> {
    let (a, b) = (at.arg(0)?, at.arg(1)?);
    if let Some(value) = at.arithmetic(&a, &b, |a, b| a + b) {
        return Ok(value);
    }
    match (a, b) {
        (Value::Data(a, Layout::Rows), Value::Data(b, Layout::Rows)) => {
            if at.walk.arena.width(a) != at.walk.arena.width(b) {
                return Err("expected rows of equal width".into());
            }
            Ok(Value::Data(at.push(Expr::Sum(a, b), a), Layout::Rows))
        }
        (Value::Data(x, Layout::Rows), Value::Constant(vector))
        | (Value::Constant(vector), Value::Data(x, Layout::Rows)) => {
            Ok(Value::Data(at.biased(x, vector)?, Layout::Rows))
        }
        (Value::Data(id, Layout::Scores), Value::Mask)
        | (Value::Mask, Value::Data(id, Layout::Scores)) => Ok(Value::Data(id, Layout::Scores)),
        (Value::Data(id, layout), other) | (other, Value::Data(id, layout)) => {
            let Some(number) = number(&other) else {
                return Err("expected data, a bias, a mask or a number".into());
            };
            let expr = match *at.expr(id) {
                Expr::Statistic { x, kind, moment: Moment::Plain } => {
                    let moment = Moment::Shifted(number as f32);
                    Expr::Statistic { x, kind, moment }
                }
                Expr::Erf(x) if near(number, 1.0) => Expr::ErfPlusOne(x),
                ref other => {
                    return Err(format!("expected no number added to {}", other.kind()).into());
                }
            };
            Ok(Value::Data(at.push(expr, id), layout))
        }
        (Value::Length(id), Value::Number(_)) => Ok(Value::Length(id)),
        _ => Err("expected data, a bias, a mask or a number".into()),
    }
}

fn sub(at: &mut At<'_, '_>) -> Result<Value, Stop> {
    let (a, b) = (at.arg(0)?, at.arg(1)?);
    if let Some(value) = at.arithmetic(&a, &b, |a, b| a - b) {
        return Ok(value);
    }
    match (a, b) {
        (Value::Data(x, layout), Value::Data(mean, _)) if matches!(*at.expr(mean), Expr::RowMean(of) if of == x) => {
            Ok(Value::Data(at.push(Expr::Centred(x), x), layout))
        }
        _ => Err("expected numbers, a mask, or data less its mean".into()),
    }
}

fn mul(at: &mut At<'_, '_>) -> Result<Value, Stop> {
    let (a, b) = (at.arg(0)?, at.arg(1)?);
    if let Some(value) = at.arithmetic(&a, &b, |a, b| a * b) {
        return Ok(value);
    }
    match (a, b) {
        (Value::Data(a, layout), Value::Data(b, other)) if layout == other => {
            product(at, a, b, layout)
        }
        (Value::Data(x, layout), Value::Constant(vector))
        | (Value::Constant(vector), Value::Data(x, layout)) => weighted(at, x, layout, vector),
        (Value::Data(x, Layout::Rows), Value::Mask)
        | (Value::Mask, Value::Data(x, Layout::Rows)) => {
            Ok(Value::Data(at.push(Expr::Masked(x), x), Layout::Rows))
        }
        (Value::Data(id, layout), other) | (other, Value::Data(id, layout)) => {
            let number = number(&other).ok_or("expected data, weights or a number")?;
            at.scaled(id, layout, number)
        }
        _ => Err("expected data, weights or a number".into()),
    }
}

/// `a * b` of two tensors.
fn product(at: &mut At<'_, '_>, a: Id, b: Id, layout: Layout) -> Result<Value, Stop> {
    if a == b {
        return Ok(Value::Data(at.push(Expr::Square(a), a), layout));
    }
    for (a, b) in [(a, b), (b, a)] {
        let expr = match *at.expr(b) {
            Expr::Sigmoid(x) if x == a => Expr::Activation(x, Nonlinearity::Silu),
            Expr::Activation(gate, Nonlinearity::Silu) => {
                if at.walk.arena.width(gate) != at.walk.arena.width(a) {
                    return Err("expected rows of equal width".into());
                }
                Expr::Gated { gate, up: a }
            }
            Expr::Statistic { x, kind, moment: Moment::InverseRoot(eps) }
                if is_numerator(at.expr(a), a, x, kind) =>
            {
                return Ok(Value::Data(at.norm(x, kind, eps, [None; 2])?, layout));
            }
            _ => {
                // x (1 + erf(x / sqrt 2)) is twice the GELU, wherever the half stands.
                let ((x, left), (sum, right)) =
                    (at.walk.arena.unscaled(a), at.walk.arena.unscaled(b));
                match *at.expr(sum) {
                    Expr::ErfPlusOne(of) if of == x => {
                        let gelu = at.push(Expr::Activation(x, Nonlinearity::GeluErf), x);
                        return at.scaled(gelu, layout, 2.0 * left * right);
                    }
                    _ => continue,
                }
            }
        };
        return Ok(Value::Data(at.push(expr, a), layout));
    }
    Err(format!(
        "expected a norm or an activation, got {} times {}",
        at.expr(a).kind(),
        at.expr(b).kind()
    )
    .into())
}

/// Is `id` what a norm of `x` divides?
fn is_numerator(expr: &Expr, id: Id, x: Id, kind: NormKind) -> bool {
    match kind {
        NormKind::Rms => id == x,
        NormKind::Layer => matches!(expr, Expr::Centred(of) if *of == x),
    }
}

/// A norm's result times its weight.
fn weighted(at: &mut At<'_, '_>, x: Id, layout: Layout, vector: Dense) -> Result<Value, Stop> {
    let Expr::Norm { x: of, kind, eps, weight: None, bias: None } = *at.expr(x) else {
        return Err(format!("expected a norm to be weighted, got {}", at.expr(x).kind()).into());
    };
    if !at.is_vector(vector, group(at, of, layout)) {
        return Err("expected weights as long as a row".into());
    }
    let expr = Expr::Norm { x: of, kind, eps, weight: Some(vector), bias: None };
    Ok(Value::Data(at.push(expr, x), layout))
}

/// Elements that a norm over the last axis runs over.
pub(super) fn group(at: &At<'_, '_>, x: Id, layout: Layout) -> usize {
    match layout {
        Layout::Heads(heads) => at.walk.arena.width(x) / heads.max(1),
        _ => at.walk.arena.width(x),
    }
}

fn div(at: &mut At<'_, '_>) -> Result<Value, Stop> {
    let (a, b) = (at.arg(0)?, at.arg(1)?);
    if number(&b) == Some(0.0) {
        return Err("expected a divisor other than 0".into());
    }
    if let Some(value) = at.arithmetic(&a, &b, |a, b| a / b) {
        return Ok(value);
    }
    match (a, b) {
        (Value::Data(a, layout), Value::Data(b, _)) => match *at.expr(b) {
            Expr::Statistic { x, kind, moment: Moment::Root(eps) }
                if is_numerator(at.expr(a), a, x, kind) =>
            {
                Ok(Value::Data(at.norm(x, kind, eps, [None; 2])?, layout))
            }
            _ => Err("expected a norm's root as the divisor".into()),
        },
        (Value::Number(one), Value::Data(root, layout)) if near(one, 1.0) => {
            inverse(at, root, layout)
        }
        (Value::Data(sum, layout), Value::Mask) => match *at.expr(sum) {
            Expr::MaskedSum(x) => Ok(Value::Data(at.push(Expr::Mean(x), x), layout)),
            _ => Err("expected a sum of rows over their number".into()),
        },
        (Value::Data(x, Layout::Pooled), Value::Length(of)) if x == of => {
            Ok(Value::Data(x, Layout::Pooled))
        }
        (Value::Data(id, layout), other) => {
            let number = number(&other).ok_or("expected data, a number or a norm's root")?;
            at.scaled(id, layout, 1.0 / number)
        }
        _ => Err("expected data, a number or a norm's root".into()),
    }
}

fn inverse(at: &mut At<'_, '_>, root: Id, layout: Layout) -> Result<Value, Stop> {
    let Expr::Statistic { x, kind, moment: Moment::Root(eps) } = *at.expr(root) else {
        return Err("expected a norm's root".into());
    };
    let expr = Expr::Statistic { x, kind, moment: Moment::InverseRoot(eps) };
    Ok(Value::Data(at.push(expr, root), layout))
}

fn pow(at: &mut At<'_, '_>) -> Result<Value, Stop> {
    match (at.arg(0)?, number(&at.arg(1)?)) {
        (Value::Data(x, layout), Some(2.0)) => Ok(Value::Data(at.push(Expr::Square(x), x), layout)),
        (base, Some(power)) => {
            let base = number(&base).ok_or("expected a number, or a square")?;
            Ok(Value::Number(base.powf(power)))
        }
        _ => Err("expected a known power".into()),
    }
}

fn sqrt(at: &mut At<'_, '_>) -> Result<Value, Stop> {
    match at.arg(0)? {
        Value::Data(id, layout) => match *at.expr(id) {
            Expr::Statistic { x, kind, moment: Moment::Shifted(eps) } => {
                let expr = Expr::Statistic { x, kind, moment: Moment::Root(eps) };
                Ok(Value::Data(at.push(expr, id), layout))
            }
            _ => Err("expected a norm's variance".into()),
        },
        value => match number(&value) {
            Some(number) if number >= 0.0 => Ok(Value::Number(number.sqrt())),
            _ => Err("expected a number, or a norm's variance".into()),
        },
    }
}

fn reciprocal(at: &mut At<'_, '_>) -> Result<Value, Stop> {
    match at.arg(0)? {
        Value::Data(id, layout) => inverse(at, id, layout),
        value => match number(&value) {
            Some(number) if number != 0.0 => Ok(Value::Number(1.0 / number)),
            _ => Err("expected a number, or a norm's root".into()),
        },
    }
}

fn clip(at: &At<'_, '_>) -> Result<Value, Stop> {
    match at.arg(0)? {
        value @ (Value::Mask | Value::Length(_)) => Ok(value),
        _ => Err("expected a mask or a length".into()),
    }
}

fn erf(at: &mut At<'_, '_>) -> Result<Value, Stop> {
    let scaled = at.rows(0)?;
    let (x, factor) = at.walk.arena.unscaled(scaled);
    if !near(factor, std::f64::consts::FRAC_1_SQRT_2) {
        return Err(format!("expected x / sqrt 2, got x times {factor}").into());
    }
    Ok(Value::Data(at.push(Expr::Erf(x), x), Layout::Rows))
}

fn gelu(at: &mut At<'_, '_>) -> Result<Value, Stop> {
    let function = match at.node.text("approximate")? {
        None | Some("none") => Nonlinearity::GeluErf,
        Some("tanh") => Nonlinearity::GeluTanh,
        Some(other) => return Err(format!("expected none or tanh, got {other:?}").into()),
    };
    let x = at.rows(0)?;
    Ok(Value::Data(at.push(Expr::Activation(x, function), x), Layout::Rows))
}

/// The axes of a reduction, from the attribute or the input.
fn axes(at: &At<'_, '_>) -> Result<Vec<i64>, Stop> {
    if let Some(axes) = at.node.ints("axes")? {
        return Ok(axes);
    }
    match at.has(1) {
        true => Ok(integers(&at.arg(1)?).ok_or("expected known axes")?),
        false => Err("expected axes".into()),
    }
}

fn reduce_mean(at: &mut At<'_, '_>) -> Result<Value, Stop> {
    let axes = axes(at)?;
    let Value::Data(x, layout) = at.arg(0)? else { return Err("expected data".into()) };
    let last = match layout {
        Layout::Rows => 2,
        Layout::Heads(_) => 3,
        _ => return Err("expected rows".into()),
    };
    match axes[..] {
        [axis] if axis == -1 || axis == last => {
            if at.int("keepdims", 1)? != 1 {
                return Err("expected a mean that keeps its axis".into());
            }
            let expr = match *at.expr(x) {
                Expr::Square(of) => {
                    let (x, kind) = match *at.expr(of) {
                        Expr::Centred(x) => (x, NormKind::Layer),
                        _ => (of, NormKind::Rms),
                    };
                    Expr::Statistic { x, kind, moment: Moment::Plain }
                }
                _ => Expr::RowMean(x),
            };
            Ok(Value::Data(at.push(expr, x), layout))
        }
        [1] if layout == Layout::Rows => Ok(Value::Data(at.push(Expr::Mean(x), x), Layout::Pooled)),
        _ => Err(format!("expected a mean of rows, got axes {axes:?}").into()),
    }
}

fn reduce_sum(at: &mut At<'_, '_>) -> Result<Value, Stop> {
    match at.arg(0)? {
        Value::Mask => Ok(Value::Mask),
        Value::Data(x, Layout::Rows) if axes(at)? == [1] => match *at.expr(x) {
            Expr::Masked(of) => Ok(Value::Data(at.push(Expr::MaskedSum(of), of), Layout::Pooled)),
            _ => Err("expected rows with a mask".into()),
        },
        _ => Err("expected a mask, or rows with one".into()),
    }
}
