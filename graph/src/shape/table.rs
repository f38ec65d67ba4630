//! The shapes that are known by name.

use std::str::FromStr;

use super::{ModelShape, RopeScaling};
use crate::ExpertHyper;

/// What models of one family have in common.
struct Family {
    architecture: &'static str,
    context: usize,
    rope_base: f32,
    rope_scaling: Option<RopeScaling>,
    norm_eps: f32,
}

/// Llama 3's scaling, which differs in its factor alone.
const fn llama3(factor: f64) -> Family {
    let scaling = RopeScaling { factor, low: 1.0, high: 4.0, original_context: 8192.0 };
    Family {
        architecture: "llama",
        context: 131_072,
        rope_base: 5e5,
        rope_scaling: Some(scaling),
        norm_eps: 1e-5,
    }
}

const fn qwen(architecture: &'static str, context: usize) -> Family {
    Family { architecture, context, rope_base: 1e6, rope_scaling: None, norm_eps: 1e-6 }
}

const LLAMA_2: Family = Family {
    architecture: "llama",
    context: 4096,
    rope_base: 1e4,
    rope_scaling: None,
    norm_eps: 1e-5,
};
const LLAMA_3_1: Family = llama3(8.0);
const LLAMA_3_2: Family = llama3(32.0);
const QWEN2: Family = qwen("qwen2", 32_768);
const QWEN3: Family = qwen("qwen3", 40_960);
const QWEN3MOE: Family = qwen("qwen3moe", 40_960);

const A3B: Option<ExpertHyper> = Some(ExpertHyper { count: 128, used: 8, ffn: 768 });

macro_rules! shapes {
    ($($name:literal $family:ident $layers:literal $embedding:literal $heads:literal $kv:literal
       $dim:literal $ffn:literal $vocabulary:literal $tied:literal $experts:expr;)*) => {
        /// Shapes that are known by name.
        pub const SHAPES: &[ModelShape] = &[$(ModelShape {
            name: $name, architecture: $family.architecture, layers: $layers,
            embedding: $embedding, heads: $heads, kv_heads: $kv, head_dim: $dim, ffn: $ffn,
            vocabulary: $vocabulary, tied: $tied, context: $family.context, experts: $experts,
            rope_base: $family.rope_base, rope_scaling: $family.rope_scaling,
            norm_eps: $family.norm_eps,
        },)*];
    };
}

shapes! {
    // name          family    layers width heads kv dim  ffn  vocabulary tied  experts
    "llama-2-7b"     LLAMA_2       32  4096  32   32  128  11008   32000  false  None;
    "llama-3.1-8b"   LLAMA_3_1     32  4096  32    8  128  14336  128256  false  None;
    "llama-3.2-1b"   LLAMA_3_2     16  2048  32    8   64   8192  128256  true   None;
    "llama-3.2-3b"   LLAMA_3_2     28  3072  24    8  128   8192  128256  true   None;
    "qwen2-1.5b"     QWEN2         28  1536  12    2  128   8960  151936  true   None;
    "qwen2-7b"       QWEN2         28  3584  28    4  128  18944  152064  false  None;
    "qwen2.5-14b"    QWEN2         48  5120  40    8  128  13824  152064  false  None;
    "qwen2.5-32b"    QWEN2         64  5120  40    8  128  27648  152064  false  None;
    "qwen3-0.6b"     QWEN3         28  1024  16    8  128   3072  151936  true   None;
    "qwen3-1.7b"     QWEN3         28  2048  16    8  128   6144  151936  true   None;
    "qwen3-4b"       QWEN3         36  2560  32    8  128   9728  151936  true   None;
    "qwen3-8b"       QWEN3         36  4096  32    8  128  12288  151936  false  None;
    "qwen3-14b"      QWEN3         40  5120  40    8  128  17408  151936  false  None;
    "qwen3-30b-a3b"  QWEN3MOE      48  2048  32    4  128   6144  151936  false  A3B;
}

/// Not the name of a shape.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "shape {got:?} is not known; expected one of {}",
    ModelShape::names().collect::<Vec<_>>().join(", ")
)]
pub struct UnknownShape {
    /// What was given.
    pub got: String,
}

impl ModelShape {
    /// Names of all known shapes.
    pub fn names() -> impl Iterator<Item = &'static str> {
        SHAPES.iter().map(|shape| shape.name)
    }

    /// The shape of this name, whatever the case.
    pub fn find(name: &str) -> Option<&'static Self> {
        SHAPES.iter().find(|shape| shape.name.eq_ignore_ascii_case(name))
    }
}

impl FromStr for ModelShape {
    type Err = UnknownShape;

    /// The shape of this name, whatever the case.
    fn from_str(name: &str) -> Result<Self, UnknownShape> {
        Self::find(name).copied().ok_or_else(|| UnknownShape { got: name.to_owned() })
    }
}
