//! Why a plan is as it is: what other placements would do, and where the plan's limits are.

use trefoil_devices_api::Phase;
use trefoil_graph::UnitId;
use trefoil_telemetry::Bytes;

use super::PlanRequest;
use super::problem::Tables;
use super::splits::Splits;
use crate::cost::Cost;
use crate::partition::{Assignment, Home, Instance, Limits, Mode, Solution, solve};
use crate::plan::{Alternative, Totals};

/// A usual placement: its cost, or why it cannot be done.
pub(super) struct Candidate {
    pub(super) name: String,
    /// Is it that of a single device?
    pub(super) plain: bool,
    pub(super) outcome: Result<(f64, Assignment), String>,
}

impl Candidate {
    fn cost(&self) -> f64 {
        self.outcome.as_ref().map_or(f64::INFINITY, |(cost, _)| *cost)
    }
}

/// The simplest of the usual placements whose cost is proved to be within `share` of the best: a
/// device alone, else the cheapest. A plan in many pieces that is predicted to gain less than
/// predictions are good for is not worth its hand-offs.
pub(super) fn simple<'c>(
    candidates: &'c [Candidate],
    solution: &Solution,
    share: f64,
) -> Option<&'c Candidate> {
    let near = |candidate: &&Candidate| {
        candidate.cost() - solution.lower_bound <= share * candidate.cost()
    };
    let plain = candidates.iter().filter(|candidate| candidate.plain).find(near);
    plain.or_else(|| candidates.iter().find(near))
}

/// Says what placements do, in seconds and joules.
pub(super) struct Judge<'t, 'a> {
    pub(super) tables: &'t Tables<'a>,
    pub(super) instance: &'t Instance,
    /// Bucket of each mode of the instance.
    pub(super) used: &'t [usize],
    /// By bucket.
    seconds: Vec<Mode>,
    joules: Vec<Mode>,
}

impl<'t, 'a> Judge<'t, 'a> {
    pub(super) fn new(tables: &'t Tables<'a>, instance: &'t Instance, used: &'t [usize]) -> Self {
        let seconds = tables.modes(|_, cost| cost.seconds);
        let joules = tables.modes(|_, cost| cost.joules);
        Self { tables, instance, used, seconds, joules }
    }

    /// Cost of one step in a bucket.
    pub(super) fn step(&self, bucket: usize, devices: &[usize], streamed: &[bool]) -> Option<Cost> {
        Some(Cost {
            seconds: self.instance.mode_cost(&self.seconds[bucket], devices, streamed)?,
            joules: self.instance.mode_cost(&self.joules[bucket], devices, streamed)?,
        })
    }

    /// What a placement does for the request.
    pub(super) fn totals(&self, assignment: &Assignment) -> Option<Totals> {
        let (mut prefill, mut decode) = (self.kv_moves(assignment), Cost::default());
        let mut tokens = 0.0;
        for (mode, &bucket) in self.used.iter().enumerate() {
            let used = &self.tables.uses[bucket];
            let streamed = self.instance.streamed(assignment, mode);
            let cost = self.step(bucket, &assignment.devices[mode], &streamed)? * used.steps;
            match used.phase {
                Phase::Prefill => prefill = prefill + cost,
                Phase::Decode => {
                    decode = decode + cost;
                    tokens += used.steps * used.step.tokens as f64;
                }
            }
        }
        let each = decode * (1.0 / f64::max(tokens, 1.0));
        Some(Totals {
            first_token_seconds: prefill.seconds,
            token_seconds: each.seconds,
            prompt_joules: prefill.joules,
            token_joules: each.joules,
        })
    }

    /// Cost of the KV pages' moves after the prompt.
    fn kv_moves(&self, assignment: &Assignment) -> Cost {
        let profile = self.tables.model.profile;
        let homes = assignment.homes.iter().enumerate();
        let moved = homes.filter_map(|(unit, &home)| self.instance.homes[unit][home].kv);
        let costs = moved.enumerate().filter(|(_, [first, later])| first != later).map(
            |(layer, [first, later])| {
                let names = [&profile.domains[first].name, &profile.domains[later].name];
                let link = profile.links.iter().find(|l| [&l.from, &l.to] == names);
                let kv = self.tables.model.graph.kv()[layer];
                let prefill = self.tables.uses.iter().filter(|u| u.phase == Phase::Prefill);
                let tokens: f64 = prefill.map(|u| u.steps * u.step.tokens as f64).sum();
                let each = self.tables.uses[0].step.kv_element_bytes;
                let bytes = tokens * kv.elements_per_token() as f64 * each;
                link.map_or(Cost::default(), |link| self.tables.model.transfer(link, bytes))
            },
        );
        costs.sum()
    }

    /// The placement with given devices and the homes that cost least for them; `None` if a unit
    /// has no home that serves them. Weights are kept, not streamed.
    pub(super) fn assignment(&self, device: impl Fn(usize, usize) -> usize) -> Option<Assignment> {
        self.assignment_where(device, |home, mode| home.devices[mode])
    }

