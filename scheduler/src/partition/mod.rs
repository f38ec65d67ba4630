//! Exact placement of units on devices, all modes (buckets of prefill and decode) together.
//!
//! # The problem
//! [`Instance`] is the whole problem as plain data, and [`Instance::score`] the one definition of
//! what a placement costs. A placement chooses for every unit one *home* (which devices' memory its
//! weights lie in, and which domain its KV pages lie in, per phase), and for every mode and unit one
//! device that this home serves. In each mode the units run in their order; a mode costs what its
//! units cost where they run, plus a start whenever the device changes, plus a move whenever a
//! device reads a tensor from a domain that it cannot address. Homes take memory out of budgets:
//! choosing a home once for all modes is what counts shared weights once. A home that keeps KV pages
//! in one domain for prefill and in another for decode carries the price of the move. A device that
//! a home does not serve may still run the unit in modes where its weights can be *streamed* to it
//! from the home: they are copied for every step, which costs time instead of memory.
//!
//! # Why the result is exact
//! 1. *States.* Within a mode, what units after `u` cost depends on the units up to `u` only through
//!    the last device and, for each tensor still to be read, where it was made and which domains
//!    hold it (`trellis`). This holds for any order of a branching graph, residual edges included; a
//!    chain is the case of one live tensor. Layer graphs have two live tensors at most, so there are
//!    few states.
//! 2. *Bound.* Two things couple the modes: they share a unit's home, and homes share budgets.
//!    `bound` prices both. With a price per byte and a toll per (mode, unit, device), paid by the
//!    mode and received by the home, every mode is a shortest path of its own and every home a
//!    minimum of its own, which is also what pays for streaming; the tolls cancel in any real placement, and prices are at least zero while
//!    `memory - budget` is at most zero. So the sum of the minima is a lower bound whatever the
//!    prices are (Lagrangian duality); bad prices make it weak, never wrong.
//! 3. *Search.* `search` extends labels unit by unit, all modes at once. A label is dropped only if
//!    (a) another with the same states in all modes costs no more and takes no more of any budget:
//!    by 1, every completion of the dropped one completes the other at least as cheaply; or (b) its
//!    cost plus the bound on its completion reaches the cost of a placement already known; or (c) a
//!    budget cannot hold what it and all units after it take at least. What remains at the last unit
//!    contains an optimum. Budgets that no choice of homes can exceed are left out of (a).
//! 4. *Limits.* With more labels than [`Limits::width`] (or ways on than [`Limits::branches`]) some
//!    are dropped. Their least bound is then a lower bound on what was missed, and the [`Solution`] says so: its `lower_bound` is what
//!    is proved, and `optimal` is true only if that is the cost itself.
//!
//! One step is modelled as devices that work one after another. Work of two devices at the same time
//! (independent branches, pipelined chunks, one linear split in two) is not a choice here.

mod bound;
mod instance;
mod search;
mod trellis;

pub use instance::{
    Assignment, Budget, DeviceNode, DeviceSet, Home, Instance, MAX_BUDGETS, MAX_DEVICES,
    MAX_DOMAINS, MAX_MODES, Malformed, Mode, Score, TensorEdge,
};

use bound::Dual;
use search::Search;
pub(crate) use search::contested;
use trefoil_telemetry::Bytes;
use trellis::Trellis;

/// How far to go for a proof.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Most labels kept per unit.
    pub width: usize,
    /// Most ways on from a label and home.
    pub branches: usize,
    /// Passes that raise the bound.
    pub rounds: usize,
    /// A placement that is better by less than this share of the cost is not looked for.
    pub tolerance: f64,
    /// A placement that is proved to be within this share of the best is not improved further.
    pub enough: f64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { width: 512, branches: 3, rounds: 40, tolerance: 1e-3, enough: 1e-2 }
    }
}

impl Limits {
    /// No limit but memory: the result is an optimum, up to rounding.
    pub const EXACT: Self =
        Self { width: usize::MAX, branches: usize::MAX, rounds: 40, tolerance: 0.0, enough: 0.0 };
}

/// A placement, and what is known of how good it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Solution {
    /// The placement.
    pub assignment: Assignment,
    /// Its cost, in the unit of the objective.
    pub cost: f64,
    /// Bytes of each budget that it takes.
    pub memory: Vec<u64>,
    /// No placement costs less than this.
    pub lower_bound: f64,
    /// Is it proved that none is better (by more than the tolerance)?
    pub optimal: bool,
}

impl Solution {
    /// How much of the cost could be saved at most, as a share.
    pub fn gap(&self) -> f64 {
        if self.cost > 0.0 { (self.cost - self.lower_bound).max(0.0) / self.cost } else { 0.0 }
    }
}

/// A problem without a solution.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PartitionError {
    /// The data.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// A unit that no device may run, whatever the memory.
    #[error("no device can run {unit}: pins and what devices refuse leave none")]
    NoDevice {
        /// The unit.
        unit: String,
    },
    /// Nothing fits.
    #[error(
        "the model does not fit: {budgets}; allow more memory, more devices, a shorter context"
    )]
    DoesNotFit {
        /// Every budget: what there is, and what is needed at least.
        budgets: String,
    },
    /// Labels ran out before one placement was complete.
    #[error("no placement found with {width} labels per unit; pins and budgets leave very few")]
    NotFound {
        /// Labels per unit.
        width: usize,
    },
}

