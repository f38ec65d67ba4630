//! A lower bound by Lagrangian decomposition: prices for memory and for agreement between modes.

use super::instance::{Home, Instance};
use super::trellis::Trellis;

/// The relaxed problem at its current prices.
///
/// Each mode is a chain of its own; each unit's home is a problem of its own. `toll[mode][unit]
/// [device]` is what a mode pays for using a device and what the home is paid for providing it;
/// `price[budget]` is what a byte costs.
pub(super) struct Dual<'a> {
    instance: &'a Instance,
    trellis: &'a Trellis,
    /// Homes that fit in the budgets on their own, by unit: index and home.
    homes: Vec<Vec<(usize, &'a Home)>>,
    /// `[mode][unit][step]`.
    pub(super) steps: Vec<Vec<Vec<f64>>>,
    pub(super) price: Vec<f64>,
    toll: Vec<Vec<Vec<f64>>>,
    /// `[mode][unit][state]`: least cost of the chain up to the unit, tolls paid.
    forth: Vec<Vec<Vec<f64>>>,
    /// `[mode][unit][state]`: least cost of the chain after the unit, tolls paid.
    pub(super) back: Vec<Vec<Vec<f64>>>,
    /// By unit: the home that was cheapest at last.
    chosen: Vec<usize>,
}

impl<'a> Dual<'a> {
    pub(super) fn new(instance: &'a Instance, trellis: &'a Trellis) -> Self {
        let (modes, devices) = (instance.modes.len(), instance.devices.len());
        let fits = |home: &Home| {
            home.memory.iter().zip(&instance.budgets).all(|(need, budget)| *need <= budget.bytes)
        };
        let mut dual = Self {
            instance,
            trellis,
            homes: instance
                .homes
                .iter()
                .map(|homes| homes.iter().enumerate().filter(|(_, home)| fits(home)).collect())
                .collect(),
            steps: instance.modes.iter().map(|mode| trellis.costs(mode)).collect(),
            price: vec![0.0; instance.budgets.len()],
            toll: vec![vec![vec![0.0; devices]; instance.units.len()]; modes],
            forth: Vec::new(),
            back: Vec::new(),
            chosen: vec![0; instance.units.len()],
        };
        let empty = |value: f64| -> Vec<Vec<f64>> {
            trellis.states.iter().map(|&states| vec![value; states]).collect()
        };
        dual.forth = vec![empty(f64::INFINITY); modes];
        dual.back = vec![empty(0.0); modes];
        for unit in (1..instance.units.len()).rev() {
            for mode in 0..modes {
                dual.pull_back(mode, unit);
            }
        }
        dual
    }

