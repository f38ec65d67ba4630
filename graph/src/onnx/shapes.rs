//! Ops that compute shapes, masks and places, or only turn data around.

use super::value::{Dense, Dim, Expr, Id, Ints, Layout, Value};
use super::walk::{At, Stop, integers, known, number};

/// The value of an op of this kind; `None` if it is of another kind.
pub(super) fn value(at: &mut At<'_, '_>) -> Result<Option<Value>, Stop> {
    Ok(Some(match at.node.op {
        "Identity" | "Cast" | "CastLike" | "Dropout" => at.arg(0)?,
        "Shape" => shape(at)?,
        "Gather" => gather(at)?,
        "Slice" => slice(at)?,
        "Unsqueeze" | "Squeeze" => squeeze(at)?,
        "Concat" => concat(at)?,
        "Reshape" => reshape(at)?,
        "Transpose" => transpose(at)?,
        "Expand" => expand(at)?,
        "ConstantOfShape" => constant_of_shape(at)?,
        "Range" => range(at)?,
        "Where" => choose(at)?,
        "Equal" | "Not" | "And" | "Or" | "Greater" | "GreaterOrEqual" | "Less" | "LessOrEqual"
        | "Max" | "Min" => condition(at)?,
        "IsNaN" => match at.arg(0)? {
            Value::Data(id, Layout::Scores) => Value::IsNan(id),
            _ => return Err("expected attention's weights".into()),
        },
        _ => return Ok(None),
    }))
}

fn ints(dims: Vec<Dim>) -> Value {
    Value::Ints(Ints { dims, scalar: false })
}

fn size(number: usize) -> Dim {
    Dim::Known(number as i64)
}

fn shape(at: &At<'_, '_>) -> Result<Value, Stop> {
    const ANY: Dim = Dim::Dynamic;
    let dims = match at.arg(0)? {
        Value::Data(id, layout) => {
            let width = at.walk.arena.width(id);
            let head = |heads: usize| size(width / heads.max(1));
            match layout {
                Layout::Rows => vec![ANY, ANY, size(width)],
                Layout::Heads(heads) => vec![ANY, ANY, size(heads), head(heads)],
                Layout::HeadsFirst(heads) => vec![ANY, size(heads), ANY, head(heads)],
                Layout::HeadsTurned(heads) => vec![ANY, size(heads), head(heads), ANY],
                Layout::Scores => vec![ANY; 4],
                Layout::Pooled => vec![ANY, size(width)],
            }
        }
        Value::Ints(Ints { dims, scalar: false }) => vec![size(dims.len())],
        Value::Constant(Dense { constant, turned: false }) => {
            at.walk.constants.all[constant].dims.iter().map(|&dim| size(dim)).collect()
        }
        // Ids and masks: all that asks wants batch or tokens.
        Value::Tokens | Value::Mask | Value::ZeroIds | Value::Positions => vec![ANY, ANY],
        Value::Cache => vec![ANY; 4],
        _ => return Err("expected data, ids or a mask".into()),
    };
    let (start, end) = (at.int("start", 0)?, at.int("end", dims.len() as i64)?);
    Ok(ints(sub_list(&dims, start, end)))
}

/// Entries from one place to another, counted from the end if negative.
fn sub_list(dims: &[Dim], start: i64, end: i64) -> Vec<Dim> {
    let len = dims.len() as i64;
    let place = |index: i64| {
        let index = if index < 0 { index.saturating_add(len) } else { index };
        index.clamp(0, len) as usize
    };
    dims.get(place(start)..place(end)).unwrap_or_default().to_vec()
}

