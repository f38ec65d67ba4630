//! Phi 3, 3.5 and 4 mini: fused projections (found by their tensors), longrope.

use crate::NodeIndex;
use crate::lowering::{AttentionStyle, LowerError, Lowering};
use crate::ops::RopeStyle;

pub(super) fn lower(model: &mut Lowering<'_>) -> Result<NodeIndex, LowerError> {
    let style = AttentionStyle {
        rope: model.rope_table()?,
        rope_style: RopeStyle::Halves,
        qk_norm: false,
        window: model.hyper.window,
        scale: super::inverse_root(model.hyper.head_dim),
        softcap: None,
    };
    super::plain_decoder(model, &style)
}
