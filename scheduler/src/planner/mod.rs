//! Plans by predicted cost: a model, a machine's profile and an objective become a [`Plan`] that
//! says what it is predicted to do, how far from the best it can be, and what was rejected.

mod describe;
mod explain;
mod objective;
mod overlap;
mod problem;
mod request;
mod splits;

use trefoil_devices_api::Phase;

pub use objective::{Goal, Weights, Workload};
pub use request::{PlanRequest, PlannerError};

use crate::cost::Cost;
use crate::partition::{
    Assignment, Instance, Limits, PartitionError, Solution, contested, solve, solve_below,
};
use crate::plan::{Alternative, Plan};
use describe::describe;
use explain::{Judge, simple};
use objective::Prices;
use problem::Tables;
pub(crate) use problem::tensors;
use request::check;
use splits::{Finder, Splits};

/// A plan, and the problem that it solves.
#[derive(Clone, Debug)]
pub struct Planned {
    /// The plan.
    pub plan: Plan,
    /// All costs, budgets and choices: enough to check that the plan is the best.
    pub instance: Instance,
    /// The solution, in the terms of the instance.
    pub solution: Solution,
}

/// Plans a model on a machine.
pub fn plan(request: &PlanRequest<'_>) -> Result<Planned, PlannerError> {
    check(request)?;
    let kv_bytes = request.kv_element_bytes as f64;
    let uses = request.workload.uses(request.buckets, request.goal, kv_bytes);
    let tables = Tables::new(request, uses);
    let least = [Phase::Prefill, Phase::Decode].map(|phase| tables.least(phase));
    let bytes = request.profile.domains.iter().map(|domain| domain.size.0.0).sum();
    let prices = Prices::new(request.goal, request.weights, least, bytes);
    let plain = Problem::new(request, tables, &prices)?;
    // Streaming takes room for its buffers, which makes it a problem of its own. It gains nothing
    // where all that a device could use fits into its memory.
    let streaming = match request.stream_weights && plain.is_tight() {
        true => plain.with_streaming(request, &prices)?,
        false => None,
    };
    let (problem, mut solution) = choose(request, plain, streaming)?;
    let Problem { tables, all, used, aside, instance } = problem;
    let judge = Judge::new(&tables, &instance, &used);
    let candidates = judge.candidates(request.limits);
    let simpler = simple(&candidates, &solution, request.simple_within).and_then(|candidate| {
        let (cost, assignment) = candidate.outcome.clone().ok()?;
        if assignment == solution.assignment {
            return None;
        }
        let gain = (cost / solution.cost - 1.0) * 100.0;
        let memory = instance.score(&assignment)?.memory;
        solution = Solution { assignment, cost, memory, optimal: gain <= 0.0, ..solution.clone() };
        solution.lower_bound = solution.lower_bound.min(cost);
        Some(format!("{} was preferred to a split predicted to gain {gain:.2} %", candidate.name))
    });
    let pipelined = prefer_overlap(&judge, &prices, request.simple_within, &mut solution);
    let mut devices = vec![Placed::default(); all.modes.len()];
    for (index, &mode) in used.iter().enumerate() {
        devices[mode] = Placed::of(&instance, &solution.assignment, index);
    }
    for (mode, chosen) in place_aside(&all, &instance, &aside, &solution, request.limits)? {
        devices[mode] = chosen;
    }
    let mut alternatives: Vec<Alternative> =
        candidates.into_iter().map(|other| judge.alternative(other, &solution)).collect();
    let finder =
        Finder { request, tables: &tables, instance: &instance, used: &used, prices: &prices };
    let mut splits = if request.split_linears { finder.find(&solution) } else { Splits::default() };
    if splits.count() > 0 && splits.gain <= request.simple_within * solution.cost {
        alternatives.push(judge.split_alternative(&solution, &splits));
        alternatives.sort_by(|a, b| {
            let score = |other: &Alternative| other.score.unwrap_or(f64::INFINITY);
            score(a).total_cmp(&score(b))
        });
        splits = Splits::default();
    }
    let plan = describe(
        request,
        &judge,
        &prices,
        &solution,
        (&devices, &splits),
        alternatives,
        (simpler, pipelined),
    );
    Ok(Planned { plan, instance, solution })
}

/// Takes a placement whose chunks overlap where it gains more than `share` over the best one (whose
/// overlap counts too), even if its prompt takes longer than estimated. Returns why.
fn prefer_overlap(
    judge: &Judge<'_, '_>,
    prices: &Prices,
    share: f64,
    solution: &mut Solution,
) -> Option<String> {
    let saved = |cost: Cost| prices.of(Phase::Prefill, cost);
    let overlap = judge.overlap(&solution.assignment);
    let now = solution.cost - overlap.map_or(0.0, |overlap| saved(overlap.saved));
    let others = judge.pipelines(solution).into_iter().filter_map(|other| {
        let (cost, assignment) = other.outcome.ok()?;
        let overlap = judge.overlap(&assignment)?;
        let [score, worst] = [overlap.saved, overlap.surely].map(|gain| cost - saved(gain));
        Some((score, worst, cost, assignment, other.name))
    });
    let (score, worst, cost, assignment, name) = others.min_by(|a, b| a.1.total_cmp(&b.1))?;
    if worst >= now * (1.0 - share) {
        return None;
    }
    let memory = judge.instance.score(&assignment)?.memory;
    let gain = (1.0 - score / now) * 100.0;
    let bound = solution.lower_bound.min(cost);
    *solution = Solution { assignment, cost, memory, lower_bound: bound, optimal: false };
    Some(format!(
        "{name}: estimated to gain {gain:.1} % over the best placement for steps one after another, \
         which is what the bound is of"
    ))
}

