//! Llama 2 and 3, Mistral, SmolLM2 and others of the same build.

use crate::NodeIndex;
use crate::lowering::{AttentionStyle, LowerError, Lowering};

pub(super) fn lower(model: &mut Lowering<'_>) -> Result<NodeIndex, LowerError> {
    let style = AttentionStyle {
        rope: model.rope_table()?,
        rope_style: model.permuted_rope_style(),
        qk_norm: false,
        window: model.hyper.window,
        scale: super::inverse_root(model.hyper.head_dim),
        softcap: None,
    };
    super::plain_decoder(model, &style)
}