fn gather(at: &mut At<'_, '_>) -> Result<Value, Stop> {
    let (data, indices) = (at.arg(0)?, at.arg(1)?);
    let axis = at.int("axis", 0)?;
    match (&data, &indices) {
        (&Value::Constant(table), Value::Tokens | Value::ZeroIds | Value::Positions)
            if axis == 0 && !table.turned =>
        {
            let constant = &at.walk.constants.all[table.constant];
            let (_, width) = constant.matrix()?;
            constant.weight_block()?;
            let expr = match indices {
                Value::Tokens => Expr::Embedded(table),
                Value::Positions => Expr::Positional(table),
                _ => Expr::Typed(table),
            };
            Ok(Value::Data(at.walk.arena.add(expr, width), Layout::Rows))
        }
        (Value::Ints(Ints { dims, scalar: false }), Value::Ints(places)) => {
            let numbers = integers(&indices).ok_or("expected a known place")?;
            let pick = |&place: &i64| {
                let index = if place < 0 { place.saturating_add(dims.len() as i64) } else { place };
                let index = usize::try_from(index).ok();
                index.and_then(|index| dims.get(index)).copied().ok_or("expected a place in it")
            };
            let picked = numbers.iter().map(pick).collect::<Result<_, _>>()?;
            Ok(Value::Ints(Ints { dims: picked, scalar: places.scalar }))
        }
        (&Value::Data(id, Layout::Rows), Value::Ints(_)) if axis == 1 => {
            let row = integers(&indices).ok_or("expected a known row")?;
            one_row(at, id, &row)
        }
        _ => Err("expected a table and ids, or a shape and a place".into()),
    }
}

/// The first or the last row of each text.
fn one_row(at: &mut At<'_, '_>, id: Id, row: &[i64]) -> Result<Value, Stop> {
    let expr = match row {
        [0] => Expr::First(id),
        [-1] => Expr::Last(id),
        _ => return Err("expected the first or the last row".into()),
    };
    let width = at.walk.arena.width(id);
    Ok(Value::Data(at.walk.arena.add(expr, width), Layout::Pooled))
}

fn slice(at: &mut At<'_, '_>) -> Result<Value, Stop> {
    let data = at.arg(0)?;
    let (start, end) = match (at.has(1), at.has(2)) {
        (true, true) => (at.arg(1)?, at.arg(2)?),
        _ => return Err("expected starts and ends as inputs".into()),
    };
    let known_or = |index: usize, default: i64| match at.has(index) {
        true => Ok::<_, Stop>(integers(&at.arg(index)?)),
        false => Ok(Some(vec![default])),
    };
    let (axes, steps) = (known_or(3, 0)?, known_or(4, 1)?);
    if steps != Some(vec![1]) {
        return Err("expected steps of 1".into());
    }
    match data {
        Value::Ints(Ints { dims, scalar: false }) => {
            match (integers(&start).as_deref(), integers(&end).as_deref()) {
                (Some(&[start]), Some(&[end])) => Ok(ints(sub_list(&dims, start, end))),
                _ => Err("expected known places".into()),
            }
        }
        Value::Positions if integers(&start) != Some(vec![0]) => {
            Err("expected positions from 0 on".into())
        }
        Value::Positions | Value::ZeroIds | Value::Mask => Ok(data),
        Value::Data(id, Layout::Rows) if axes == Some(vec![1]) => {
            match (integers(&start).as_deref(), integers(&end).as_deref()) {
                (Some([0]), Some([1])) => one_row(at, id, &[0]),
                (Some([-1]), Some([end])) if *end >= i64::from(i32::MAX) => one_row(at, id, &[-1]),
                _ => Err("expected the first or the last row".into()),
            }
        }
        _ => Err("expected a shape, ids, a mask or rows".into()),
    }
}

fn squeeze(at: &At<'_, '_>) -> Result<Value, Stop> {
    Ok(match at.arg(0)? {
        Value::Ints(Ints { dims, .. }) if dims.len() == 1 => {
            Value::Ints(Ints { dims, scalar: at.node.op == "Squeeze" })
        }
        value @ (Value::Mask | Value::ZeroIds | Value::Positions | Value::Number(_)) => value,
        // A row that was cut out of its text keeps the text's rank until now.
        value @ Value::Data(_, Layout::Pooled) if at.node.op == "Squeeze" => value,
        _ => return Err("expected a number, ids or a mask".into()),
    })
}

fn concat(at: &At<'_, '_>) -> Result<Value, Stop> {
    let mut args = at.args()?;
    if args.len() == 1 {
        return Ok(args.remove(0));
    }
    let mut all = Vec::new();
    for arg in args {
        match arg {
            Value::Ints(Ints { dims, .. }) => all.extend(dims),
            _ => return Err("expected parts of a shape".into()),
        }
        if all.len() > 16 {
            return Err("expected a shape".into());
        }
    }
    Ok(ints(all))
}