/// A placement of one bucket.
#[derive(Clone, Debug, Default)]
struct Placed {
    /// Device of each unit.
    devices: Vec<usize>,
    /// Are the unit's weights streamed there?
    streamed: Vec<bool>,
}

impl Placed {
    fn of(instance: &Instance, assignment: &Assignment, mode: usize) -> Self {
        let devices = assignment.devices[mode].clone();
        Self { devices, streamed: instance.streamed(assignment, mode) }
    }
}

/// A request in the partitioner's terms.
struct Problem<'a> {
    tables: Tables<'a>,
    /// All buckets as modes.
    all: Instance,
    /// Buckets that the request uses, and the others.
    used: Vec<usize>,
    aside: Vec<usize>,
    /// The used ones.
    instance: Instance,
}

impl<'a> Problem<'a> {
    fn new(
        request: &PlanRequest<'a>,
        tables: Tables<'a>,
        prices: &Prices,
    ) -> Result<Self, PlannerError> {
        let all = tables.instance(request, prices)?;
        let (used, aside): (Vec<usize>, Vec<usize>) =
            (0..all.modes.len()).partition(|&mode| tables.uses[mode].steps > 0.0);
        let mut instance = all.with_modes(&used);
        for (unit, homes) in instance.homes.iter_mut().enumerate() {
            let serving = all.homes[unit].iter().map(|home| all.serves(unit, home));
            let mut serving = serving.collect::<Vec<_>>().into_iter();
            homes.retain(|_| serving.next() == Some(true));
        }
        Ok(Self { tables, all, used, aside, instance })
    }

    /// Can a choice of homes need more than a memory has?
    fn is_tight(&self) -> bool {
        !contested(&self.instance).is_empty()
    }

    /// The problem with weights that may be streamed; `None` if no device can take some.
    fn with_streaming(
        &self,
        request: &PlanRequest<'a>,
        prices: &Prices,
    ) -> Result<Option<Self>, PlannerError> {
        let tables = self.tables.clone().with_streaming();
        let any = !tables.stream.is_empty();
        any.then(|| Self::new(request, tables, prices)).transpose()
    }
}

/// Solves a request, and also with weights that may be streamed, if there is such a problem. The plain
/// one is taken where streaming gains no more than predictions are good for.
fn choose<'a>(
    request: &PlanRequest<'a>,
    plain: Problem<'a>,
    streaming: Option<Problem<'a>>,
) -> Result<(Problem<'a>, Solution), PartitionError> {
    let limits = request.limits;
    let streamed = streaming.and_then(|problem| {
        let solution = solve(&problem.instance, limits).ok()?;
        Some((problem, solution))
    });
    let Some((streaming, streamed)) = streamed else {
        let solution = solve(&plain.instance, limits)?;
        return Ok((plain, solution));
    };
    // What costs more than that would not be taken, so that its cost need not be known.
    let most = streamed.cost * (1.0 + 2.0 * request.simple_within);
    let Ok(Some(kept)) = solve_below(&plain.instance, limits, most) else {
        return Ok((streaming, streamed));
    };
    // No placement of either kind is below both bounds.
    let lower_bound = kept.lower_bound.min(streamed.lower_bound);
    let near = kept.cost - lower_bound <= request.simple_within * kept.cost;
    let (problem, mut solution) = match near || kept.cost <= streamed.cost {
        true => (plain, kept),
        false => (streaming, streamed),
    };
    solution.lower_bound = lower_bound.min(solution.cost);
    let open = solution.cost - solution.lower_bound;
    solution.optimal = open <= solution.cost * limits.tolerance.max(1e-9);
    Ok((problem, solution))
}

/// Places the buckets that the request does not use: each as well as it can be with weights and KV
/// pages where the others have put them.
fn place_aside(
    all: &Instance,
    instance: &Instance,
    aside: &[usize],
    solution: &Solution,
    limits: Limits,
) -> Result<Vec<(usize, Placed)>, PartitionError> {
    let mut placed = Vec::with_capacity(aside.len());
    for &mode in aside {
        let mut one = all.with_modes(&[mode]);
        for (unit, homes) in one.homes.iter_mut().enumerate() {
            // The same home, with its devices in this mode.
            let chosen = &instance.homes[unit][solution.assignment.homes[unit]];
            homes.retain(|home| home.memory == chosen.memory && home.kv == chosen.kv);
            homes.truncate(1);
        }
        let solution = solve(&one, limits)?;
        placed.push((mode, Placed::of(&one, &solution.assignment, 0)));
    }
    Ok(placed)
}

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod overlap_tests;
#[cfg(test)]
mod split_tests;
#[cfg(test)]
mod streaming_tests;
#[cfg(test)]
mod tests;
