//! Times of ops, units and layers within a given time.
//!
//! Devices run as they do in a request: one device at a time, without a pause, and what it runs changes
//! from run to run, so that clocks are up and each piece's weights come from where they lie, not from a
//! cache that the run before filled.

use std::sync::Arc;
use std::time::{Duration, Instant};

use trefoil_devices_api::{Device, DeviceKind, DomainId, OpQuery, Support};
use trefoil_graph::{LayerGraph, StepInputs, StepShape};
use trefoil_scheduler::fit::median;

use super::Progress;
use super::segment::{KvNeed, Ready, step};
use super::targets::{Grid, RowRange, Target};
use crate::self_test::CaseError;

/// Seconds of runs that do not count, before any that do: clocks rise and threads wake up.
const WARM: f64 = 0.3;
/// A GPU's clocks fall while it waits for short work, as it does not within a step: something that takes so
/// many seconds runs before each run that is measured.
const BUSY: f64 = 0.0015;
/// Most runs for that.
const BUSY_RUNS: usize = 12;
/// Steps between those of the coarse grid are measured where a run takes less than this many seconds.
const FINE: f64 = 0.03;
/// Runs of a step that count.
const RUNS: std::ops::RangeInclusive<usize> = 3..=40;
/// A step that would take more than this share of the time that is left is passed over.
const GREEDY: f64 = 0.2;
/// Share of a device's time for each range of rows.
const SHARES: [(RowRange, f64); 3] =
    [(RowRange::One, 0.25), (RowRange::Few, 0.3), (RowRange::Many, 0.45)];

/// What a run of measurements needs to know of the model.
#[derive(Clone, Copy)]
pub(super) struct Model<'a> {
    pub(super) graph: &'a Arc<LayerGraph>,
    pub(super) vocabulary: usize,
    pub(super) context: usize,
    /// Are stored keys and values f16 (else f32)?
    pub(super) half: bool,
}

/// Times by device, and how many steps were passed over for want of time.
pub(super) struct Measured<'t> {
    pub(super) times: Vec<Vec<Timed<'t>>>,
    pub(super) skipped: usize,
}

/// A step of a target, measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timed<'t> {
    pub(super) target: &'t Target,
    pub(super) shape: StepShape,
    /// Seconds of the device's work.
    pub(super) seconds: f64,
    /// Runs that this is the median of.
    pub(super) runs: u32,
}

/// Measures all targets on all devices.
pub(super) fn measure<'t>(
    model: Model<'_>,
    devices: &[Arc<dyn Device>],
    targets: &'t [Target],
    grid: &Grid,
    progress: &mut dyn Progress,
) -> Result<Measured<'t>, CaseError> {
    let mut measured = Measured { times: Vec::new(), skipped: 0 };
    let parts = (devices.len() * SHARES.len()) as f64;
    for (index, device) in devices.iter().enumerate() {
        let mut of_device = Vec::new();
        let begin = Instant::now();
        let mut share = 0.0;
        for (part, (rows, of_time)) in SHARES.into_iter().enumerate() {
            share += of_time;
            let end = begin + Duration::from_secs_f64(grid.seconds * share);
            let of_range = targets.iter().filter(|target| target.rows == rows);
            let mut turn = Turn { device, model, end, items: Vec::new(), skipped: 0 };
            let mut ready = turn.prepare(of_range.collect(), grid)?;
            let done = (index * SHARES.len() + part) as f64 / parts;
            progress.at(done, &format!("{}: {}", device.info().name, rows.name()));
            turn.run(&mut ready, grid)?;
            measured.skipped += turn.skipped;
            for Item { target, shape, mut times, .. } in turn.items {
                let runs = u32::try_from(times.len()).unwrap_or(u32::MAX);
                let Some(seconds) = median(&mut times) else { continue };
                of_device.push(Timed { target, shape, seconds, runs });
            }
        }
        measured.times.push(of_device);
    }
    Ok(measured)
}

/// A step of a target.
struct Item<'t> {
    target: &'t Target,
    /// Its programs' place.
    ready: usize,
    shape: StepShape,
    inputs: Arc<StepInputs>,
    /// Is it between the steps of the coarse grid?
    fine: bool,
    /// Seconds of work of the runs that count.
    times: Vec<f64>,
    /// Seconds that a run keeps the caller waiting; 0 until it is known.
    wall: f64,
}

/// The targets of one range of rows on one device.
struct Turn<'a, 't> {
    device: &'a Arc<dyn Device>,
    model: Model<'a>,
    end: Instant,
    items: Vec<Item<'t>>,
    skipped: usize,
}

