//! Times of ops and units, all devices in turns, within a given time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use trefoil_devices_api::{Device, OpQuery, Support};
use trefoil_graph::{LayerGraph, StepInputs, StepShape};
use trefoil_scheduler::fit::least_disturbed;

use super::Progress;
use super::segment::{KvNeed, Ready, step};
use super::targets::{Grid, Sample, Target};
use crate::self_test::CaseError;

/// Least and most time for one step on one device, in one pass.
const LEAST: Duration = Duration::from_millis(3);
const MOST: Duration = Duration::from_millis(400);
/// Runs that count, of one step on one device in one pass.
const RUNS: std::ops::RangeInclusive<usize> = 3..=40;
/// A step that would take more than this share of the time that is left is passed over.
const GREEDY: f64 = 0.2;

/// What a run of measurements needs to know of the model.
#[derive(Clone, Copy)]
pub(super) struct Model<'a> {
    pub(super) graph: &'a Arc<LayerGraph>,
    pub(super) vocabulary: usize,
    pub(super) context: usize,
    /// Are stored keys and values f16 (else f32)?
    pub(super) half: bool,
}

/// Times of one step of one target on one device.
struct Timed {
    sample: Sample,
    times: Vec<f64>,
}

/// Samples by device, and how many steps were passed over for want of time.
pub(super) struct Measured {
    pub(super) samples: Vec<Vec<Sample>>,
    pub(super) skipped: usize,
}

/// Device, target, rows, tokens before.
type Key = (usize, usize, u64, u64);

/// Measures all targets on all devices.
pub(super) fn measure(
    model: Model<'_>,
    devices: &[Arc<dyn Device>],
    targets: &[Target],
    grid: &Grid,
    progress: &mut dyn Progress,
) -> Result<Measured, CaseError> {
    let mut timed: BTreeMap<Key, Timed> = BTreeMap::new();
    let begin = Instant::now();
    let budget = Duration::from_secs_f64(grid.seconds * devices.len().max(1) as f64);
    let mut skipped = 0;
    for pass in 0..grid.passes {
        let end = begin + budget.mul_f64((pass + 1) as f64 / grid.passes as f64);
        skipped = 0;
        for (index, target) in targets.iter().enumerate() {
            let left = end.saturating_duration_since(Instant::now());
            let steps = target.steps(model, grid);
            if left.is_zero() {
                skipped += steps.len() * devices.len();
                continue;
            }
            let share = left.div_f64((targets.len() - index) as f64);
            let work = One { model, target, steps: &steps, share, left };
            skipped += work.run(devices, index, &mut timed)?;
            let done = begin.elapsed().as_secs_f64() / budget.as_secs_f64();
            progress.at(done.min(1.0), &target.signature);
        }
    }
    let mut samples = vec![Vec::new(); devices.len()];
    for ((device, ..), Timed { mut sample, mut times }) in timed {
        let Some(least) = least_disturbed(&mut times) else { continue };
        let count = u32::try_from(times.len()).unwrap_or(u32::MAX);
        match &mut sample {
            Sample::Op(op) => (op.seconds, op.runs) = (least, count),
            Sample::Unit(unit) => (unit.seconds, unit.runs) = (least, count),
        }
        samples[device].push(sample);
    }
    Ok(Measured { samples, skipped })
}

/// One target in one pass.
struct One<'a> {
    model: Model<'a>,
    target: &'a Target,
    steps: &'a [StepShape],
    /// Time for it.
    share: Duration,
    /// Time for all that is left in this pass.
    left: Duration,
}

