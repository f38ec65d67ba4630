//! Label-setting search over units, all modes at once, cut by the bound.

use super::bound::{Dual, more};
use super::instance::{Assignment, Home, Instance, MAX_BUDGETS, MAX_MODES};
use super::trellis::Trellis;

/// A placement of the first units: what later ones can know of it, and what it cost.
#[derive(Clone, Copy, Debug)]
struct Label {
    /// State of each mode's chain.
    states: [u16; MAX_MODES],
    /// Bytes of each contested budget.
    memory: [u64; MAX_BUDGETS],
    cost: f64,
    /// No completion costs less.
    bound: f64,
    /// How it came about.
    trace: Trace,
}

/// How a label came from the one before it, which is known by its number among all kept ones.
#[derive(Clone, Copy, Debug)]
struct Trace {
    before: usize,
    home: usize,
    devices: [u8; MAX_MODES],
}

/// What a search found.
#[derive(Debug)]
pub(super) struct Found {
    /// The best placement below the limit, if there is one.
    pub(super) best: Option<(f64, Assignment)>,
    /// Least bound of the labels that were dropped for want of room; infinite if none were.
    pub(super) dropped: f64,
}

pub(super) struct Search<'a> {
    instance: &'a Instance,
    trellis: &'a Trellis,
    dual: &'a Dual<'a>,
    contested: &'a [usize],
    /// By unit: least that the homes of the units after it cost beyond what the tolls pay.
    rest_after: Vec<f64>,
    /// By unit: bytes of each contested budget that the units after it take at least.
    need_after: Vec<[u64; MAX_BUDGETS]>,
    /// Only placements below this cost are looked for.
    limit: f64,
    traces: Vec<Trace>,
}

/// Half-made step of all modes from a label.
#[derive(Clone, Copy)]
struct Partial {
    states: [u16; MAX_MODES],
    devices: [u8; MAX_MODES],
    cost: f64,
    bound: f64,
}

impl<'a> Search<'a> {
    pub(super) fn new(
        instance: &'a Instance,
        trellis: &'a Trellis,
        dual: &'a Dual<'a>,
        contested: &'a [usize],
    ) -> Self {
        let units = instance.units.len();
        let mut rest_after = vec![0.0; units];
        let mut need_after = vec![[0; MAX_BUDGETS]; units];
        for unit in (1..units).rev() {
            rest_after[unit - 1] = rest_after[unit] + dual.rest(unit);
            need_after[unit - 1] = need_after[unit];
            for (slot, &budget) in contested.iter().enumerate() {
                let homes = dual.homes(unit).iter().map(|(_, home)| home.memory[budget]);
                need_after[unit - 1][slot] += homes.min().unwrap_or(0);
            }
        }
        let limit = f64::INFINITY;
        Self {
            instance,
            trellis,
            dual,
            contested,
            rest_after,
            need_after,
            limit,
            traces: Vec::new(),
        }
    }

    /// Searches for a placement that costs less than `limit`, with at most `width` labels per unit
    /// and `branches` ways on from a label and home.
    pub(super) fn run(&mut self, limit: f64, width: usize, branches: usize) -> Found {
        self.limit = limit;
        self.traces.clear();
        let mut dropped = f64::INFINITY;
        let start = Label {
            states: [0; MAX_MODES],
            memory: [0; MAX_BUDGETS],
            cost: 0.0,
            bound: 0.0,
            trace: Trace { before: 0, home: 0, devices: [0; MAX_MODES] },
        };
        let mut labels = vec![start];
        let mut first = 0;
        for unit in 0..self.instance.units.len() {
            let mut next = Vec::new();
            for (index, label) in labels.iter().enumerate() {
                let cut = self.expand(unit, label, first + index, branches, &mut next);
                dropped = dropped.min(cut);
            }
            labels = undominated(next);
            if labels.len() > width {
                let cut = self.thin_out(&mut labels, width);
                dropped = dropped.min(cut);
            }
            first = self.traces.len();
            self.traces.extend(labels.iter().map(|label| label.trace));
        }
        // Prices make the bound of a placement with room to spare lower than its cost.
        let below = labels.iter().filter(|label| label.cost < limit);
        let best = below.min_by(|a, b| a.cost.total_cmp(&b.cost));
        Found { best: best.map(|label| (label.cost, self.assignment(label))), dropped }
    }