    fn assignment_where(
        &self,
        device: impl Fn(usize, usize) -> usize,
        reach: impl Fn(&Home, usize) -> u32,
    ) -> Option<Assignment> {
        let (modes, units) = (self.instance.modes.len(), self.instance.units.len());
        let devices: Vec<Vec<usize>> =
            (0..modes).map(|mode| (0..units).map(|unit| device(mode, unit)).collect()).collect();
        let home = |unit: usize| {
            let serves = |home: &Home| {
                (0..modes).all(|mode| reach(home, mode) & (1 << devices[mode][unit]) != 0)
            };
            let homes = self.instance.homes[unit].iter().enumerate();
            let homes = homes.filter(|(_, home)| serves(home));
            let order = |a: &Home, b: &Home| {
                let sum = |home: &Home| home.memory.iter().sum::<u64>();
                a.cost.total_cmp(&b.cost).then(sum(a).cmp(&sum(b)))
            };
            homes.min_by(|a, b| order(a.1, b.1)).map(|(index, _)| index)
        };
        let homes = (0..units).map(home).collect::<Option<Vec<usize>>>()?;
        Some(Assignment { homes, devices })
    }

    /// The usual placements: each device alone, the best split of two devices by layers, and by
    /// phases; those that can be done first, by rising cost.
    pub(super) fn candidates(&self, limits: Limits) -> Vec<Candidate> {
        let names = || self.instance.devices.iter().map(|device| device.name.as_str()).enumerate();
        let mut all: Vec<Candidate> =
            names().map(|(device, name)| self.alone(device, name, limits)).collect();
        for (a, first) in names() {
            for (b, second) in names().filter(|(b, _)| *b != a) {
                if let Some((cost, assignment, cut)) = self.best_split(a, b) {
                    let name = format!("{first}, from {} on {second}", self.instance.units[cut]);
                    all.push(Candidate { name, plain: false, outcome: Ok((cost, assignment)) });
                }
                let device = |mode: usize, _| match self.tables.uses[self.used[mode]].phase {
                    Phase::Prefill => a,
                    Phase::Decode => b,
                };
                let mut add = |name: String, phases: Option<Assignment>| {
                    if let Some((cost, assignment)) = phases.and_then(|phases| self.scored(phases))
                    {
                        all.push(Candidate { name, plain: false, outcome: Ok((cost, assignment)) });
                    }
                };
                add(format!("prefill {first}, decode {second}"), self.assignment(device));
                if !self.tables.stream.is_empty() {
                    let streamed = self.assignment_where(device, Home::reaches);
                    let name = format!("prefill {first} with streamed weights, decode {second}");
                    add(name, streamed);
                }
            }
        }
        all.sort_by(|a, b| a.cost().total_cmp(&b.cost()));
        all
    }

    pub(super) fn scored(&self, assignment: Assignment) -> Option<(f64, Assignment)> {
        Some((self.instance.score(&assignment)?.cost, assignment))
    }

    /// Everything on one device: the problem itself, with no other device.
    fn alone(&self, device: usize, name: &str, limits: Limits) -> Candidate {
        let fixed = self.assignment(|_, _| device).and_then(|fixed| self.scored(fixed));
        let outcome = fixed.ok_or(()).or_else(|()| {
            let mut only = self.instance.clone();
            for row in only.modes.iter_mut().flat_map(|mode| &mut mode.run) {
                for (other, cost) in row.iter_mut().enumerate() {
                    *cost = cost.filter(|_| other == device);
                }
            }
            let solved = solve(&only, limits);
            solved.map(|solution| (solution.cost, solution.assignment)).map_err(|error| {
                let units = self.tables.run.iter().flatten();
                let refused = units.filter_map(|unit| unit[device].as_ref().err()).next();
                refused.map_or_else(|| error.to_string(), ToString::to_string)
            })
        });
        Candidate { name: format!("{name} alone"), plain: true, outcome }
    }

    /// The best cut between two blocks: units before it on `a`, from it on `b`, in all modes.
    fn best_split(&self, a: usize, b: usize) -> Option<(f64, Assignment, usize)> {
        let graph = self.tables.model.graph;
        let starts = graph.units().windows(2).enumerate();
        let starts = starts.filter(|(_, pair)| pair[0].layer != pair[1].layer);
        let scored = starts.filter_map(|(before, _)| {
            let cut = before + 1;
            let assignment = self.assignment(|_, unit| if unit < cut { a } else { b })?;
            let cost = self.instance.score(&assignment)?.cost;
            Some((cost, assignment, cut))
        });
        scored.min_by(|a, b| a.0.total_cmp(&b.0))
    }

