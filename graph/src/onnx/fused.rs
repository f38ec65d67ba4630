//! Ops that stand for several: norms, and ONNX Runtime's own for embeddings, attention, quantised
//! products and rotary positions.

use std::rc::Rc;

use super::blocks::NBits;
use super::plain::group;
use super::products::linear;
use super::value::{Dense, Expr, Grouped, Id, Layout, Matrix, Rotary, Value};
use super::walk::{At, Stop};
use crate::ops::{Nonlinearity, NormKind};

/// The values of all outputs of an op of this kind; `None` if it is of another kind.
pub(super) fn outputs(at: &mut At<'_, '_>) -> Result<Option<Vec<Value>>, Stop> {
    let one = |id: Id| vec![Value::Data(id, Layout::Rows)];
    Ok(Some(match at.node.op {
        "LayerNormalization" => vec![layer_norm(at, NormKind::Layer)?],
        "SimplifiedLayerNormalization" | "RMSNormalization" => {
            vec![layer_norm(at, NormKind::Rms)?]
        }
        "SkipLayerNormalization" => skip_norm(at, NormKind::Layer)?,
        "SkipSimplifiedLayerNormalization" => skip_norm(at, NormKind::Rms)?,
        "EmbedLayerNormalization" => one(embed_norm(at)?),
        "BiasGelu" => one(bias_gelu(at, Nonlinearity::GeluErf)?),
        "FastGelu" => one(bias_gelu(at, Nonlinearity::GeluTanh)?),
        "Attention" if at.node.domain == "com.microsoft" => one(attention(at)?),
        "MultiHeadAttention" => one(multi_head(at)?),
        "GroupQueryAttention" => {
            let mut values = one(grouped(at)?);
            values.extend([Value::Cache, Value::Cache]);
            values
        }
        "RotaryEmbedding" => one(rotary_embedding(at)?),
        "MatMulNBits" => one(matmul_nbits(at)?),
        _ => return Ok(None),
    }))
}

fn epsilon(at: &At<'_, '_>, default: f32) -> Result<f32, Stop> {
    Ok(at.node.float("epsilon")?.unwrap_or(default))
}

fn layer_norm(at: &mut At<'_, '_>, kind: NormKind) -> Result<Value, Stop> {
    let Value::Data(x, layout @ (Layout::Rows | Layout::Heads(_))) = at.arg(0)? else {
        return Err("expected rows of data".into());
    };
    let last = if layout == Layout::Rows { 2 } else { 3 };
    let axis = at.int("axis", -1)?;
    // Heads that were made rows of their own have one axis less.
    if axis != -1 && axis != last && !(matches!(layout, Layout::Heads(_)) && axis == 2) {
        return Err(format!("expected the last axis, got {axis}").into());
    }
    let length = group(at, x, layout);
    let weight = Some(at.vector(1, length)?);
    let bias = at.vector_if(2, length)?;
    if kind == NormKind::Rms && bias.is_some() {
        return Err("expected no bias".into());
    }
    let eps = epsilon(at, 1e-5)?;
    Ok(Value::Data(at.norm(x, kind, eps, [weight, bias])?, layout))
}

/// The sum of two tensors, its norm, and the sum again as the fourth output.
fn skip_norm(at: &mut At<'_, '_>, kind: NormKind) -> Result<Vec<Value>, Stop> {
    let (mut input, mut skip) = (at.rows(0)?, at.rows(1)?);
    let width = at.walk.arena.width(input);
    if at.walk.arena.width(skip) != width {
        return Err("expected rows of equal width".into());
    }
    let weight = Some(at.vector(2, width)?);
    let (bias, sum_bias) = match kind {
        NormKind::Layer => (at.vector_if(3, width)?, at.vector_if(4, width)?),
        NormKind::Rms => (None, at.vector_if(3, width)?),
    };
    if let Some(vector) = sum_bias {
        // The bias of the product that is added.
        match at.biased(input, vector) {
            Ok(biased) => input = biased,
            Err(_) => skip = at.biased(skip, vector)?,
        }
    }
    let default = if kind == NormKind::Layer { 1e-12 } else { 1e-5 };
    let eps = epsilon(at, default)?;
    let sum = at.walk.arena.add(Expr::Sum(input, skip), width);
    let norm = at.norm(sum, kind, eps, [weight, bias])?;
    let data = |id| Value::Data(id, Layout::Rows);
    Ok(vec![data(norm), Value::Cache, Value::Cache, data(sum)])
}

/// A table that ids choose rows of.
fn table(at: &At<'_, '_>, index: usize) -> Result<(Dense, usize), Stop> {
    let Value::Constant(dense @ Dense { turned: false, constant }) = at.arg(index)? else {
        return Err(format!("expected input {index} to be a table").into());
    };
    let constant = &at.walk.constants.all[constant];
    constant.weight_block()?;
    Ok((dense, constant.matrix()?.1))
}

