//! Chunks of a prompt that are on several devices at the same time.
//!
//! The partitioner counts one step after another. Where a prompt takes several chunks and its plan
//! several devices, the executor has some chunks under way at once ([`crate::BucketPlan::
//! steps_at_once`]). The estimate here: the first chunk takes its whole path; each later one ends a
//! *period* after the one before it, which is the longest of what the busiest device has to do for a
//! chunk (slowed by the others for the share of the time that they work), what the busiest link has to
//! carry, what the DRAM of each domain has to give, and the path by the number of chunks under way.
//! [`crate::simulate`] has the exact course of events; tests hold one against the other.

use trefoil_devices_api::Phase;
use trefoil_graph::UnitId;

use super::explain::{Candidate, Judge};
use crate::cost::Cost;
use crate::partition::{Assignment, Solution};
use crate::plan::MOST_AT_ONCE;
use crate::split_cost::waiting_watts;

/// What overlapping saves of a request's prompt.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Overlap {
    /// Chunks under way at once.
    pub(super) steps_at_once: usize,
    /// Of the whole prompt.
    pub(super) saved: Cost,
    /// What is saved at least if the prompt takes longer than estimated by [`CAUTION`].
    pub(super) surely: Cost,
}

/// Share by which an overlapped prompt may take longer than estimated: a placement that relies on
/// overlap must be better even then, because what devices keep of their speed beside each other is
/// known less well than their speed alone.
pub(super) const CAUTION: f64 = 0.2;

/// What a chunk asks of each device, link and domain, in seconds.
struct Loads {
    devices: Vec<f64>,
    others: f64,
}

impl Judge<'_, '_> {
    /// The mode that reads the prompt in more than one step, if there is one, and its steps.
    fn chunked(&self) -> Option<(usize, f64)> {
        let modes = self.used.iter().enumerate();
        let chunked = modes.map(|(mode, &bucket)| (mode, &self.tables.uses[bucket]));
        let mut chunked =
            chunked.filter(|(_, used)| used.phase == Phase::Prefill && used.steps > 1.0);
        chunked.next().map(|(mode, used)| (mode, used.steps))
    }

    /// What overlapping chunks save, as an estimate; `None` where nothing overlaps.
    pub(super) fn overlap(&self, assignment: &Assignment) -> Option<Overlap> {
        let (mode, steps) = self.chunked()?;
        let devices = &assignment.devices[mode];
        let mut named: Vec<usize> = devices.clone();
        named.sort_unstable();
        named.dedup();
        let steps_at_once = named.len().min(MOST_AT_ONCE);
        if steps_at_once < 2 {
            return None;
        }
        let streamed = self.instance.streamed(assignment, mode);
        let path = self.step(self.used[mode], devices, &streamed)?.seconds;
        let loads = self.loads(mode, devices, &streamed)?;
        let period = self.period(&loads).max(path / steps_at_once as f64);
        let seconds = ((steps - 1.0) * (path - period)).max(0.0);
        let watts = waiting_watts(self.tables.model.profile);
        let cost = |seconds: f64| Cost { seconds, joules: seconds * watts };
        let surely = (seconds - CAUTION * (steps * path - seconds)).max(0.0);
        Some(Overlap { steps_at_once, saved: cost(seconds), surely: cost(surely) })
    }

    fn loads(&self, mode: usize, devices: &[usize], streamed: &[bool]) -> Option<Loads> {
        let (tables, bucket) = (self.tables, self.used[mode]);
        let profile = tables.model.profile;
        let mut loads = Loads { devices: vec![0.0; tables.devices.len()], others: 0.0 };
        let mut dram = vec![0.0; profile.domains.len()];
        for (unit, &at) in devices.iter().enumerate() {
            loads.devices[at] += tables.run[bucket][unit][at].as_ref().ok()?.seconds;
            if streamed[unit] {
                loads.devices[at] += tables.stream[bucket][unit][at]?.seconds;
            }
            if unit == 0 || devices[unit - 1] != at {
                loads.devices[at] += tables.model.handoff(tables.devices[at]).seconds;
            }
            let step = &tables.uses[bucket].step;
            let domain = self.instance.devices[at].domain;
            dram[domain] += tables.model.dram_bytes(tables.devices[at], UnitId(unit), step);
        }
        // All copies as if over one link: what a chunk takes beyond the devices' own time.
        let work: f64 = loads.devices.iter().sum();
        let path = self.step(bucket, devices, streamed)?.seconds;
        let dram = dram.iter().zip(&profile.domains).map(|(b, domain)| b / domain.bandwidth.get());
        loads.others = dram.fold((path - work).max(0.0), f64::max);
        Some(loads)
    }

    /// Time between the ends of two chunks.
    fn period(&self, loads: &Loads) -> f64 {
        let profile = self.tables.model.profile;
        let name = |device: usize| self.tables.devices[device].name.as_str();
        let mut period = loads.devices.iter().copied().fold(0.0, f64::max);
        // How much others slow a device depends on how long they work in a period, and the other way
        // round: a few rounds settle it.
        for _ in 0..4 {
            let slowed = |device: usize| {
                let others = (0..loads.devices.len()).filter(|&other| other != device);
                let kept = others.map(|other| {
                    let share = (loads.devices[other] / period.max(1e-12)).min(1.0);
                    1.0 - share * (1.0 - profile.keeps(name(device), name(other)))
                });
                loads.devices[device] / kept.product::<f64>().max(1e-3)
            };
            period = (0..loads.devices.len()).map(slowed).fold(0.0, f64::max);
        }
        period.max(loads.others)
    }

    /// Prompts read on two devices one after the other, cut where chunks that overlap gain most, with
    /// everything else as in `chosen`.
    pub(super) fn pipelines(&self, chosen: &Solution) -> Vec<Candidate> {
        let Some((prompt, _)) = self.chunked() else { return Vec::new() };
        let units = self.instance.units.len();
        let count = self.instance.devices.len();
        let mut found = Vec::new();
        for (a, b) in
            (0..count).flat_map(|a| (0..count).map(move |b| (a, b))).filter(|(a, b)| a != b)
        {
            let cut = |cut: usize| {
                (0..units).map(|unit| if unit < cut { a } else { b }).collect::<Vec<_>>()
            };
            let none = vec![false; units];
            let graph = self.tables.model.graph;
            let starts =
                (1..units).filter(|&u| graph.units()[u].layer != graph.units()[u - 1].layer);
            let periods = starts.filter_map(|at| {
                let loads = self.loads(prompt, &cut(at), &none)?;
                Some((at, self.period(&loads)))
            });
            let best = periods.min_by(|a, b| a.1.total_cmp(&b.1));
            let Some((at, _)) = best else { continue };
            let devices = cut(at);
            let assignment = self.assignment(|mode, unit| {
                if mode == prompt { devices[unit] } else { chosen.assignment.devices[mode][unit] }
            });
            let scored = assignment.and_then(|assignment| self.scored(assignment));
            if let Some((cost, assignment)) = scored {
                let [first, second] = [a, b].map(|device| &self.instance.devices[device].name);
                let name = format!(
                    "prefill {first}, from {} on {second}, chunks overlapped",
                    self.instance.units[at]
                );
                found.push(Candidate { name, plain: false, outcome: Ok((cost, assignment)) });
            }
        }
        found
    }
}
