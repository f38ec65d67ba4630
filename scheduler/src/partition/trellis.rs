//! What the order of units must remember: the last device, and where live tensors are.

use std::collections::BTreeMap;

use super::instance::{Instance, MAX_DOMAINS, Mode};

/// A tensor's domains in a state: where it was made, and a bit per domain that holds it.
type Held = (usize, u32);

/// A copy that a step makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Move {
    tensor: usize,
    from: usize,
    to: usize,
}

/// One way on from a state: run the next unit on a device.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) from: usize,
    pub(super) device: usize,
    pub(super) to: usize,
    starts: bool,
    moves: Vec<Move>,
}

/// All states after each unit, and all steps between them. The same for every mode.
///
/// A state is all that the cost of later units depends on: two prefixes of a placement with the same
/// state can be followed by the same steps at the same costs.
#[derive(Debug)]
pub(super) struct Trellis {
    /// By unit: number of states after it.
    pub(super) states: Vec<usize>,
    /// By unit: steps into it, by the state before it. Before the first unit is one state.
    pub(super) steps: Vec<Vec<Step>>,
    /// By unit: first step of each state before it, and one past the last.
    first: Vec<Vec<usize>>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct State {
    device: Option<usize>,
    /// Live tensors, ascending.
    live: Vec<(usize, Held)>,
}

impl Trellis {
    pub(super) fn new(instance: &Instance) -> Self {
        debug_assert!(instance.domains.len() <= MAX_DOMAINS);
        let mut before = vec![State { device: None, live: Vec::new() }];
        let mut trellis = Self { states: Vec::new(), steps: Vec::new(), first: Vec::new() };
        for unit in 0..instance.units.len() {
            let mut after: BTreeMap<State, usize> = BTreeMap::new();
            let (mut steps, mut first) = (Vec::new(), Vec::new());
            for (from, state) in before.iter().enumerate() {
                first.push(steps.len());
                for device in 0..instance.devices.len() {
                    // A device that no mode can use here makes no state.
                    if instance.modes.iter().any(|mode| mode.run[unit][device].is_some()) {
                        let (next, moves) = follow(instance, state, unit, device);
                        let count = after.len();
                        let to = *after.entry(next).or_insert(count);
                        let starts = state.device != Some(device);
                        steps.push(Step { from, device, to, starts, moves });
                    }
                }
            }
            first.push(steps.len());
            let mut states: Vec<(State, usize)> = after.into_iter().collect();
            states.sort_by_key(|(_, index)| *index);
            before = states.into_iter().map(|(state, _)| state).collect();
            trellis.states.push(before.len());
            trellis.steps.push(steps);
            trellis.first.push(first);
        }
        trellis
    }

    /// Indices of the steps into `unit` from a state before it.
    pub(super) fn steps_from(&self, unit: usize, state: usize) -> std::ops::Range<usize> {
        self.first[unit][state]..self.first[unit][state + 1]
    }

    /// Costs of all steps in a mode, `[unit][step]`; infinite where it cannot be done.
    pub(super) fn costs(&self, mode: &Mode) -> Vec<Vec<f64>> {
        let cost = |unit: usize, step: &Step| {
            let run = mode.run[unit][step.device]?;
            let start = if step.starts { mode.start[step.device] } else { 0.0 };
            let moves = step.moves.iter().map(|m| mode.transfer[m.tensor][m.from][m.to]);
            Some(run + start + moves.sum::<Option<f64>>()?)
        };
        let units = self.steps.iter().enumerate();
        units
            .map(|(unit, steps)| {
                steps.iter().map(|step| cost(unit, step).unwrap_or(f64::INFINITY)).collect()
            })
            .collect()
    }
}

/// The state after `unit` runs on a device, and the copies that this takes.
fn follow(instance: &Instance, state: &State, unit: usize, at: usize) -> (State, Vec<Move>) {
    let device = &instance.devices[at];
    let reached = device.addresses.iter().fold(0u32, |set, domain| set | 1 << domain);
    let mut live = state.live.clone();
    let mut moves = Vec::new();
    for (tensor, (made, held)) in &mut live {
        if instance.tensors[*tensor].readers.contains(&unit) && *held & reached == 0 {
            moves.push(Move { tensor: *tensor, from: *made, to: device.domain });
            *held |= 1 << device.domain;
        }
    }
    let made = instance.tensors.iter().enumerate().filter(|(_, tensor)| tensor.maker == unit);
    live.extend(made.map(|(tensor, _)| (tensor, (device.domain, 1 << device.domain))));
    live.retain(|(tensor, _)| instance.tensors[*tensor].readers.iter().any(|&r| r > unit));
    (State { device: Some(at), live }, moves)
}