fn embed_norm(at: &mut At<'_, '_>) -> Result<Id, Stop> {
    if !matches!(at.arg(0)?, Value::Tokens)
        || (at.has(1) && !matches!(at.arg(1)?, Value::ZeroIds))
        || (at.has(8) && !matches!(at.arg(8)?, Value::Positions))
    {
        return Err("expected token ids, segment ids and positions".into());
    }
    let (words, width) = table(at, 2)?;
    let (positions, position_width) = table(at, 3)?;
    let mut x = at.walk.arena.add(Expr::Embedded(words), width);
    let other = at.walk.arena.add(Expr::Positional(positions), position_width);
    x = at.walk.arena.add(Expr::Sum(x, other), width);
    if at.has(4) {
        let (types, type_width) = table(at, 4)?;
        if type_width != width {
            return Err("expected tables of equal width".into());
        }
        let other = at.walk.arena.add(Expr::Typed(types), width);
        x = at.walk.arena.add(Expr::Sum(x, other), width);
    }
    if position_width != width {
        return Err("expected tables of equal width".into());
    }
    let (weight, bias) = (Some(at.vector(5, width)?), Some(at.vector(6, width)?));
    let eps = epsilon(at, 1e-12)?;
    at.norm(x, NormKind::Layer, eps, [weight, bias])
}

fn bias_gelu(at: &mut At<'_, '_>, function: Nonlinearity) -> Result<Id, Stop> {
    let mut x = at.rows(0)?;
    let width = at.walk.arena.width(x);
    if let Some(vector) = at.vector_if(1, width)? {
        x = at.biased(x, vector)?;
    }
    Ok(at.walk.arena.add(Expr::Activation(x, function), width))
}

/// The factor on attention's products; 0 and nothing mean the usual one.
fn scale(at: &At<'_, '_>) -> Result<Option<f32>, Stop> {
    Ok(at.node.float("scale")?.filter(|&scale| scale != 0.0))
}

/// Encoders see all of a text, and keep nothing.
fn check_encoder(at: &At<'_, '_>, mask: usize, others: &[usize]) -> Result<(), Stop> {
    if at.int("unidirectional", 0)? != 0 {
        return Err("expected attention in both directions".into());
    }
    if at.has(mask) && !matches!(at.arg(mask)?, Value::Mask) {
        return Err(format!("expected input {mask} to come of the attention mask").into());
    }
    match others.iter().find(|&&index| at.has(index)) {
        Some(index) => Err(format!("expected no input {index}").into()),
        None => Ok(()),
    }
}

/// Attention with the projections to query, key and value inside.
fn attention(at: &mut At<'_, '_>) -> Result<Id, Stop> {
    check_encoder(at, 3, &[4, 5])?;
    if at.int("do_rotary", 0)? != 0 || at.node.ints("qkv_hidden_sizes")?.is_some() {
        return Err("expected no rotary positions and equal sizes".into());
    }
    let x = at.rows(0)?;
    let Value::Constant(dense) = at.arg(1)? else { return Err("expected weights".into()) };
    let bias = match at.has(2) {
        true => match at.arg(2)? {
            Value::Constant(bias) => Some(bias),
            _ => return Err("expected a bias".into()),
        },
        false => None,
    };
    let qkv = linear(at, x, dense, bias)?;
    let width = at.walk.arena.width(qkv);
    let heads = at.count("num_heads")?;
    if !width.is_multiple_of(3 * heads) {
        return Err(format!("expected {heads} heads three times, got {width} columns").into());
    }
    let scale = scale(at)?.map(f64::from);
    Ok(at.walk.arena.add(Expr::PackedAttention { qkv, heads, scale }, width / 3))
}

fn multi_head(at: &mut At<'_, '_>) -> Result<Id, Stop> {
    check_encoder(at, 4, &[5, 6, 7, 8, 9])?;
    let (mut query, mut key, mut value) = (at.rows(0)?, at.rows(1)?, at.rows(2)?);
    let heads = at.count("num_heads")?;
    let width = at.walk.arena.width(query);
    let equal = [key, value].iter().all(|&id| at.walk.arena.width(id) == width);
    if !equal || !width.is_multiple_of(heads) {
        return Err("expected queries, keys and values of equal width".into());
    }
    if at.has(3) {
        return Err("expected biases on the projections, not on attention".into());
    }
    for id in [&mut query, &mut key, &mut value] {
        let (inner, factor) = at.walk.arena.unscaled(*id);
        if factor != 1.0 {
            return Err("expected the scale as an attribute".into());
        }
        *id = inner;
    }
    let scale = scale(at)?.map(f64::from);
    Ok(at.walk.arena.add(Expr::Attention { query, key, value, heads, scale }, width))
}

