//! Decides which unit of a model runs on which device in which phase.
//!
//! Pure functions of facts: no backend, no I/O, no clock of its own.

pub mod cost;
pub mod fit;
mod memory;
pub mod partition;
mod pieces;
mod pin;
mod place;
mod plan;
pub mod planner;
pub mod policy;
pub mod profile;
pub mod simulate;
mod size;
mod split;
mod split_cost;
pub mod tensor_pool;
mod toml_text;

pub use pieces::{Piece, PieceShare};
pub use pin::{Pin, PinError};
pub use place::{DeviceFacts, PlaceError, Request, place};
pub use plan::{
    Alternative, BucketPlan, DomainMemory, LinearSplit, ModelRef, PLAN_VERSION, PinReport, Plan,
    PlanError, Prediction, SegmentPlan, SegmentPrediction, Share, Totals, Transfer, UnitPlacement,
};
pub use size::Size;
pub use toml_text::{TomlError, read as read_toml};

/// The candidate most like `name`, for "did you mean".
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(likeness, _)| *likeness > 0.5)
        .map(|(_, candidate)| candidate)
}
