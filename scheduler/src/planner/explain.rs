//! Why a plan is as it is: what other placements would do, and where the plan's limits are.

use trefoil_devices_api::Phase;
use trefoil_graph::UnitId;
use trefoil_telemetry::Bytes;

use super::PlanRequest;
use super::problem::Tables;
use crate::cost::Cost;
use crate::partition::{Assignment, Home, Instance, Limits, Mode, Solution, solve};
use crate::plan::{Alternative, Totals};

/// Says what placements do, in seconds and joules.
pub(super) struct Judge<'t, 'a> {
    pub(super) tables: &'t Tables<'a>,
    pub(super) instance: &'t Instance,
    /// Bucket of each mode of the instance.
    used: &'t [usize],
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
    pub(super) fn step(&self, bucket: usize, devices: &[usize]) -> Option<Cost> {
        Some(Cost {
            seconds: self.instance.mode_cost(&self.seconds[bucket], devices)?,
            joules: self.instance.mode_cost(&self.joules[bucket], devices)?,
        })
    }

    /// What a placement does for the request.
    pub(super) fn totals(&self, assignment: &Assignment) -> Option<Totals> {
        let (mut prefill, mut decode) = (self.kv_moves(assignment), Cost::default());
        let mut tokens = 0.0;
        for (mode, &bucket) in self.used.iter().enumerate() {
            let used = &self.tables.uses[bucket];
            let cost = self.step(bucket, &assignment.devices[mode])? * used.steps;
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
    /// has no home that serves them.
    fn assignment(&self, device: impl Fn(usize, usize) -> usize) -> Option<Assignment> {
        let (modes, units) = (self.instance.modes.len(), self.instance.units.len());
        let devices: Vec<Vec<usize>> =
            (0..modes).map(|mode| (0..units).map(|unit| device(mode, unit)).collect()).collect();
        let home = |unit: usize| {
            let serves = |home: &Home| {
                (0..modes).all(|mode| home.devices[mode] & (1 << devices[mode][unit]) != 0)
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

    /// Each device alone, the best split of two devices by layers, and the best by phases; those that
    /// can be done first, by rising cost.
    pub(super) fn alternatives(&self, limits: Limits, chosen: &Solution) -> Vec<Alternative> {
        let names = || self.instance.devices.iter().map(|device| device.name.as_str()).enumerate();
        let mut all: Vec<Alternative> =
            names().map(|(device, name)| self.alone(device, name, limits, chosen)).collect();
        for (a, first) in names() {
            for (b, second) in names().filter(|(b, _)| *b != a) {
                let split = self.best_split(a, b);
                all.extend(split.map(|(assignment, cut)| {
                    let from = &self.instance.units[cut];
                    let name = format!("{first}, from {from} on {second}");
                    self.alternative(name, &assignment, chosen)
                }));
                let phases =
                    self.assignment(|mode, _| match self.tables.uses[self.used[mode]].phase {
                        Phase::Prefill => a,
                        Phase::Decode => b,
                    });
                let phases = phases.filter(|phases| self.instance.score(phases).is_some());
                all.extend(phases.map(|assignment| {
                    let name = format!("prefill {first}, decode {second}");
                    self.alternative(name, &assignment, chosen)
                }));
            }
        }
        all.sort_by(|a, b| {
            let score = |one: &Alternative| one.score.unwrap_or(f64::INFINITY);
            score(a).total_cmp(&score(b))
        });
        all
    }

    /// Everything on one device: the problem itself, with no other device.
    fn alone(&self, device: usize, name: &str, limits: Limits, chosen: &Solution) -> Alternative {
        let name = format!("{name} alone");
        let fixed = self.assignment(|_, _| device);
        let fixed = fixed.filter(|fixed| self.instance.score(fixed).is_some());
        if let Some(assignment) = fixed {
            return self.alternative(name, &assignment, chosen);
        }
        let mut only = self.instance.clone();
        for row in only.modes.iter_mut().flat_map(|mode| &mut mode.run) {
            for (other, cost) in row.iter_mut().enumerate() {
                *cost = cost.filter(|_| other == device);
            }
        }
        match solve(&only, limits) {
            Ok(solution) => self.alternative(name, &solution.assignment, chosen),
            Err(error) => {
                let refused = self
                    .tables
                    .run
                    .iter()
                    .flatten()
                    .filter_map(|unit| unit[device].as_ref().err().map(ToString::to_string));
                let why = refused.into_iter().next().unwrap_or_else(|| error.to_string());
                Alternative { name, score: None, totals: None, why }
            }
        }
    }

    /// The best cut between two blocks: units before it on `a`, from it on `b`, in all modes.
    fn best_split(&self, a: usize, b: usize) -> Option<(Assignment, usize)> {
        let graph = self.tables.model.graph;
        let starts = graph.units().windows(2).enumerate();
        let starts = starts.filter(|(_, pair)| pair[0].layer != pair[1].layer);
        let scored = starts.filter_map(|(before, _)| {
            let cut = before + 1;
            let assignment = self.assignment(|_, unit| if unit < cut { a } else { b })?;
            let cost = self.instance.score(&assignment)?.cost;
            Some((cost, assignment, cut))
        });
        let best = scored.min_by(|a, b| a.0.total_cmp(&b.0));
        best.map(|(_, assignment, cut)| (assignment, cut))
    }

    fn alternative(&self, name: String, other: &Assignment, chosen: &Solution) -> Alternative {
        let score = self.instance.score(other).map(|score| score.cost);
        let totals = self.totals(other);
        let why = match score {
            _ if *other == chosen.assignment => "this is the plan".to_owned(),
            Some(score) if score > chosen.cost => {
                format!("costs {} more", percent(score / chosen.cost - 1.0))
            }
            Some(_) => "costs as much".to_owned(),
            None => "breaks a pin or a budget".to_owned(),
        };
        Alternative { name, score, totals, why }
    }

    /// The plan's reasons in words.
    pub(super) fn reasons(
        &self,
        request: &PlanRequest<'_>,
        solution: &Solution,
        alternatives: &[Alternative],
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