    /// What the plan says of a placement that was not chosen.
    pub(super) fn alternative(&self, other: Candidate, chosen: &Solution) -> Alternative {
        let Candidate { name, outcome, .. } = other;
        let (cost, assignment) = match outcome {
            Ok(found) => found,
            Err(why) => return Alternative { name, score: None, totals: None, why },
        };
        let why = if assignment == chosen.assignment {
            "this is the plan".to_owned()
        } else if cost > chosen.cost {
            format!("costs {} more", percent(cost / chosen.cost - 1.0))
        } else {
            "costs as much or less, within what the proof leaves open".to_owned()
        };
        Alternative { name, score: Some(cost), totals: self.totals(&assignment), why }
    }

    /// What splits make of a prediction.
    pub(super) fn with_splits(&self, mut totals: Totals, splits: &Splits) -> Totals {
        let of = |phase: Phase| {
            let modes =
                self.used.iter().filter(move |bucket| self.tables.uses[**bucket].phase == phase);
            modes.map(|&bucket| (&self.tables.uses[bucket], splits.saved(bucket)))
        };
        let prefill: Cost = of(Phase::Prefill).map(|(used, saved)| saved * used.steps).sum();
        let decode: Cost = of(Phase::Decode).map(|(used, saved)| saved * used.steps).sum();
        let tokens: f64 =
            of(Phase::Decode).map(|(used, _)| used.steps * used.step.tokens as f64).sum();
        totals.first_token_seconds -= prefill.seconds;
        totals.prompt_joules -= prefill.joules;
        totals.token_seconds -= decode.seconds / tokens.max(1.0);
        totals.token_joules -= decode.joules / tokens.max(1.0);
        totals
    }

    /// What the plan says of splits that gain too little.
    pub(super) fn split_alternative(&self, chosen: &Solution, splits: &Splits) -> Alternative {
        let totals = self.totals(&chosen.assignment);
        let gain = percent(splits.gain / chosen.cost);
        Alternative {
            name: format!("{} products split over two devices", splits.count()),
            score: Some(chosen.cost - splits.gain),
            totals: totals.map(|totals| self.with_splits(totals, splits)),
            why: format!("gains {gain}, too little for what predictions are good for"),
        }
    }

    /// The plan's reasons in words.
    pub(super) fn reasons(
        &self,
        request: &PlanRequest<'_>,
        solution: &Solution,
        splits: &Splits,
        alternatives: &[Alternative],
        simpler: Option<String>,
    ) -> Vec<String> {
        let mut reasons = vec![if solution.optimal {
            format!("no other placement is better under {}", request.goal.name())
        } else {
            format!(
                "no other placement is better under {} by more than {}",
                request.goal.name(),
                percent(solution.gap())
            )
        }];
        reasons.extend(simpler);
        if splits.count() > 0 {
            reasons.push(format!(
                "{} products are split over two devices, which saves {} more (the bound is that of \
                 whole products)",
                splits.count(),
                percent(splits.gain / solution.cost)
            ));
        }
        let next = alternatives
            .iter()
            .find(|other| other.score.is_some_and(|score| score > solution.cost * (1.0 + 1e-9)));
        if let Some(next) = next {
            reasons.push(format!("the next best of the usual ones, {}, {}", next.name, next.why));
        }
        for (budget, &used) in self.instance.budgets.iter().zip(&solution.memory) {
            if used as f64 > 0.9 * budget.bytes as f64 {
                let (used, bytes) = (Bytes(used), Bytes(budget.bytes));
                reasons.push(format!("{} is nearly full: {used} of {bytes}", budget.name));
            }
        }
        let elsewhere = |pin: &crate::Pin| {
            self.used.iter().zip(&solution.assignment.devices).any(|(&bucket, devices)| {
                let phase = self.tables.uses[bucket].phase;
                devices.iter().enumerate().any(|(unit, &device)| {
                    let holds = |pin: &&crate::Pin| pin.holds(request.graph, UnitId(unit), phase);
                    request.pins.iter().find(holds) == Some(pin)
                        && self.instance.devices[device].name != pin.device
                })
            })
        };
        for (mode, &bucket) in self.used.iter().enumerate() {
            let streamed = self.instance.streamed(&solution.assignment, mode);
            let units = streamed.iter().enumerate().filter(|(_, streamed)| **streamed);
            let device = |unit: usize| self.tables.devices[solution.assignment.devices[mode][unit]];
            let bytes = units
                .clone()
                .map(|(unit, _)| self.tables.model.weight_bytes(device(unit), UnitId(unit)));
            let (count, bytes): (usize, Bytes) = (units.clone().count(), bytes.sum());
            if count > 0 {
                let used = &self.tables.uses[bucket];
                reasons.push(format!(
                    "{bytes} of weights of {count} units are streamed in each step of {} tokens: \
                     for that many rows the copies cost less than computing elsewhere",
                    used.step.tokens
                ));
            }
        }
        let relaxed = request.pins.iter().filter(|pin| elsewhere(pin));
        for pin in relaxed {
            reasons.push(format!(
                "pin {} = {} was relaxed where the device refuses an op",
                pin.pattern, pin.device
            ));
        }
        reasons
    }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}
