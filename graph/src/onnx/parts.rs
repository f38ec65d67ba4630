//! Pieces that encoders and decoders are found by: products, norms, and sums with what came before.

use super::OnnxError;
use super::build::Builder;
use super::value::{Arena, Dense, Expr, Id, Matrix};
use crate::ops::NormKind;

/// A product with its bias, or some rows of it.
#[derive(Clone)]
pub(super) struct Part {
    pub(super) matrix: Matrix,
    pub(super) bias: Option<Dense>,
    pub(super) first: usize,
    pub(super) rows: usize,
}

#[derive(Clone, Copy)]
pub(super) struct Norm {
    pub(super) weight: Dense,
    pub(super) bias: Option<Dense>,
    pub(super) eps: f32,
}

/// What is expected where an expression stands.
pub(super) struct Finder<'a> {
    pub(super) arena: &'a Arena,
    pub(super) place: String,
}

impl Finder<'_> {
    pub(super) fn error(&self, expected: &str, got: Id) -> OnnxError {
        self.mismatch(expected, self.arena.expr(got).kind())
    }

    pub(super) fn mismatch(&self, expected: &str, got: impl ToString) -> OnnxError {
        OnnxError::Structure {
            place: self.place.clone(),
            expected: expected.to_owned(),
            got: got.to_string(),
        }
    }

    /// A norm and what it is of.
    pub(super) fn norm(&self, id: Id, want: NormKind) -> Result<(Norm, Id), OnnxError> {
        match *self.arena.expr(id) {
            Expr::Norm { x, kind, eps, weight: Some(weight), bias } if kind == want => {
                Ok((Norm { weight, bias, eps }, x))
            }
            _ => Err(self.error("a norm with weights", id)),
        }
    }

    /// A product and what it is of.
    pub(super) fn product(&self, id: Id) -> Result<(Part, Id), OnnxError> {
        match self.arena.expr(id) {
            Expr::Product { x, matrix, bias } => {
                let rows = self.arena.width(id);
                let (matrix, bias) = (matrix.clone(), *bias);
                Ok((Part { matrix, bias, first: 0, rows }, *x))
            }
            _ => Err(self.error("a product with a matrix", id)),
        }
    }

    /// A product of `x`.
    pub(super) fn product_of(&self, id: Id, x: Id) -> Result<Part, OnnxError> {
        let (part, of) = self.product(id)?;
        if of == x { Ok(part) } else { Err(self.error("a product of the block's input", of)) }
    }

    /// A sum of a product and another tensor: the product, what it is of, and the other.
    pub(super) fn residual(&self, id: Id) -> Result<(Part, Id, Id), OnnxError> {
        let Expr::Sum(a, b) = *self.arena.expr(id) else {
            return Err(self.error("a sum with what came before", id));
        };
        let (branch, other) = match self.arena.expr(a) {
            Expr::Product { .. } => (a, b),
            _ => (b, a),
        };
        let (part, x) = self.product(branch)?;
        Ok((part, x, other))
    }
}

impl Part {
    /// Adds the weight and the bias of a role.
    pub(super) fn put(&self, builder: &mut Builder<'_>, role: &str) -> Result<(), OnnxError> {
        builder.rows(format!("{role}.weight"), &self.matrix, self.first, self.rows)?;
        if let Some(bias) = self.bias {
            builder.vector(format!("{role}.bias"), bias, self.first, self.rows)?;
        }
        Ok(())
    }
}

impl Norm {
    /// Adds the weight and the bias of a role.
    pub(super) fn put(
        &self,
        builder: &mut Builder<'_>,
        role: &str,
        width: usize,
    ) -> Result<(), OnnxError> {
        builder.vector(format!("{role}.weight"), self.weight, 0, width)?;
        match self.bias {
            Some(bias) => builder.vector(format!("{role}.bias"), bias, 0, width),
            None => Ok(()),
        }
    }
}