impl<'t> Turn<'_, 't> {
    /// Compiles all targets that the device takes.
    fn prepare(&mut self, targets: Vec<&'t Target>, grid: &Grid) -> Result<Vec<Ready>, CaseError> {
        let Model { graph, vocabulary, half, .. } = self.model;
        let mut all = Vec::new();
        for target in targets {
            let coarse =
                target.steps(self.model, grid, false).into_iter().map(|step| (step, false));
            let fine = target.steps(self.model, grid, true).into_iter().map(|step| (step, true));
            let mut steps: Vec<(StepShape, bool)> = coarse.chain(fine).collect();
            if steps.is_empty() {
                continue;
            }
            steps.sort_by_key(|(step, _)| (step.tokens, step.past));
            let shapes: Vec<StepShape> = steps.iter().map(|(step, _)| *step).collect();
            let bucket = target.bucket(&shapes);
            let segments = target.segments(graph);
            let takes = segments[0].nodes.iter().all(|&node| {
                let query = OpQuery { graph, node, bucket };
                !matches!(self.device.support(&query), Support::No(_))
            });
            if !takes {
                continue;
            }
            let tokens = shapes.iter().map(|step| step.past + step.tokens).max().unwrap_or(1);
            let kv = KvNeed { tokens: tokens as usize, half };
            // What is copied to a card is more than its caches hold, and takes time to copy.
            let in_place = self.device.domains()[0].id == DomainId::HOST;
            let turns = if in_place { &segments[..] } else { &segments[..1] };
            match Ready::new(self.device, graph, turns, bucket, kv) {
                Ok(ready) => all.push(ready),
                // Nothing but a request that cannot be met is a reason to go on without it.
                Err(error) if is_refusal(&error) => {
                    let name = &self.device.info().name;
                    tracing::debug!("{name}: {}: {error}", target.signature);
                    continue;
                }
                Err(error) => return Err(error),
            }
            self.items.extend(steps.into_iter().map(|(shape, fine)| {
                let [tokens, past, outputs] =
                    [shape.tokens, shape.past, shape.rows_out].map(|n| n as usize);
                let inputs = Arc::new(step(tokens, past, outputs, vocabulary));
                let (times, wall) = (Vec::new(), 0.0);
                Item { target, ready: all.len() - 1, shape, inputs, fine, times, wall }
            }));
        }
        Ok(all)
    }

    /// Runs everything once, leaves out what takes too long, and runs the rest in rounds until the time is
    /// over.
    fn run(&mut self, ready: &mut [Ready], grid: &Grid) -> Result<(), CaseError> {
        let left = || self.end.saturating_duration_since(Instant::now()).as_secs_f64();
        if let Some(first) = self.items.first() {
            let mut warm = 0.0;
            while warm < WARM.min(grid.seconds * 0.02) {
                warm += ready[first.ready].run(&first.inputs)?.wall;
            }
        }
        // What a row of each target takes, until now.
        let mut per_row = vec![0.0f64; ready.len()];
        let mut kept = Vec::with_capacity(self.items.len());
        for mut item in std::mem::take(&mut self.items) {
            let weight = (item.shape.tokens + item.shape.past / 64) as f64;
            let expected = per_row[item.ready] * weight;
            if expected * (RUNS.start() + 1) as f64 > GREEDY * left() {
                self.skipped += usize::from(!item.fine);
                continue;
            }
            if item.fine && expected > FINE {
                continue;
            }
            item.wall = ready[item.ready].run(&item.inputs)?.wall;
            per_row[item.ready] = item.wall / weight;
            kept.push(item);
        }
        // The least that is of use must fit; what is between other steps goes first.
        let round = |items: &[Item<'_>]| items.iter().map(|item| item.wall).sum::<f64>();
        if round(&kept) * *RUNS.start() as f64 > left() {
            kept.retain(|item| !item.fine);
        }
        // One target after another on the same rows: the next run finds other weights in the caches.
        kept.sort_by_key(|item| (item.shape.tokens, item.shape.past));
        self.items = kept;
        let busy = self.busy(ready)?;
        for number in 0..*RUNS.end() {
            if number >= *RUNS.start() && round(&self.items) > left() {
                break;
            }
            for item in &mut self.items {
                if let Some((at, inputs, times)) = &busy {
                    for _ in 0..*times {
                        ready[*at].start(inputs)?;
                    }
                }
                let took = ready[item.ready].run(&item.inputs)?;
                item.wall = took.wall;
                item.times.push(took.work);
            }
        }
        Ok(())
    }
}

impl Turn<'_, '_> {
    /// What keeps a GPU busy, and how often it runs before each run that is measured.
    fn busy(&self, ready: &mut [Ready]) -> Result<Option<Busy>, CaseError> {
        let info = self.device.info();
        if info.kind != DeviceKind::Gpu || info.only_when_named {
            return Ok(None);
        }
        let near = |item: &&Item<'_>| (item.wall - BUSY).abs();
        let Some(item) = self.items.iter().min_by(|a, b| near(a).total_cmp(&near(b))) else {
            return Ok(None);
        };
        let work = ready[item.ready].run(&item.inputs)?.work;
        let times = ((BUSY / work).ceil() as usize).clamp(1, BUSY_RUNS);
        Ok(Some((item.ready, item.inputs.clone(), times)))
    }
}

/// A program's place, its step, and how often it runs.
type Busy = (usize, Arc<StepInputs>, usize);

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