/// Cosines and sines, `[positions, pairs]`.
fn rotary(at: &At<'_, '_>, cos: usize, sin: usize) -> Result<Rotary, Stop> {
    let table = |index: usize| match at.arg(index)? {
        Value::Constant(Dense { constant, turned: false }) => {
            at.walk.constants.all[constant].weight_block()?;
            at.walk.constants.all[constant].matrix()?;
            Ok(constant)
        }
        _ => Err(Stop::from(format!("expected input {index} to be a table of positions"))),
    };
    let (cos, sin) = (table(cos)?, table(sin)?);
    let all = &at.walk.constants.all;
    if all[cos].dims != all[sin].dims || all[cos].dims.contains(&0) {
        return Err("expected cosines and sines of equal shape".into());
    }
    Ok(Rotary { cos, sin })
}

fn no_attributes(at: &At<'_, '_>, names: &[&str]) -> Result<(), Stop> {
    for name in names {
        if at.int(name, 0)? != 0 {
            return Err(format!("attribute {name}: expected 0").into());
        }
    }
    Ok(())
}

fn rotary_embedding(at: &mut At<'_, '_>) -> Result<Id, Stop> {
    no_attributes(at, &["interleaved", "is_packed_batching"])?;
    let x = at.rows(0)?;
    if !matches!(at.arg(1)?, Value::Positions) {
        return Err("expected positions".into());
    }
    let rotary = rotary(at, 2, 3)?;
    let width = at.walk.arena.width(x);
    Ok(at.walk.arena.add(Expr::Rotated { x, rotary }, width))
}

fn grouped(at: &mut At<'_, '_>) -> Result<Id, Stop> {
    no_attributes(at, &["rotary_interleaved", "smooth_softmax", "qk_output"])?;
    for name in ["softcap"] {
        if at.node.float(name)?.unwrap_or(0.0) != 0.0 {
            return Err(format!("attribute {name}: expected 0").into());
        }
    }
    for name in ["k_quant_type", "v_quant_type"] {
        if at.node.text(name)?.is_some_and(|kind| !matches!(kind, "" | "NONE")) {
            return Err(format!("attribute {name}: expected NONE").into());
        }
    }
    for index in 10..at.node.inputs.len() {
        if at.has(index) {
            return Err(format!("expected no input {index}").into());
        }
    }
    let (heads, kv_heads) = (at.count("num_heads")?, at.count("kv_num_heads")?);
    let query = at.rows(0)?;
    let key_value = match at.has(1) {
        true => Some((at.rows(1)?, at.rows(2)?)),
        false => None,
    };
    let width = at.walk.arena.width(query);
    let head = match key_value {
        Some(_) => width.checked_div(heads).filter(|head| head * heads == width),
        None => width
            .checked_div(heads + 2 * kv_heads)
            .filter(|head| head * (heads + 2 * kv_heads) == width),
    };
    let head = head.filter(|&head| head > 0).ok_or("expected heads that fill a row")?;
    if let Some((key, value)) = key_value
        && [key, value].iter().any(|&id| at.walk.arena.width(id) != kv_heads * head)
    {
        return Err(format!("expected {kv_heads} heads of {head} of keys and values").into());
    }
    let rotary = match at.int("do_rotary", 0)? {
        0 => None,
        _ => Some(rotary(at, 7, 8)?),
    };
    if at.has(9) && !matches!(at.arg(9)?, Value::Positions) {
        return Err("expected input 9 to be positions".into());
    }
    let window = match at.int("local_window_size", -1)? {
        -1 => None,
        size @ 1..=0xff_ffff => Some(size as u32),
        other => {
            return Err(
                format!("local_window_size: expected -1 or more than 0, got {other}").into()
            );
        }
    };
    let scale = scale(at)?;
    let grouped = Grouped { query, key_value, heads, kv_heads, scale, window, rotary };
    Ok(at.walk.arena.add(Expr::Grouped(grouped), heads * head))
}

fn matmul_nbits(at: &mut At<'_, '_>) -> Result<Id, Stop> {
    let x = at.rows(0)?;
    let constant = |index: usize| match at.arg(index)? {
        Value::Constant(Dense { constant, turned: false }) => Ok(constant),
        // A single number is one here too.
        _ => match at.walk.constants.find(at.node.input(index)) {
            Some(constant) => Ok(constant),
            None => Err(Stop::from(format!("expected input {index} to be weights"))),
        },
    };
    if at.has(4) {
        return Err("expected groups in order (no input 4)".into());
    }
    let blocks = NBits {
        codes: constant(1)?,
        scales: constant(2)?,
        zeros: if at.has(3) { Some(constant(3)?) } else { None },
        rows: at.count("N")?,
        cols: at.count("K")?,
        bits: at.int("bits", 4)?.clamp(0, 64) as usize,
        block: at.count("block_size")?,
    };
    blocks.check(&at.walk.constants)?;
    let width = at.walk.arena.width(x);
    if blocks.cols != width {
        return Err(format!("expected K to be {width}, got {}", blocks.cols).into());
    }
    let rows = blocks.rows;
    let bias = at.vector_if(5, rows)?;
    let matrix = Matrix::Blocks(Rc::new(blocks));
    Ok(at.walk.arena.add(Expr::Product { x, matrix, bias }, rows))
}
