//! Plans by predicted cost: a model, a machine's profile and an objective become a [`Plan`] that
//! says what it is predicted to do, how far from the best it can be, and what was rejected.

mod explain;
mod objective;
mod overlap;
mod problem;
mod splits;

use std::collections::BTreeMap;

use trefoil_devices_api::{Bucket, DomainId, Phase};
use trefoil_graph::{LayerGraph, UnitId};
use trefoil_telemetry::Bytes;

pub use objective::{Goal, Weights, Workload};

use crate::cost::{Corrections, Cost};
use crate::memory::{Residence, memory, transfers};
use crate::partition::{
    Assignment, Instance, Limits, MAX_BUDGETS, MAX_DEVICES, MAX_DOMAINS, MAX_MODES, PartitionError,
    Solution, contested, solve, solve_below,
};
use crate::place::{PlaceError, check_pin};
use crate::plan::{
    Alternative, BucketPlan, ModelRef, Overlapped, PLAN_VERSION, PinReport, Plan, PlanError,
    Prediction, SegmentPrediction, UnitPlacement,
};
use crate::profile::Profile;
use crate::{Pin, nearest};
use explain::{Judge, simple};
use objective::Prices;
use problem::Tables;
pub(crate) use problem::tensors;
use splits::{Finder, Splits};

/// What is to be planned.
#[derive(Clone, Debug)]
pub struct PlanRequest<'a> {
    /// The model.
    pub model: ModelRef,
    /// Its graph.
    pub graph: &'a LayerGraph,
    /// The machine.
    pub profile: &'a Profile,
    /// What measurements say of its predictions.
    pub corrections: &'a Corrections,
    /// Name of the policy, for the plan.
    pub policy: String,
    /// What counts.
    pub goal: Goal,
    /// Weights of a balanced goal.
    pub weights: Weights,
    /// The request that is planned for.
    pub workload: Workload,
    /// Buckets to place.
    pub buckets: &'a [Bucket],
    /// Tokens of context to keep KV pages for.
    pub context: usize,
    /// Bytes of one stored key or value element.
    pub kv_element_bytes: usize,
    /// Devices that may be used; all if absent.
    pub devices: Option<Vec<String>>,
    /// Pins; the first match wins.
    pub pins: &'a [Pin],
    /// Is a pin that its device cannot take ignored (and reported) instead of an error?
    pub relax_pins: bool,
    /// Does a unit run on one device in both phases?
    pub joint_phases: bool,
    /// Shorter prompts are not read by an NPU, except where a pin says so.
    pub min_npu_prompt_tokens: u64,
    /// May KV pages move between domains after the prompt?
    pub move_kv: bool,
    /// May weights be streamed to a device for every step of a prompt, where its memory does not hold
    /// them?
    pub stream_weights: bool,
    /// May a product be split over two devices, where that gains more than `simple_within`?
    pub split_linears: bool,
    /// Most bytes of domains, by name, for models in all.
    pub memory_limits: BTreeMap<String, Bytes>,
    /// Bytes of each domain that are kept free.
    pub reserve: Bytes,
    /// A single device, or a plain split, is preferred if its cost is within this share of the best.
    pub simple_within: f64,
    /// How far to go for a proof.
    pub limits: Limits,
}

impl<'a> PlanRequest<'a> {
    /// A request with defaults: balanced, all devices, no pins.
    pub fn new(
        model: ModelRef,
        graph: &'a LayerGraph,
        profile: &'a Profile,
        corrections: &'a Corrections,
        buckets: &'a [Bucket],
    ) -> Self {
        Self {
            model,
            graph,
            profile,
            corrections,
            policy: Goal::default().name().to_owned(),
            goal: Goal::default(),
            weights: Weights::default(),
            workload: Workload::default(),
            buckets,
            context: 8192,
            kv_element_bytes: 2,
            devices: None,
            pins: &[],
            relax_pins: false,
            joint_phases: false,
            min_npu_prompt_tokens: 0,
            move_kv: true,
            stream_weights: true,
            split_linears: true,
            memory_limits: BTreeMap::new(),
            reserve: Bytes(0),
            simple_within: 0.01,
            limits: Limits::default(),
        }
    }

    fn allows(&self, device: &str) -> bool {
        self.devices.as_ref().is_none_or(|names| names.iter().any(|name| name == device))
    }
}

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