/// Finds the best placement.
pub fn solve(instance: &Instance, limits: Limits) -> Result<Solution, PartitionError> {
    let found = solve_below(instance, limits, f64::INFINITY)?;
    Ok(found.expect("only a limit can rule placements out"))
}

/// Finds the best placement that costs less than `most`; `None` if it is proved that there is none.
pub fn solve_below(
    instance: &Instance,
    limits: Limits,
    most: f64,
) -> Result<Option<Solution>, PartitionError> {
    instance.check()?;
    for (unit, name) in instance.units.iter().enumerate() {
        if !instance.homes[unit].iter().any(|home| instance.serves(unit, home)) {
            return Err(PartitionError::NoDevice { unit: name.clone() });
        }
    }
    if needs(instance).iter().zip(&instance.budgets).any(|(need, have)| *need > have.bytes) {
        return Err(does_not_fit(instance));
    }
    let trellis = Trellis::new(instance);
    let contested = contested(instance);
    let mut dual = Dual::new(instance, &trellis);
    if !dual.ascend(&contested, limits.rounds) {
        return Err(does_not_fit(instance));
    }
    // A bound above what any placement can cost proves that there is none.
    if dual.value() > ceiling(instance) * (1.0 + 1e-9) {
        return Err(does_not_fit(instance));
    }
    if dual.value() >= most {
        return Ok(None);
    }
    let mut search = Search::new(instance, &trellis, &dual, &contested);
    let mut best: Option<(f64, Assignment)> = None;
    let mut lower_bound = dual.value();
    // Narrow searches first: what they find cuts the wide ones.
    for width in [16, 64, limits.width] {
        let known = best.as_ref().map_or(most, |(cost, _)| *cost);
        let limit = known * (1.0 - limits.tolerance);
        let found = search.run(limit, width.min(limits.width), limits.branches);
        let cost = found.best.as_ref().map_or(f64::INFINITY, |(cost, _)| *cost);
        // Every placement costs at least the limit, or was dropped, or is no better than that found.
        lower_bound = lower_bound.max(limit.min(found.dropped).min(cost));
        best = found.best.or(best);
        let cost = cost.min(known);
        if found.dropped.is_infinite() || cost - lower_bound <= cost * limits.enough {
            break;
        }
    }
    if best.is_none() && lower_bound.is_infinite() {
        return Err(does_not_fit(instance));
    }
    if best.is_none() && lower_bound >= most * (1.0 - limits.tolerance) {
        return Ok(None);
    }
    let Some((_, assignment)) = best else {
        return Err(PartitionError::NotFound { width: limits.width });
    };
    let score = instance.score(&assignment).expect("the search keeps the rules");
    // Sums in another order differ in the last digits.
    let lower_bound = lower_bound.min(score.cost);
    let optimal = score.cost - lower_bound <= score.cost * limits.tolerance.max(1e-9);
    let (cost, memory) = (score.cost, score.memory);
    Ok(Some(Solution { assignment, cost, memory, lower_bound, optimal }))
}

/// Bytes of each budget that any placement takes.
fn needs(instance: &Instance) -> Vec<u64> {
    let least = |budget: usize, unit: usize| {
        let usable = instance.homes[unit].iter().filter(|home| instance.serves(unit, home));
        usable.map(|home| home.memory[budget]).min().unwrap_or(0)
    };
    let of = |budget: usize| (0..instance.units.len()).map(|unit| least(budget, unit)).sum();
    (0..instance.budgets.len()).map(of).collect()
}

/// No placement costs more than this.
fn ceiling(instance: &Instance) -> f64 {
    let most = |costs: &mut dyn Iterator<Item = f64>| costs.fold(0.0, f64::max);
    let homes = instance.homes.iter().map(|homes| most(&mut homes.iter().map(|home| home.cost)));
    let modes = instance.modes.iter().map(|mode| {
        let start = most(&mut mode.start.iter().copied());
        let rows = mode.run.iter().chain(&mode.stream);
        let runs = rows.map(|row| most(&mut row.iter().flatten().copied()) + start);
        let moves = mode.transfer.iter().map(|table| {
            most(&mut table.iter().flatten().flatten().copied()) * instance.domains.len() as f64
        });
        runs.sum::<f64>() + moves.sum::<f64>()
    });
    homes.sum::<f64>() + modes.sum::<f64>()
}

fn does_not_fit(instance: &Instance) -> PartitionError {
    let budgets = instance.budgets.iter().zip(needs(instance)).map(|(budget, need)| {
        format!("{} has {}, needs at least {}", budget.name, Bytes(budget.bytes), Bytes(need))
    });
    PartitionError::DoesNotFit { budgets: budgets.collect::<Vec<_>>().join("; ") }
}

#[cfg(test)]
mod tests;