    /// Keeps `width` labels and returns the least bound of the others.
    ///
    /// While memory is scarce many labels have nearly the same bound: prices make it a matter of
    /// indifference who gets it. Which of them has a completion that fills it well is not known yet,
    /// so the best of every level of memory use are kept first, then the second best, and so on.
    fn thin_out(&self, labels: &mut Vec<Label>, width: usize) -> f64 {
        let scarce: Vec<(usize, f64)> = self
            .contested
            .iter()
            .enumerate()
            .filter(|(_, budget)| self.dual.price[**budget] > 0.0)
            .map(|(slot, &budget)| (slot, self.instance.budgets[budget].bytes as f64 + 1.0))
            .collect();
        let levels = [1.0, 128.0, 16.0, 8.0][scarce.len().min(3)];
        let level = |label: &Label| {
            scarce.iter().fold(0u64, |level, &(slot, bytes)| {
                let part = label.memory[slot] as f64 / bytes;
                level * levels as u64 + (part * levels) as u64
            })
        };
        let mut ranked: Vec<(u64, Label)> = labels.iter().map(|l| (level(l), *l)).collect();
        ranked.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.bound.total_cmp(&b.1.bound)));
        let mut rank = 0;
        let mut order: Vec<(usize, Label)> = Vec::with_capacity(ranked.len());
        for (index, (level, label)) in ranked.iter().enumerate() {
            rank = if index > 0 && ranked[index - 1].0 == *level { rank + 1 } else { 0 };
            order.push((rank, *label));
        }
        order.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.bound.total_cmp(&b.1.bound)));
        let cut = order[width..].iter().map(|(_, label)| label.bound).fold(f64::INFINITY, f64::min);
        order.truncate(width);
        labels.clear();
        labels.extend(order.into_iter().map(|(_, label)| label));
        cut
    }

    /// Adds ways to run `unit` after a label that may lead below the limit: all, or the best
    /// `branches` of each home. Returns the least bound of those left out.
    fn expand(
        &self,
        unit: usize,
        label: &Label,
        before: usize,
        branches: usize,
        out: &mut Vec<Label>,
    ) -> f64 {
        let mut dropped = f64::INFINITY;
        let (mut partial, mut longer) = (Vec::new(), Vec::new());
        let dual = self.dual;
        let modes = self.instance.modes.len();
        'homes: for &(index, home) in dual.homes(unit) {
            let mut memory = label.memory;
            let (mut bought, mut bound) = (home.cost, self.rest_after[unit] - dual.worth());
            for (slot, &budget) in self.contested.iter().enumerate() {
                memory[slot] += home.memory[budget];
                let least = memory[slot] + self.need_after[unit][slot];
                if least > self.instance.budgets[budget].bytes {
                    continue 'homes;
                }
                bound += memory[slot] as f64 * dual.price[budget];
            }
            bought += label.cost;
            bound += bought;
            // Least that each mode and those after it add.
            let mut least = [0.0; MAX_MODES + 1];
            for mode in (0..modes).rev() {
                let values = self.ways(unit, label, mode, home).map(|way| way.3);
                least[mode] = least[mode + 1] + values.fold(f64::INFINITY, f64::min);
            }
            if bound + least[0] >= self.limit {
                continue;
            }
            let start =
                Partial { states: [0; MAX_MODES], devices: [0; MAX_MODES], cost: bought, bound };
            partial.clear();
            partial.push(start);
            for mode in 0..modes {
                longer.clear();
                for half in &partial {
                    for (device, to, cost, value) in self.ways(unit, label, mode, home) {
                        if half.bound + value + least[mode + 1] >= self.limit {
                            continue;
                        }
                        let (mut states, mut devices) = (half.states, half.devices);
                        states[mode] = to as u16;
                        devices[mode] = device as u8;
                        let (cost, bound) = (half.cost + cost, half.bound + value);
                        longer.push(Partial { states, devices, cost, bound });
                    }
                }
                if longer.len() > branches {
                    longer.sort_by(|a: &Partial, b| a.bound.total_cmp(&b.bound));
                    dropped = dropped.min(longer[branches].bound + least[mode + 1]);
                    longer.truncate(branches);
                }
                std::mem::swap(&mut partial, &mut longer);
            }
            for &Partial { states, devices, cost, bound } in &partial {
                let trace = Trace { before, home: index, devices };
                out.push(Label { states, memory, cost, bound, trace });
            }
        }
        dropped
    }

    /// A mode's steps from a label with a home's devices: device, next state, cost, and cost with
    /// the least that follows.
    fn ways(
        &self,
        unit: usize,
        label: &Label,
        mode: usize,
        home: &Home,
    ) -> impl Iterator<Item = (usize, usize, f64, f64)> {
        let steps = self.trellis.steps_from(unit, label.states[mode] as usize);
        steps.filter_map(move |index| {
            let step = &self.trellis.steps[unit][index];
            if home.reaches(mode) & (1 << step.device) == 0 {
                return None;
            }
            let more = more(self.instance, home, mode, unit, step.device);
            let cost = self.dual.steps[mode][unit][index] + more;
            let value = cost + self.dual.back[mode][unit][step.to];
            let usable = value.is_finite();
            usable.then_some((step.device, step.to, cost, value))
        })
    }

    fn assignment(&self, label: &Label) -> Assignment {
        let (units, modes) = (self.instance.units.len(), self.instance.modes.len());
        let mut assignment =
            Assignment { homes: vec![0; units], devices: vec![vec![0; units]; modes] };
        let mut trace = label.trace;
        for unit in (0..units).rev() {
            assignment.homes[unit] = trace.home;
            for mode in 0..modes {
                assignment.devices[mode][unit] = usize::from(trace.devices[mode]);
            }
            trace = self.traces[trace.before];
        }
        assignment
    }
}

/// Labels that no other of the same states beats in cost and in every budget.
fn undominated(mut labels: Vec<Label>) -> Vec<Label> {
    labels.sort_by(|a, b| {
        let order = a.states.cmp(&b.states).then(a.cost.total_cmp(&b.cost));
        order.then(a.memory.cmp(&b.memory))
    });
    let mut kept: Vec<Label> = Vec::with_capacity(labels.len().min(1 << 12));
    let mut group = 0;
    for label in labels {
        if kept.get(group).is_none_or(|first| first.states != label.states) {
            group = kept.len();
        }
        let beaten =
            |other: &Label| other.memory.iter().zip(&label.memory).all(|(other, own)| other <= own);
        if !kept[group..].iter().any(beaten) {
            kept.push(label);
        }
    }
    kept
}

/// Budgets that some choice of homes exceeds: all others can be forgotten.
pub(crate) fn contested(instance: &Instance) -> Vec<usize> {
    let most = |budget: usize| -> u128 {
        let units = instance.homes.iter();
        units
            .map(|homes| homes.iter().map(|h| u128::from(h.memory[budget])).max().unwrap_or(0))
            .sum()
    };
    let budgets = instance.budgets.iter().enumerate();
    let over = budgets.filter(|(index, budget)| most(*index) > u128::from(budget.bytes));
    over.map(|(index, _)| index).collect()
}
