//! Qwen 3 with a mixture of experts in each block.

use crate::hyper::{ExpertHyper, HyperError};
use crate::lowering::{AttentionStyle, LowerError, Lowering};
use crate::ops::{Experts, Nonlinearity, RopeStyle, Route};
use crate::{NodeIndex, UnitKind, Weight};

pub(super) fn lower(model: &mut Lowering<'_>) -> Result<NodeIndex, LowerError> {
    let keys = model.keys()?;
    let Some(experts) = model.hyper.experts else {
        return Err(LowerError::Hyper(HyperError::Range {
            key: keys.key("expert_count"),
            expected: "at least 1".to_owned(),
            got: "none".to_owned(),
        }));
    };
    let renormalise = keys.truth("expert_weights_norm")?.unwrap_or(true);
    let style = AttentionStyle {
        rope: model.rope_table()?,
        rope_style: RopeStyle::Halves,
        qk_norm: true,
        window: None,
        scale: super::inverse_root(model.hyper.head_dim),
        softcap: None,
    };
    let mut x = model.embed(1.0)?;
    for layer in 0..model.hyper.layers {
        x = model.attention_block(layer, x, &style, None)?;
        x = moe(model, layer, x, experts, renormalise)?;
    }
    model.logits_head(x)
}

fn moe(
    model: &mut Lowering<'_>,
    layer: usize,
    x: NodeIndex,
    experts: ExpertHyper,
    renormalise: bool,
) -> Result<NodeIndex, LowerError> {
    model.graph.begin_unit(UnitKind::Moe, Some(layer));
    let role = |name: &str| format!("blk.{layer}.{name}");
    let embedding = model.hyper.embedding;
    let normed = model.rms_norm(&role("ffn_norm"), x)?;
    let router = model.matrix(&role("ffn_gate_inp.weight"), experts.count, embedding)?;
    let route = Route { weight: router, top_k: experts.used, renormalise };
    let route = model.push(role("ffn_gate_inp"), route, &[normed])?;
    let op = Experts {
        gate: expert_matrices(
            model,
            &role("ffn_gate_exps"),
            experts.count,
            experts.ffn,
            embedding,
        )?,
        up: expert_matrices(model, &role("ffn_up_exps"), experts.count, experts.ffn, embedding)?,
        down: expert_matrices(
            model,
            &role("ffn_down_exps"),
            experts.count,
            embedding,
            experts.ffn,
        )?,
        function: Nonlinearity::Silu,
        top_k: experts.used,
    };
    let y = model.push(role("ffn_exps"), op, &[normed, route])?;
    model.add(role("ffn_residual"), y, x)
}

/// Matrices of `rows` x `cols` per expert: one stacked tensor, or one tensor each.
fn expert_matrices(
    model: &Lowering<'_>,
    role: &str,
    count: usize,
    rows: usize,
    cols: usize,
) -> Result<Vec<Weight>, LowerError> {
    if model.find(&format!("{role}.weight"))?.is_some() {
        let stacked = model.matrix(&format!("{role}.weight"), count * rows, cols)?;
        return Ok((0..count)
            .map(|e| stacked.slice_rows(format!("{role}.{e}.weight"), e * rows, rows))
            .collect());
    }
    (0..count).map(|e| model.matrix(&format!("{role}.{e}.weight"), rows, cols)).collect()
}