fn reshape(at: &At<'_, '_>) -> Result<Value, Stop> {
    let data = at.arg(0)?;
    let Value::Ints(Ints { dims: target, .. }) = at.arg(1)? else {
        return match data {
            Value::Mask => Ok(data),
            _ => Err("expected a known shape".into()),
        };
    };
    let (id, layout) = match data {
        Value::Data(id, layout) => (id, layout),
        Value::Ints(Ints { dims, .. }) if target.len() == 1 => return Ok(ints(dims)),
        Value::Mask | Value::ZeroIds | Value::Positions => return Ok(data),
        _ => return Err("expected data or a shape".into()),
    };
    let width = at.walk.arena.width(id);
    let layout = match (layout, &target[..]) {
        (Layout::Rows, [_, _, heads, head]) => {
            let heads = split(width, *heads, *head).ok_or("expected heads that fill a row")?;
            Layout::Heads(heads)
        }
        (
            Layout::Rows,
            [_, Dim::Known(-1), Dim::Known(head)] | [Dim::Known(-1), Dim::Known(head)],
        ) if *head > 0 && width as i64 % head == 0 && width as i64 > *head => {
            Layout::Heads(width / *head as usize)
        }
        (Layout::Rows | Layout::Heads(_), [_, _, Dim::Known(last)])
            if *last == width as i64 || *last == -1 =>
        {
            Layout::Rows
        }
        (Layout::Pooled, [_, Dim::Known(last)]) if *last == width as i64 => Layout::Pooled,
        _ => return Err("expected rows to become heads, or heads rows".into()),
    };
    Ok(Value::Data(id, layout))
}

/// Number of heads if a row of `width` becomes `heads` x `head`.
fn split(width: usize, heads: Dim, head: Dim) -> Option<usize> {
    let count = |dim| match dim {
        Dim::Known(number) => usize::try_from(number).ok().filter(|&number| number > 0),
        Dim::Dynamic => None,
    };
    match (count(heads), count(head), heads, head) {
        (Some(heads), Some(head), ..) if heads.checked_mul(head) == Some(width) => Some(heads),
        (Some(heads), None, _, Dim::Known(-1)) if width.is_multiple_of(heads) => Some(heads),
        (None, Some(head), Dim::Known(-1), _) if width.is_multiple_of(head) => Some(width / head),
        _ => None,
    }
}

fn transpose(at: &At<'_, '_>) -> Result<Value, Stop> {
    let order = at.node.ints("perm")?;
    match at.arg(0)? {
        Value::Constant(dense) if order.is_none_or(|order| order == [1, 0]) => {
            at.walk.constants.all[dense.constant].matrix()?;
            Ok(Value::Constant(Dense { turned: !dense.turned, ..dense }))
        }
        Value::Data(id, layout) => {
            let order = at.node.ints("perm")?.unwrap_or_default();
            let layout = match (layout, &order[..]) {
                (Layout::Heads(heads), [0, 2, 1, 3]) => Layout::HeadsFirst(heads),
                (Layout::Heads(heads), [0, 2, 3, 1]) => Layout::HeadsTurned(heads),
                (Layout::HeadsFirst(heads), [0, 2, 1, 3]) => Layout::Heads(heads),
                (Layout::HeadsFirst(heads), [0, 1, 3, 2]) => Layout::HeadsTurned(heads),
                (Layout::HeadsTurned(heads), [0, 1, 3, 2]) => Layout::HeadsFirst(heads),
                _ => return Err(format!("expected heads to change places, got {order:?}").into()),
            };
            Ok(Value::Data(id, layout))
        }
        value @ Value::Mask => Ok(value),
        _ => Err("expected a matrix of weights, or heads".into()),
    }
}

fn expand(at: &At<'_, '_>) -> Result<Value, Stop> {
    match at.arg(0)? {
        value @ (Value::Mask
        | Value::ZeroIds
        | Value::Positions
        | Value::Number(_)
        | Value::Length(_)) => Ok(value),
        _ => Err("expected ids, a mask or a number".into()),
    }
}

