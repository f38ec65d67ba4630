//! What the values of an ONNX graph mean for a language model.
//!
//! A graph is walked once in its order, and each value gets a meaning: a number, a shape, the mask, or
//! data, which is an expression over the model's weights. How a program wrote its reshapes, transposes
//! and the order of products with numbers leaves no trace, so that one matcher serves all of them. What
//! has no meaning says which op was the first without one.

use std::rc::Rc;

use super::blocks::NBits;
use crate::ops::{Nonlinearity, NormKind};

/// Number of an expression.
pub(super) type Id = usize;

/// One entry of a shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dim {
    Known(i64),
    /// Depends on the input: batch, tokens, or what is computed from them.
    Dynamic,
}

/// Integers that describe shapes or places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ints {
    pub(super) dims: Vec<Dim>,
    /// Rank 0 and not 1.
    pub(super) scalar: bool,
}

/// How the elements of data lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// `[batch, tokens, width]`.
    Rows,
    /// `[batch, tokens, heads, head_dim]`.
    Heads(usize),
    /// `[batch, heads, tokens, head_dim]`.
    HeadsFirst(usize),
    /// `[batch, heads, head_dim, tokens]`.
    HeadsTurned(usize),
    /// `[batch, heads, tokens, tokens]`.
    Scores,
    /// `[batch, width]`.
    Pooled,
}

/// Why a value has no meaning here.
#[derive(Debug)]
pub(super) struct Unknown {
    pub(super) op: String,
    pub(super) node: String,
    pub(super) why: String,
}

/// A constant as a matrix or vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Dense {
    /// Number of the constant.
    pub(super) constant: usize,
    /// Is it read as its transpose?
    pub(super) turned: bool,
}

/// A weight matrix of a product.
#[derive(Clone, Debug)]
pub(super) enum Matrix {
    /// Plain; `[in, out]`, or `[out, in]` if turned.
    Dense(Dense),
    /// In blocks with scales, `[out, in]`.
    Blocks(Rc<NBits>),
}

/// The meaning of a value.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Unknown(Rc<Unknown>),
    /// The token ids.
    Tokens,
    /// What comes of the attention mask alone.
    Mask,
    /// Segment ids that are 0.
    ZeroIds,
    /// Positions 0, 1, 2, ...
    Positions,
    /// Keys and values of earlier steps, and their lengths: the engine's own business.
    Cache,
    Ints(Ints),
    Number(f64),
    Constant(Dense),
    Data(Id, Layout),
    /// Where data is not a number.
    IsNan(Id),
    /// Length of each pooled row.
    Length(Id),
}

/// Rotary positions within an op.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rotary {
    pub(super) cos: usize,
    pub(super) sin: usize,
}

/// Attention with keys and values of fewer heads, as one op.
#[derive(Clone, Debug)]
pub(super) struct Grouped {
    pub(super) query: Id,
    /// Key and value; `None` where the query holds all three.
    pub(super) key_value: Option<(Id, Id)>,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) scale: Option<f32>,
    pub(super) window: Option<u32>,
    pub(super) rotary: Option<Rotary>,
}

/// Which part of a norm an expression is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Moment {
    /// Mean of squares, or variance.
    Plain,
    /// With eps added.
    Shifted(f32),
    /// Its root.
    Root(f32),
    /// One over its root.
    InverseRoot(f32),
}