    /// Homes of a unit that fit, with their indices.
    pub(super) fn homes(&self, unit: usize) -> &[(usize, &'a Home)] {
        &self.homes[unit]
    }

    fn priced(&self, home: &Home) -> f64 {
        let bytes = home.memory.iter().zip(&self.price);
        home.cost + bytes.map(|(&bytes, price)| bytes as f64 * price).sum::<f64>()
    }

    fn before(&self, mode: usize, unit: usize, state: usize) -> f64 {
        if unit == 0 { 0.0 } else { self.forth[mode][unit - 1][state] }
    }

    /// Recomputes `forth` at a unit from the one before it.
    fn push_forth(&mut self, mode: usize, unit: usize) {
        let mut row = vec![f64::INFINITY; self.trellis.states[unit]];
        for (step, cost) in self.trellis.steps[unit].iter().zip(&self.steps[mode][unit]) {
            let toll = self.toll[mode][unit][step.device];
            let sum = self.before(mode, unit, step.from) + cost + toll;
            row[step.to] = row[step.to].min(sum);
        }
        self.forth[mode][unit] = row;
    }

    /// Recomputes `back` before a unit (not the first) from the one at it.
    fn pull_back(&mut self, mode: usize, unit: usize) {
        let mut row = vec![f64::INFINITY; self.trellis.states[unit - 1]];
        for (step, cost) in self.trellis.steps[unit].iter().zip(&self.steps[mode][unit]) {
            let toll = self.toll[mode][unit][step.device];
            let sum = self.back[mode][unit][step.to] + cost + toll;
            row[step.from] = row[step.from].min(sum);
        }
        self.back[mode][unit - 1] = row;
    }

    /// Balances the tolls of one unit: collects what each mode's whole chain costs by the device
    /// that it uses here, finds the best home for all of them together, and hands every mode an
    /// equal share. The bound never falls (block coordinate ascent). False if nothing is possible.
    fn balance(&mut self, unit: usize) -> bool {
        let (modes, devices) = (self.toll.len(), self.instance.devices.len());
        let instance = self.instance;
        let mut chain = vec![vec![f64::INFINITY; devices]; modes];
        for (mode, row) in chain.iter_mut().enumerate() {
            for (step, cost) in self.trellis.steps[unit].iter().zip(&self.steps[mode][unit]) {
                let sum =
                    self.before(mode, unit, step.from) + cost + self.back[mode][unit][step.to];
                row[step.device] = row[step.device].min(sum);
            }
        }
        let mut joint = vec![vec![f64::INFINITY; devices]; modes];
        let mut best = f64::INFINITY;
        let mut least = vec![0.0; modes];
        for &(index, home) in &self.homes[unit] {
            let in_set = |mode: usize| bits(home.reaches(mode)).filter(|&d| d < devices);
            let through = |mode: usize, device: usize| {
                chain[mode][device] + more(instance, home, mode, unit, device)
            };
            let mut sum = self.priced(home);
            for (mode, least) in least.iter_mut().enumerate() {
                let costs = in_set(mode).map(|device| through(mode, device));
                *least = costs.fold(f64::INFINITY, f64::min);
                sum += *least;
            }
            if sum.is_infinite() {
                continue;
            }
            if sum < best {
                best = sum;
                self.chosen[unit] = index;
            }
            for mode in 0..modes {
                for device in in_set(mode) {
                    let all = sum - least[mode] + through(mode, device);
                    joint[mode][device] = joint[mode][device].min(all);
                }
            }
        }
        for mode in 0..modes {
            for device in 0..devices {
                let (joint, chain) = (joint[mode][device], chain[mode][device]);
                self.toll[mode][unit][device] = match (joint.is_finite(), chain.is_finite()) {
                    (true, true) => joint / modes as f64 - chain,
                    (_, false) => 0.0,
                    (false, true) => f64::INFINITY,
                };
            }
        }
        best.is_finite()
    }

    /// One pass over all units and back. False if no placement exists.
    pub(super) fn sweep(&mut self) -> bool {
        let (units, modes) = (self.instance.units.len(), self.toll.len());
        for unit in 0..units {
            if !self.balance(unit) {
                return false;
            }
            (0..modes).for_each(|mode| self.push_forth(mode, unit));
        }
        for unit in (0..units).rev() {
            if !self.balance(unit) {
                return false;
            }
            if unit > 0 {
                (0..modes).for_each(|mode| self.pull_back(mode, unit));
            }
        }
        true
    }

    /// Least that the home of a unit costs beyond what the tolls pay it.
    pub(super) fn rest(&self, unit: usize) -> f64 {
        let paid = |home: &Home, mode: usize| {
            let toll = &self.toll[mode][unit];
            let devices = bits(home.reaches(mode)).filter(|&d| d < toll.len());
            let usable = devices.filter(|&d| toll[d].is_finite());
            let paid = usable.map(|d| more(self.instance, home, mode, unit, d) - toll[d]);
            paid.fold(f64::INFINITY, f64::min)
        };
        let homes = self.homes[unit].iter().map(|(_, home)| {
            self.priced(home) + (0..self.toll.len()).map(|mode| paid(home, mode)).sum::<f64>()
        });
        homes.fold(f64::INFINITY, f64::min)
    }

    /// What the budgets are worth at the current prices.
    pub(super) fn worth(&self) -> f64 {
        let budgets = self.instance.budgets.iter().zip(&self.price);
        budgets.map(|(budget, price)| budget.bytes as f64 * price).sum()
    }

    /// The lower bound at the current prices and tolls.
    pub(super) fn value(&self) -> f64 {
        let chains = (0..self.toll.len()).map(|mode| {
            let steps = self.trellis.steps[0].iter().zip(&self.steps[mode][0]);
            let sums = steps.map(|(step, cost)| {
                cost + self.toll[mode][0][step.device] + self.back[mode][0][step.to]
            });
            sums.fold(f64::INFINITY, f64::min)
        });
        let rests = (0..self.instance.units.len()).map(|unit| self.rest(unit));
        chains.sum::<f64>() + rests.sum::<f64>() - self.worth()
    }

    /// Bytes of each budget that the homes cheapest at last take.
    pub(super) fn wanted(&self) -> Vec<f64> {
        let mut sum = vec![0.0; self.price.len()];
        for (homes, &chosen) in self.instance.homes.iter().zip(&self.chosen) {
            for (sum, &bytes) in sum.iter_mut().zip(&homes[chosen].memory) {
                *sum += bytes as f64;
            }
        }
        sum
    }

    /// Raises the bound as far as `rounds` passes get: tolls by sweeps, prices of the budgets in
    /// `contested` by steps that go on while they lead the same way and are halved when they have
    /// gone too far (Riedmiller and Braun 1993). False if no placement exists.
    pub(super) fn ascend(&mut self, contested: &[usize], rounds: usize) -> bool {
        if !self.sweep() {
            return false;
        }
        let mut best = (self.value(), self.price.clone(), self.toll.clone());
        let scale = best.0.abs().max(f64::MIN_POSITIVE);
        let bytes = |budget: usize| (self.instance.budgets[budget].bytes as f64).max(1.0);
        // (step, direction) of each price.
        let mut steps: Vec<(f64, f64)> =
            contested.iter().map(|&budget| (0.05 * scale / bytes(budget), 1.0)).collect();
        let mut idle = 0;
        for _ in 0..rounds {
            let wanted = self.wanted();
            for (&budget, (step, direction)) in contested.iter().zip(&mut steps) {
                let over = wanted[budget] > self.instance.budgets[budget].bytes as f64;
                let now = if over { 1.0 } else { -1.0 };
                *step *= if now == *direction { 1.6 } else { 0.5 };
                *direction = now;
                self.price[budget] = (self.price[budget] + now * *step).max(0.0);
            }
            if !self.sweep() {
                return false;
            }
            let value = self.value();
            idle = if value > best.0 + scale * 1e-6 { 0 } else { idle + 1 };
            if value > best.0 {
                best = (value, self.price.clone(), self.toll.clone());
            }
            let moving = self.price.iter().any(|price| *price > 0.0);
            if idle >= if moving { 12 } else { 2 } {
                break;
            }
        }
        (_, self.price, self.toll) = best;
        for unit in (1..self.instance.units.len()).rev() {
            (0..self.toll.len()).for_each(|mode| self.pull_back(mode, unit));
        }
        true
    }
}

/// Indices of the bits that are set.
pub(super) fn bits(set: u32) -> impl Iterator<Item = usize> {
    (0..32).filter(move |bit| set & (1 << bit) != 0)
}

/// What a home makes a unit cost more on a device: infinite where its weights cannot be streamed.
pub(super) fn more(
    instance: &Instance,
    home: &Home,
    mode: usize,
    unit: usize,
    device: usize,
) -> f64 {
    let streamed = home.streams_to(mode, device);
    instance.modes[mode].streaming(unit, device, streamed).unwrap_or(f64::INFINITY)
}