impl One<'_> {
    fn run(
        &self,
        devices: &[Arc<dyn Device>],
        index: usize,
        timed: &mut BTreeMap<Key, Timed>,
    ) -> Result<usize, CaseError> {
        let Self { model, target, .. } = self;
        if self.steps.is_empty() {
            return Ok(0);
        }
        let begin = Instant::now();
        let bucket = target.bucket(self.steps);
        let segment = target.segment(model.graph);
        let tokens = self.steps.iter().map(|step| step.past + step.tokens).max().unwrap_or(1);
        let kv = KvNeed { tokens: tokens as usize, half: model.half };
        let mut ready = Vec::new();
        for (number, device) in devices.iter().enumerate() {
            let takes = segment.nodes.iter().all(|&node| {
                let query = OpQuery { graph: model.graph, node, bucket };
                !matches!(device.support(&query), Support::No(_))
            });
            if takes {
                // Nothing but a request that cannot be met is a reason to go on without it.
                match Ready::new(device, model.graph, &segment, bucket, kv) {
                    Ok(made) => ready.push((number, made, 0.0)),
                    Err(error) if is_refusal(&error) => {
                        tracing::debug!("{}: {}: {error}", device.info().name, target.signature);
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        let left = self.share.saturating_sub(begin.elapsed());
        let slice = left.div_f64((self.steps.len() * devices.len()) as f64).clamp(LEAST, MOST);
        let mut skipped = 0;
        for shape in self.steps {
            let rows = (shape.tokens, shape.past, shape.rows_out);
            let inputs = step(rows.0 as usize, rows.1 as usize, rows.2 as usize, model.vocabulary);
            let inputs = Arc::new(inputs);
            let weight = (shape.tokens + shape.past / 64) as f64;
            let mut turns: Vec<(usize, &mut Ready, &mut f64)> = Vec::new();
            for (number, ready, per_row) in &mut ready {
                let expected = *per_row * weight * (RUNS.start() + 1) as f64;
                if expected > GREEDY * self.left.as_secs_f64() {
                    skipped += 1;
                    continue;
                }
                turns.push((*number, ready, per_row));
            }
            for (number, times) in take_turns(&mut turns, &inputs, weight, slice)? {
                let key = (number, index, shape.tokens, shape.past);
                let sample = || target.sample(model.graph, shape);
                let known = timed.entry(key);
                let known = known.or_insert_with(|| Timed { sample: sample(), times: Vec::new() });
                known.times.extend(times);
            }
        }
        Ok(skipped)
    }
}

/// Runs a step on each device in turn until each has had its time. Returns the times by device.
fn take_turns(
    turns: &mut [(usize, &mut Ready, &mut f64)],
    inputs: &Arc<StepInputs>,
    weight: f64,
    slice: Duration,
) -> Result<Vec<(usize, Vec<f64>)>, CaseError> {
    let mut times: Vec<(usize, Vec<f64>)> = Vec::new();
    for (number, ready, per_row) in &mut *turns {
        // The first run is for warming up.
        let first = ready.run(inputs)?;
        **per_row = first / weight;
        times.push((*number, Vec::new()));
    }
    let wanted = |times: &[f64]| {
        let spent: f64 = times.iter().sum();
        let few = times.len() < *RUNS.start();
        few || (times.len() < *RUNS.end() && spent < slice.as_secs_f64())
    };
    while times.iter().any(|(_, times)| wanted(times)) {
        for ((_, ready, _), (_, times)) in turns.iter_mut().zip(&mut times) {
            if wanted(times) {
                times.push(ready.run(inputs)?);
            }
        }
    }
    for ((_, _, per_row), (_, times)) in turns.iter_mut().zip(&times) {
        let least = times.iter().copied().fold(f64::INFINITY, f64::min);
        **per_row = least / weight;
    }
    Ok(times)
}

/// Is this a request that the device cannot meet, rather than a device that fails?
fn is_refusal(error: &CaseError) -> bool {
    use crate::host_access::CopyError;
    use trefoil_devices_api::{CompileError, DeviceError};
    let device = match error {
        CaseError::Unsupported(_) | CaseError::Compile(CompileError::Unsupported { .. }) => {
            return true;
        }
        CaseError::Device(error) | CaseError::Copy(CopyError::Device(error)) => error,
        _ => return false,
    };
    matches!(device, DeviceError::OutOfMemory { .. } | DeviceError::BadRequest { .. })
}