/// A request that cannot be planned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlannerError {
    /// A device that is not there.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A pin that matches nothing.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// A pin to a device that cannot take the unit.
    #[error(
        "pin {pattern:?} = {device}: {unit} cannot run there: {why}; take the pin away or let \
         pins be relaxed"
    )]
    Pin {
        /// The pattern.
        pattern: String,
        /// The device.
        device: String,
        /// The unit.
        unit: String,
        /// Why.
        why: String,
    },
    /// A memory limit of a domain that is not there.
    #[error(
        "memory limit of {got:?}: expected one of {known}{}",
        near.as_ref().map(|name| format!("; did you mean {name:?}?")).unwrap_or_default()
    )]
    Domain {
        /// What was named.
        got: String,
        /// All domains.
        known: String,
        /// The most similar one.
        near: Option<String>,
    },
    /// No bucket for a phase.
    #[error("expected buckets of prefill and of decode, got none of {phase}")]
    NoBucket {
        /// The phase.
        phase: &'static str,
    },
    /// More than the partitioner's sets hold.
    #[error("expected at most {most} {what}, got {got}; leave some out")]
    TooMany {
        /// What of.
        what: &'static str,
        /// Most.
        most: usize,
        /// How many there are.
        got: usize,
    },
    /// No placement.
    #[error(transparent)]
    Partition(#[from] PartitionError),
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

fn check(request: &PlanRequest<'_>) -> Result<(), PlannerError> {
    let profile = request.profile;
    let copies = profile.devices.iter().filter(|device| device.weight_copy.is_some()).count();
    for (what, got, most) in [
        ("devices of a profile", profile.devices.len(), MAX_DEVICES),
        ("domains of a profile", profile.domains.len(), MAX_DOMAINS),
        ("domains and devices with own copies", profile.domains.len() + copies, MAX_BUDGETS),
        ("buckets", request.buckets.len(), MAX_MODES),
    ] {
        if got > most {
            return Err(PlannerError::TooMany { what, most, got });
        }
    }
    let names: Vec<&str> = request.profile.devices.iter().map(|d| d.name.as_str()).collect();
    let allowed: Vec<&str> = names.iter().copied().filter(|name| request.allows(name)).collect();
    for name in request.devices.iter().flatten() {
        if !names.contains(&name.as_str()) {
            return Err(PlanError::unknown_device(name, &names).into());
        }
    }
    if allowed.is_empty() {
        return Err(PlaceError::NoDevice.into());
    }
    for pin in request.pins {
        if !allowed.contains(&pin.device.as_str()) {
            return Err(PlanError::unknown_device(&pin.device, &allowed).into());
        }
        check_pin(pin, request.graph)?;
    }
    let domains: Vec<&str> = request.profile.domains.iter().map(|d| d.name.as_str()).collect();
    for got in request.memory_limits.keys() {
        if !domains.contains(&got.as_str()) {
            return Err(PlannerError::Domain {
                got: got.clone(),
                known: domains.join(", "),
                near: nearest(got, domains.iter().copied()).map(str::to_owned),
            });
        }
    }
    for phase in [Phase::Prefill, Phase::Decode] {
        if !request.buckets.iter().any(|bucket| bucket.phase == phase) {
            return Err(PlannerError::NoBucket { phase: phase.name() });
        }
    }
    Ok(())
}

/// The plan of a solution.
fn describe(
    request: &PlanRequest<'_>,
    judge: &Judge<'_, '_>,
    prices: &Prices,
    solution: &Solution,
    (devices, splits): (&[Placed], &Splits),
    alternatives: Vec<Alternative>,
    (simpler, pipelined): (Option<String>, Option<String>),
) -> Plan {
    let tables = judge.tables;
    let profile = request.profile;
    let residences: Vec<Residence<'_>> = tables
        .devices
        .iter()
        .zip(&judge.instance.devices)
        .map(|(device, node)| Residence {
            device: &device.name,
            domain: Profile::domain_id(node.domain),
            reads: node.addresses.iter().map(|&domain| Profile::domain_id(domain)).collect(),
            copy: device.weight_copy.as_ref().map(|copy| copy.bytes_per_weight.get()),
        })
        .collect();
    let buckets: Vec<BucketPlan> = request
        .buckets
        .iter()
        .enumerate()
        .map(|(mode, &bucket)| {
            let Placed { devices, streamed } = &devices[mode];
            let units = judge.instance.units.iter().zip(devices).map(|(unit, &device)| {
                let device = judge.instance.devices[device].name.clone();
                UnitPlacement { unit: unit.clone(), device }
            });
            let names = judge.instance.units.iter().zip(streamed);
            let names = names.filter(|(_, streamed)| **streamed).map(|(unit, _)| unit.clone());
            let step = judge.step(mode, devices, streamed).expect("the solution keeps the rules");
            let mut plan = BucketPlan {
                bucket,
                units: units.collect(),
                splits: splits.buckets.get(mode).map_or_else(Vec::new, |b| b.splits.clone()),
                streamed: names.collect(),
                transfers: Vec::new(),
                predicted_seconds: Some(step.seconds - splits.saved(mode).seconds),
                predicted_joules: Some(step.joules - splits.saved(mode).joules),
                segments: Vec::new(),
            };
            plan.transfers = transfers(request.graph, &residences, &plan);
            plan.segments = segments(judge, mode, &plan, splits);
            plan
        })
        .collect();
    let homes = solution.assignment.homes.iter().enumerate();
    let kv: Vec<[DomainId; 2]> = homes
        .filter_map(|(unit, &home)| judge.instance.homes[unit][home].kv)
        .map(|kv| kv.map(Profile::domain_id))
        .collect();
    let [first, later] = [0, 1].map(|phase| kv.iter().map(|kv| kv[phase]).collect::<Vec<_>>());
    let per_element = request.context * request.kv_element_bytes;
    let pins = request.pins.iter().map(|pin| {
        let held = |bucket: &BucketPlan| {
            let units = bucket.units.iter().enumerate();
            units
                .filter(|(unit, at)| {
                    at.device == pin.device
                        && pin.holds(request.graph, UnitId(*unit), bucket.bucket.phase)
                })
                .count()
        };
        PinReport { pin: pin.clone(), placed: buckets.iter().map(held).sum() }
    });
    let totals = judge.totals(&solution.assignment).expect("the solution keeps the rules");
    let totals = judge.with_splits(totals, splits);
    let score = solution.cost - splits.gain;
    let phases = [first.clone(), later.clone()];
    let memory = memory(request.graph, &residences, &buckets, &phases, per_element);
    Plan {
        version: PLAN_VERSION,
        model: request.model.clone(),
        profile: Some(profile.name.clone()),
        policy: request.policy.clone(),
        context: request.context,
        reasons: judge
            .reasons(request, solution, splits, &alternatives, simpler)
            .into_iter()
            .chain(pipelined)
            .collect(),
        prediction: Some(Prediction {
            prompt_tokens: request.workload.prompt,
            generated_tokens: request.workload.generate,
            totals,
            overlapped: judge.overlap(&solution.assignment).map(|overlap| Overlapped {
                steps_at_once: overlap.steps_at_once,
                first_token_seconds: totals.first_token_seconds - overlap.saved.seconds,
                score: score - prices.of(Phase::Prefill, overlap.saved),
            }),
            score,
            lower_bound: solution.lower_bound.min(score),
            gap: solution.gap(),
            alternatives,
        }),
        pins: pins.collect(),
        kv_decode: (first != later).then_some(later),
        kv: first,
        memory,
        buckets,
    }
}

fn segments(
    judge: &Judge<'_, '_>,
    mode: usize,
    plan: &BucketPlan,
    splits: &Splits,
) -> Vec<SegmentPrediction> {
    let segments = plan.segments().into_iter().map(|segment| {
        let device = judge.instance.devices.iter().position(|d| d.name == segment.device);
        let device = device.expect("named by the plan");
        let costs = segment.units.iter().map(|unit| {
            let cost = judge.tables.run[mode][unit.0][device].as_ref();
            *cost.expect("the solution keeps the rules")
        });
        let cost: Cost = costs.sum();
        let saved: Cost = segment.units.iter().map(|&unit| splits.saved_by(mode, unit)).sum();
        let name = |unit: Option<&UnitId>| plan.units[unit.expect("not empty").0].unit.clone();
        SegmentPrediction {
            first: name(segment.units.first()),
            last: name(segment.units.last()),
            device: segment.device,
            seconds: cost.seconds - saved.seconds,
            joules: cost.joules - saved.joules,
        }
    });
    segments.collect()
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