/// An expression over weights; operands are numbers of earlier ones.
#[derive(Clone, Debug)]
pub(super) enum Expr {
    /// Rows of the token table.
    Embedded(Dense),
    /// Rows of the table of positions.
    Positional(Dense),
    /// Row 0 of the table of segments.
    Typed(Dense),
    Sum(Id, Id),
    Scaled(Id, f64),
    Product {
        x: Id,
        matrix: Matrix,
        bias: Option<Dense>,
    },
    Norm {
        x: Id,
        kind: NormKind,
        eps: f32,
        weight: Option<Dense>,
        bias: Option<Dense>,
    },
    Activation(Id, Nonlinearity),
    Sigmoid(Id),
    Gated {
        gate: Id,
        up: Id,
    },
    Rotated {
        x: Id,
        rotary: Rotary,
    },
    Scores {
        query: Id,
        key: Id,
        scale: f64,
        heads: usize,
    },
    Weights {
        query: Id,
        key: Id,
        scale: f64,
        heads: usize,
    },
    /// Attention in both directions.
    Attention {
        query: Id,
        key: Id,
        value: Id,
        heads: usize,
        scale: Option<f64>,
    },
    /// The same with query, key and value in one.
    PackedAttention {
        qkv: Id,
        heads: usize,
        scale: Option<f64>,
    },
    Grouped(Grouped),
    Last(Id),
    First(Id),
    /// Rows with those of padding at 0.
    Masked(Id),
    MaskedSum(Id),
    Mean(Id),
    // Parts of norms that are written out.
    RowMean(Id),
    Centred(Id),
    Square(Id),
    Statistic {
        x: Id,
        kind: NormKind,
        moment: Moment,
    },
    // Parts of the error function's GELU.
    Erf(Id),
    ErfPlusOne(Id),
}

impl Expr {
    /// What it is, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Embedded(_) => "a token's embedding",
            Self::Positional(_) => "a position's embedding",
            Self::Typed(_) => "a segment's embedding",
            Self::Sum(..) => "a sum",
            Self::Scaled(..) => "a product with a number",
            Self::Product { .. } => "a product with a matrix",
            Self::Norm { .. } => "a norm",
            Self::Activation(..) => "an activation",
            Self::Sigmoid(_) => "a sigmoid",
            Self::Gated { .. } => "a gated activation",
            Self::Rotated { .. } => "a rotation by positions",
            Self::Scores { .. } => "attention's products",
            Self::Weights { .. } => "attention's weights",
            Self::Attention { .. } | Self::PackedAttention { .. } => "attention",
            Self::Grouped(_) => "causal attention",
            Self::Last(_) => "the last row",
            Self::First(_) => "the first row",
            Self::Masked(_) | Self::MaskedSum(_) | Self::Mean(_) => "a mean of rows",
            Self::RowMean(_) | Self::Centred(_) | Self::Square(_) | Self::Statistic { .. } => {
                "a part of a norm"
            }
            Self::Erf(_) | Self::ErfPlusOne(_) => "a part of an activation",
        }
    }
}

/// All expressions of a graph, each with the width of its rows.
#[derive(Debug, Default)]
pub(super) struct Arena {
    entries: Vec<(Expr, usize)>,
}

impl Arena {
    /// Adds an expression.
    pub(super) fn add(&mut self, expr: Expr, width: usize) -> Id {
        self.entries.push((expr, width));
        self.entries.len() - 1
    }

    pub(super) fn expr(&self, id: Id) -> &Expr {
        &self.entries[id].0
    }

    /// Elements of a row, all heads together.
    pub(super) fn width(&self, id: Id) -> usize {
        self.entries[id].1
    }

    /// `x * factor`; products with numbers collapse, and with 1 vanish.
    pub(super) fn scaled(&mut self, x: Id, factor: f64) -> Id {
        let (x, factor) = match *self.expr(x) {
            Expr::Scaled(inner, own) => (inner, own * factor),
            _ => (x, factor),
        };
        // The numbers come in single precision.
        if (factor - 1.0).abs() < 1e-6 {
            return x;
        }
        let width = self.width(x);
        self.add(Expr::Scaled(x, factor), width)
    }

    /// What is multiplied with a number, and the number.
    pub(super) fn unscaled(&self, x: Id) -> (Id, f64) {
        match *self.expr(x) {
            Expr::Scaled(inner, factor) => (inner, factor),
            _ => (x, 1.0),
        }
    }
}
