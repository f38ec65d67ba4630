//! How each quantised format looks to integer products.

use trefoil_graph::BlockType;

/// Rows of activations share one 8-bit scale over this many columns in [`Scaling::Single`] formats.
pub(super) const SHORT: usize = 32;
/// The same in [`Scaling::Super`] formats.
pub(super) const LONG: usize = 256;

/// Where a format keeps its scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cpu) enum Scaling {
    /// A scale (and perhaps an added minimum) of its own for each group of weights.
    Single,
    /// One scale for 256 weights, times a small whole number for each group (and perhaps the same
    /// again for a subtracted minimum).
    Super,
}

/// A quantised format as whole-number codes in groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cpu) struct IntegerForm {
    pub(in crate::cpu) scaling: Scaling,
    /// Weights a group: 16 or 32.
    pub(in crate::cpu) group: usize,
    /// Codes are stored with this added, which makes them unsigned bytes. A power of two or 0.
    pub(in crate::cpu) offset: i32,
    /// Are there minimums?
    pub(in crate::cpu) minimum: bool,
}

const fn form(scaling: Scaling, group: usize, offset: i32, minimum: bool) -> Option<IntegerForm> {
    Some(IntegerForm { scaling, group, offset, minimum })
}

/// The integer form of a format; `None` for plain numbers, which have none.
pub(in crate::cpu) const fn integer_form(block: BlockType) -> Option<IntegerForm> {
    use BlockType::*;
    use Scaling::{Single, Super};
    match block {
        F32 | F16 | BF16 | F64 | I8 | I16 | I32 | I64 => None,
        Q4_0 => form(Single, 32, 8, false),
        Q4_1 | Q5_1 => form(Single, 32, 0, true),
        Q5_0 => form(Single, 32, 16, false),
        Q8_0 | Q8_1 | IQ4_NL => form(Single, 32, 128, false),
        MXFP4 => form(Single, 32, 16, false),
        NVFP4 => form(Single, 16, 16, false),
        Q1_0 | Q2_0 => form(Single, 32, 1, false),
        Q2_K => form(Super, 16, 0, true),
        Q3_K => form(Super, 16, 4, false),
        Q4_K | Q5_K => form(Super, 32, 0, true),
        Q6_K => form(Super, 16, 32, false),
        Q8_K | IQ4_XS => form(Super, 32, 128, false),
        IQ1_S => form(Super, 32, 16, false),
        IQ1_M => form(Super, 16, 16, false),
        IQ2_XXS | IQ3_XXS | IQ3_S => form(Super, 32, 64, false),
        IQ2_XS | IQ2_S => form(Super, 16, 64, false),
        TQ1_0 | TQ2_0 => form(Super, 32, 1, false),
    }
}

/// What [`super::Form::Int8`] means for a format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Int8Support {
    /// Integer products on the stored codes.
    Native,
    /// No codes: computed as [`super::Form::Exact`].
    ViaF32,
}

/// How a format is computed when [`super::Form::Int8`] is asked for.
pub fn int8_support(block: BlockType) -> Int8Support {
    match integer_form(block) {
        Some(_) => Int8Support::Native,
        None => Int8Support::ViaF32,
    }
}
