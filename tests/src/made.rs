//! Models of made-up weights for tests.

use std::path::Path;

use trefoil_engine::model::Lowered;
use trefoil_engine::quantize::Mixture;
use trefoil_engine::synthetic::{Shape, Synthetic};

use crate::running::lowered;

/// A model that runs in a moment.
pub const TINY: Shape = Shape {
    name: "tiny",
    architecture: "qwen3",
    layers: 3,
    embedding: 256,
    heads: 4,
    kv_heads: 2,
    head_dim: 64,
    ffn: 512,
    experts: None,
    vocabulary: 300,
    tied: true,
    context: 512,
    rope_base: 1e6,
    rope_scaling: None,
    norm_eps: 1e-6,
};

/// A model of this shape, written to `folder` and opened.
pub fn made(folder: &Path, shape: Shape, mixture: Mixture) -> Lowered {
    let model = Synthetic { shape, mixture, tokenizer: None };
    let path = folder.join(format!("{}-{mixture}.gguf", shape.architecture));
    model.write(&path, &mut |done, total| assert!(done <= total)).expect("writes");
    lowered(&path)
}
