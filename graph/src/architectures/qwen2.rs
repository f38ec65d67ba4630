//! Qwen 2 and 2.5: biases on query, key and value (found by their tensors).

use crate::NodeIndex;
use crate::lowering::{AttentionStyle, LowerError, Lowering};
use crate::ops::RopeStyle;

pub(super) fn lower(model: &mut Lowering<'_>) -> Result<NodeIndex, LowerError> {
    let style = AttentionStyle {
        rope: model.rope_table()?,
        rope_style: RopeStyle::Halves,
        qk_norm: false,
        window: None,
        scale: super::inverse_root(model.hyper.head_dim),
        softcap: None,
    };
    super::plain_decoder(model, &style)
}
