//! BERT encoders for embeddings: norms after the blocks, attention in both directions, pooling.

use crate::hyper::HyperError;
use crate::lowering::{LowerError, Lowering, PoolingChoice};
use crate::ops::{Activation, Embed, Nonlinearity, NormKind, Normalise, Pool, Pooling};
use crate::{NodeIndex, UnitKind};

pub(super) fn lower(model: &mut Lowering<'_>) -> Result<NodeIndex, LowerError> {
    model.hyper.causal = false;
    let mut x = embed(model)?;
    for layer in 0..model.hyper.layers {
        x = block(model, layer, x)?;
    }
    head(model, x)
}

fn embed(model: &mut Lowering<'_>) -> Result<NodeIndex, LowerError> {
    model.graph.begin_unit(UnitKind::Embed, None);
    let (embedding, context) = (model.hyper.embedding, model.hyper.context);
    let op = Embed {
        table: model.tensor("token_embd.weight")?,
        scale: 1.0,
        positions: Some(model.matrix("position_embd.weight", context, embedding)?),
        types: model.find("token_types.weight")?,
    };
    let x = model.push("token_embd", op, &[])?;
    model.norm("token_embd_norm", NormKind::Layer, x, embedding)
}

fn block(model: &mut Lowering<'_>, layer: usize, x: NodeIndex) -> Result<NodeIndex, LowerError> {
    let role = |name: &str| format!("blk.{layer}.{name}");
    let (embedding, ffn) = (model.hyper.embedding, model.hyper.ffn);
    model.graph.begin_unit(UnitKind::AttnIn, Some(layer));
    let qkv = model.project_qkv(layer, x)?;
    let scale = super::inverse_root(model.hyper.head_dim);
    let attended = model.attn(layer, qkv, None, scale, None)?;
    let y = model.attn_out(layer, attended, x, None)?;
    let y = model.norm(&role("attn_output_norm"), NormKind::Layer, y, embedding)?;
    model.graph.begin_unit(UnitKind::Ffn, Some(layer));
    let up = model.linear(&role("ffn_up"), y, ffn)?;
    let up = model.push(role("ffn_act"), Activation { function: activation(model)? }, &[up])?;
    let down = model.linear(&role("ffn_down"), up, embedding)?;
    let sum = model.add(role("ffn_residual"), down, y)?;
    model.norm(&role("layer_output_norm"), NormKind::Layer, sum, embedding)
}

/// The exact GELU, unless `bert.activation` says `gelu_tanh`.
fn activation(model: &Lowering<'_>) -> Result<Nonlinearity, LowerError> {
    match model.keys()?.text("activation")? {
        None | Some("gelu") => Ok(Nonlinearity::GeluErf),
        Some("gelu_tanh") => Ok(Nonlinearity::GeluTanh),
        Some(other) => Err(LowerError::Hyper(HyperError::Range {
            key: "bert.activation".to_owned(),
            expected: "gelu or gelu_tanh".to_owned(),
            got: other.to_owned(),
        })),
    }
}

fn head(model: &mut Lowering<'_>, x: NodeIndex) -> Result<NodeIndex, LowerError> {
    model.graph.begin_unit(UnitKind::Head, None);
    let from_file = model.hyper.pooling.unwrap_or(Pooling::Mean);
    let (pooling, normalise) = match model.options.pooling {
        PoolingChoice::File => (from_file, true),
        PoolingChoice::Pool(pooling) => (pooling, true),
        PoolingChoice::Raw(pooling) => (pooling, false),
        PoolingChoice::Rows => return model.push("output_rows", crate::ops::SelectRows, &[x]),
    };
    let pooled = model.push("pool", Pool { pooling }, &[x])?;
    if normalise { model.push("normalise", Normalise, &[pooled]) } else { Ok(pooled) }
}