fn constant_of_shape(at: &At<'_, '_>) -> Result<Value, Stop> {
    let fill = match at.node.tensor("value")? {
        None => 0.0,
        Some(tensor) => {
            let element = tensor.element.ok_or("expected a number")?;
            let super::proto::Source::Raw(bytes) = tensor.source else {
                return Err("expected a number as raw data".into());
            };
            match (element, bytes) {
                (super::proto::Element::I64, &[a, b, c, d, e, f, g, h]) => {
                    i64::from_le_bytes([a, b, c, d, e, f, g, h]) as f64
                }
                (super::proto::Element::F32, &[a, b, c, d]) => {
                    f64::from(f32::from_le_bytes([a, b, c, d]))
                }
                _ => return Err("expected a number".into()),
            }
        }
    };
    match integers(&at.arg(0)?).as_deref() {
        Some([count @ 0..=64]) => Ok(known(vec![fill as i64; *count as usize], false)),
        _ if fill == 0.0 => Ok(Value::ZeroIds),
        _ => Ok(Value::Number(fill)),
    }
}

fn range(at: &At<'_, '_>) -> Result<Value, Stop> {
    match (number(&at.arg(0)?), number(&at.arg(2)?)) {
        (Some(0.0), Some(1.0)) => Ok(Value::Positions),
        _ => Err("expected 0, 1, 2, ...".into()),
    }
}

/// A choice between parts of shapes or masks, or numbers in place of what is none.
fn choose(at: &At<'_, '_>) -> Result<Value, Stop> {
    let (condition, yes, no) = (at.arg(0)?, at.arg(1)?, at.arg(2)?);
    match (condition, yes, no) {
        (Value::IsNan(id), Value::Number(_), Value::Data(data, layout)) if id == data => {
            Ok(Value::Data(data, layout))
        }
        // Scores of padding are replaced, of which there is none.
        (Value::Mask, Value::Number(_), Value::Data(data, Layout::Scores))
        | (Value::Mask, Value::Data(data, Layout::Scores), Value::Number(_)) => {
            Ok(Value::Data(data, Layout::Scores))
        }
        (Value::Ints(_), Value::Ints(a), Value::Ints(b)) => {
            let same = |(a, b): (&Dim, &Dim)| if a == b { *a } else { Dim::Dynamic };
            if a.dims.len() != b.dims.len() {
                return Err("expected shapes of equal length".into());
            }
            Ok(ints(a.dims.iter().zip(&b.dims).map(same).collect()))
        }
        (Value::Mask, Value::Mask | Value::Number(_), Value::Mask | Value::Number(_)) => {
            Ok(Value::Mask)
        }
        _ => Err("expected shapes or masks".into()),
    }
}

/// What compares or joins parts of shapes or masks.
fn condition(at: &At<'_, '_>) -> Result<Value, Stop> {
    let args = at.args()?;
    let plain = |value: &Value| matches!(value, Value::Ints(_) | Value::Number(_));
    let numbers: Option<Vec<f64>> = args.iter().map(number).collect();
    if let (Some(numbers), "Max" | "Min") = (numbers, at.node.op) {
        let fold = if at.node.op == "Max" { f64::max } else { f64::min };
        return numbers
            .into_iter()
            .reduce(fold)
            .map(Value::Number)
            .ok_or("expected numbers".into());
    }
    let length = args.iter().find_map(|value| match value {
        Value::Length(id) => Some(*id),
        _ => None,
    });
    if let (Some(id), "Max") = (length, at.node.op) {
        return Ok(Value::Length(id));
    }
    if args.iter().all(plain) {
        let longest = args.iter().map(|value| match value {
            Value::Ints(ints) => ints.dims.len(),
            _ => 1,
        });
        return Ok(ints(vec![Dim::Dynamic; longest.max().unwrap_or(1)]));
    }
    if args.iter().all(|value| plain(value) || matches!(value, Value::Mask)) {
        return Ok(Value::Mask);
    }
    Err("expected shapes or masks".into())
}
