//! Models of made-up weights in the shapes of published ones: for measuring time where the real
//! files are not at hand. What comes out of such a model means nothing.

mod blocks;
mod cache;
mod shapes;
mod vocabulary;
mod writer;

pub use blocks::{BlockPool, Random, normal};
pub use cache::{Cache, default_folder};
pub use shapes::{ExpertShape, RopeScaling, SHAPES, Shape, UnknownShape};
pub use writer::{Synthetic, SyntheticError};
