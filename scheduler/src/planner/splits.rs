//! Products that two devices compute together: an improvement of a placement that is already chosen.
//!
//! For each product the rows are shared so that both devices end at the same time, with what each
//! keeps of its speed beside the other and with the DRAM that they share; then what it takes to start
//! both, to carry the input there and the result back, and to join the parts is added. A split is
//! worth it if that is less than the product alone on the device of its unit.

use trefoil_graph::ops::Op;
use trefoil_graph::{NodeIndex, UnitId};

use super::PlanRequest;
use super::objective::Prices;
use super::problem::Tables;
use crate::cost::Cost;
use crate::partition::{Instance, Solution};
use crate::profile::DeviceProfile;
use crate::split::{LinearSplit, Share, split_rows};
use crate::split_cost::SplitWork;

/// Rows of a matrix are shared in multiples of this.
const GRAIN: usize = 64;

/// Splits of some products in some buckets.
#[derive(Clone, Debug, Default)]
pub(super) struct Splits {
    /// By bucket.
    pub(super) buckets: Vec<BucketSplits>,
    /// What they save under the objective.
    pub(super) gain: f64,
}

/// Splits of one bucket.
#[derive(Clone, Debug, Default)]
pub(super) struct BucketSplits {
    pub(super) splits: Vec<LinearSplit>,
    /// Of a step, by unit.
    pub(super) saved: Vec<(UnitId, Cost)>,
}

impl Splits {
    /// Number of products that are split.
    pub(super) fn count(&self) -> usize {
        self.buckets.iter().map(|bucket| bucket.splits.len()).sum()
    }

    /// What a step of a bucket saves.
    pub(super) fn saved(&self, bucket: usize) -> Cost {
        let saved = self.buckets.get(bucket).into_iter().flat_map(|bucket| &bucket.saved);
        saved.map(|(_, cost)| *cost).sum()
    }

    /// What a unit saves in a step of a bucket.
    pub(super) fn saved_by(&self, bucket: usize, unit: UnitId) -> Cost {
        let saved = self.buckets.get(bucket).into_iter().flat_map(|bucket| &bucket.saved);
        saved.filter(|(of, _)| *of == unit).map(|(_, cost)| *cost).sum()
    }
}

/// Looks for splits that pay off.
pub(super) struct Finder<'t, 'a> {
    pub(super) request: &'t PlanRequest<'a>,
    pub(super) tables: &'t Tables<'a>,
    pub(super) instance: &'t Instance,
    /// Bucket of each mode.
    pub(super) used: &'t [usize],
    pub(super) prices: &'t Prices,
}

impl Finder<'_, '_> {
    /// Every product that gains by a split, with the one that gains most for it, as far as memory
    /// reaches.
    pub(super) fn find(&self, solution: &Solution) -> Splits {
        let mut found =
            Splits { buckets: vec![BucketSplits::default(); self.tables.uses.len()], gain: 0.0 };
        // Rows on a device that has the weights in another memory take room there, once for all
        // buckets that share them alike; counted for each, they are never too few.
        let mut memory = solution.memory.clone();
        for (mode, &bucket) in self.used.iter().enumerate() {
            let used = &self.tables.uses[bucket];
            let streamed = self.instance.streamed(&solution.assignment, mode);
            for (unit, &home) in solution.assignment.devices[mode].iter().enumerate() {
                let pinned =
                    |pin: &crate::Pin| pin.holds(self.request.graph, UnitId(unit), used.phase);
                if streamed[unit] || self.request.pins.iter().any(pinned) {
                    continue;
                }
                for &node in &self.request.graph.unit(UnitId(unit)).nodes {
                    let Some(best) = self.best(bucket, node, home, &memory) else { continue };
                    if best.needs > 0 {
                        memory[best.domain] += best.needs;
                    }
                    found.gain += best.gain;
                    let of_bucket = &mut found.buckets[bucket];
                    of_bucket.splits.push(best.split);
                    of_bucket.saved.push((UnitId(unit), best.saved));
                }
            }
        }
        found
    }

    /// The best split of a product with one other device.
    fn best(&self, bucket: usize, node: NodeIndex, home: usize, memory: &[u64]) -> Option<Best> {
        let used = &self.tables.uses[bucket];
        let graph = self.request.graph;
        let op = graph.node(node);
        let Op::Linear(linear) = &op.op else { return None };
        let rows = split_rows(graph, &op.name).ok()?;
        let first = self.tables.devices[home];
        let model = self.tables.model;
        let work = SplitWork { model, node, home: first, step: &used.step };
        let before = model.op(first, node, &used.step).ok()?;
        let mut best: Option<Best> = None;
        for (other, &second) in self.tables.devices.iter().enumerate() {
            if other == home || !takes_rows(first) || !takes_rows(second) {
                continue;
            }
            let Some(kept) = balanced(&work, first, second, rows) else { continue };
            let part = kept as f64 / rows as f64;
            let Ok(Some(after)) = work.cost(&[(first, part), (second, 1.0 - part)]) else {
                continue;
            };
            let saved = Cost {
                seconds: before.seconds - after.seconds,
                joules: before.joules - after.joules,
            };
            let gain = self.prices.of(used.phase, saved) * used.weight();
            let domain = self.instance.devices[other].domain;
            let same = domain == self.instance.devices[home].domain;
            let needs = if same { 0 } else { ((rows - kept) * linear.weight.row_bytes()) as u64 };
            let fits = memory[domain] + needs <= self.instance.budgets[domain].bytes;
            if gain > 0.0 && fits && best.as_ref().is_none_or(|best| gain > best.gain) {
                let share =
                    |device: &DeviceProfile, rows| Share { device: device.name.clone(), rows };
                let shares = vec![share(first, kept), share(second, rows - kept)];
                let split = LinearSplit { op: op.name.clone(), shares };
                best = Some(Best { gain, saved, split, domain, needs });
            }
        }
        best
    }
}

/// A split, and what it is worth.
struct Best {
    gain: f64,
    saved: Cost,
    split: LinearSplit,
    /// Domain of the second device, and bytes of weights that it needs there.
    domain: usize,
    needs: u64,
}

/// Can a device compute any rows of a matrix, from the file's format?
fn takes_rows(device: &DeviceProfile) -> bool {
    device.static_rows.is_none() && device.weight_copy.is_none()
}

/// Rows of the first device with which both end at the same time; `None` if one would have none.
fn balanced(
    work: &SplitWork<'_>,
    first: &DeviceProfile,
    second: &DeviceProfile,
    rows: usize,
) -> Option<usize> {
    let (own, own_fixed) = work.times(first, &[second]).ok()??;
    let (other, other_fixed) = work.times(second, &[first]).ok()??;
    let share = (other + other_fixed - own_fixed) / (own + other);
    if !(0.0..1.0).contains(&share) {
        return None;
    }
    let kept = ((share * rows as f64) as usize + GRAIN / 2) / GRAIN * GRAIN;
    (kept > 0 && kept < rows).then_some(kept)
}
