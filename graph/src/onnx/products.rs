//! Products: with weights, and the two of attention with the softmax between.

use super::value::{Dense, Expr, Id, Layout, Matrix, Value};
use super::walk::{At, Stop};

/// Rows times a matrix of weights, queries times keys, or attention's weights times values.
pub(super) fn matmul(at: &mut At<'_, '_>) -> Result<Value, Stop> {
    match (at.arg(0)?, at.arg(1)?) {
        (Value::Data(x, Layout::Rows), Value::Constant(dense)) => {
            Ok(Value::Data(linear(at, x, dense, None)?, Layout::Rows))
        }
        (
            Value::Data(query, Layout::HeadsFirst(heads)),
            Value::Data(key, Layout::HeadsTurned(others)),
        ) => {
            let arena = &at.walk.arena;
            if heads != others || arena.width(query) != arena.width(key) {
                return Err("expected as many heads of queries as of keys".into());
            }
            let ((query, a), (key, b)) = (arena.unscaled(query), arena.unscaled(key));
            let expr = Expr::Scores { query, key, scale: a * b, heads };
            Ok(Value::Data(at.push(expr, query), Layout::Scores))
        }
        (Value::Data(weights, Layout::Scores), Value::Data(value, Layout::HeadsFirst(heads))) => {
            match *at.expr(weights) {
                Expr::Weights { query, key, scale, heads: others }
                    if heads == others
                        && at.walk.arena.width(query) == at.walk.arena.width(value) =>
                {
                    let scale = Some(scale);
                    let expr = Expr::Attention { query, key, value, heads, scale };
                    Ok(Value::Data(at.push(expr, value), Layout::HeadsFirst(heads)))
                }
                _ => Err("expected attention's weights and as many heads of values".into()),
            }
        }
        _ => Err("expected rows and a matrix of weights, or the parts of attention".into()),
    }
}

/// `x W + b`.
pub(super) fn linear(
    at: &mut At<'_, '_>,
    x: Id,
    dense: Dense,
    bias: Option<Dense>,
) -> Result<Id, Stop> {
    let constant = &at.walk.constants.all[dense.constant];
    constant.weight_block()?;
    let (rows, cols) = constant.matrix()?;
    let (from, to) = if dense.turned { (cols, rows) } else { (rows, cols) };
    let width = at.walk.arena.width(x);
    if from != width || to == 0 {
        return Err(format!("expected a matrix for rows of {width}, got {from} x {to}").into());
    }
    if bias.is_some_and(|bias| !at.is_vector(bias, to)) {
        return Err(format!("expected a bias of {to}").into());
    }
    Ok(at.walk.arena.add(Expr::Product { x, matrix: Matrix::Dense(dense), bias }, to))
}

/// `x W + b` as one op.
pub(super) fn gemm(at: &mut At<'_, '_>) -> Result<Value, Stop> {
    let factor = |at: &At<'_, '_>, name| at.node.float(name).map(|value| value.unwrap_or(1.0));
    if factor(at, "alpha")? != 1.0 || factor(at, "beta")? != 1.0 || at.int("transA", 0)? != 0 {
        return Err("expected factors of 1 and no transposed input".into());
    }
    let x = at.rows(0)?;
    let Value::Constant(dense) = at.arg(1)? else { return Err("expected weights".into()) };
    let turned = dense.turned != (at.int("transB", 0)? != 0);
    let bias = match at.has(2) {
        true => match at.arg(2)? {
            Value::Constant(bias) => Some(bias),
            _ => return Err("expected a bias of weights".into()),
        },
        false => None,
    };
    Ok(Value::Data(linear(at, x, Dense { turned, ..dense }, bias)?, Layout::Rows))
}

/// Attention's weights.
pub(super) fn softmax(at: &mut At<'_, '_>) -> Result<Value, Stop> {
    let axis = at.int("axis", -1)?;
    match at.arg(0)? {
        Value::Data(id, Layout::Scores) if matches!(axis, -1 | 3) => match *at.expr(id) {
            Expr::Scores { query, key, scale, heads } => {
                let expr = Expr::Weights { query, key, scale, heads };
                Ok(Value::Data(at.push(expr, id), Layout::Scores))
            }
            _ => Err("expected attention's products".into()),
        },
        _ => Err("expected attention's products, over their last axis".into()),
    }
}
