//! Models of made-up weights in the shapes of published ones: for measuring time where the real
//! files are not at hand. What comes out of such a model means nothing.

mod blocks;
mod cache;
mod vocabulary;
mod writer;

pub use blocks::{BlockPool, Random, normal};
pub use cache::{Cache, default_folder};
pub use trefoil_graph::shape::ModelShape as Shape;
pub use writer::{Synthetic, SyntheticError};
