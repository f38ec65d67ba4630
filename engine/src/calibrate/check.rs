//! Holds predictions against times that they were not made from.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use trefoil_devices_api::Device;
use trefoil_scheduler::cost::{CostModel, OpClass};
use trefoil_scheduler::fit::median;
use trefoil_scheduler::profile::DeviceProfile;
use trefoil_scheduler::{Pin, Plan};

use super::measure::{Timed, measure};
use super::targets::{Grid, Target, What};
use super::{CalibrateError, Costs, Progress, model_of};
use crate::backends::Backends;
use crate::model::{Lowered, ModelError, ModelOptions};
use crate::runner::{Outputs, RunError};

/// An op or unit on rows that were not measured before.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OpError {
    /// The device.
    pub device: String,
    /// The op or unit.
    pub what: String,
    /// Class of the op; `unit` or `layer` for more than one.
    pub class: String,
    /// Rows of the step.
    pub tokens: u64,
    /// Tokens before.
    pub past: u64,
    /// Seconds measured, of one of them.
    pub measured: f64,
    /// Seconds predicted.
    pub predicted: f64,
}

impl OpError {
    /// How far the prediction is off, as a share of what was measured.
    pub fn error(&self) -> f64 {
        (self.predicted / self.measured - 1.0).abs()
    }
}

/// How far predictions of a device's ops of a class, or of its units, are off.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassErrors {
    /// The device.
    pub device: String,
    /// `linear`, `experts`, `attention`, `elementwise`, `unit` or `layer`.
    pub class: String,
    /// Steps measured.
    pub count: usize,
    /// Share of them whose prediction is within 10 % of the measured time.
    pub within_tenth: f64,
    /// Middle error.
    pub median: f64,
    /// Largest error.
    pub worst: f64,
}

/// A whole request.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Timing {
    /// Placement: `cpu0`, `gpu0 then cpu0`.
    pub placement: String,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Seconds to the prompt's end: measured, predicted.
    pub first_token: [f64; 2],
    /// Seconds per token after it: measured, predicted.
    pub token: [f64; 2],
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CheckReport {
    /// By device and class.
    pub classes: Vec<ClassErrors>,
    /// Every step of every op and unit.
    pub ops: Vec<OpError>,
    /// Whole requests: each device alone, and split over two.
    pub requests: Vec<Timing>,
}

/// A check that cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// A device failed.
    #[error(transparent)]
    Calibrate(#[from] CalibrateError),
    /// No placement, or no memory.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A step failed.
    #[error(transparent)]
    Run(#[from] RunError),
}

/// Tokens that are generated, and in how many goes a request is measured.
const GENERATED: usize = 16;
const GOES: usize = 5;
/// Seconds of measured goes after which no other begins: devices may be slow.
const LONG: f64 = 8.0;
/// Prompt of a request, where the context has room.
const PROMPT: usize = 300;

/// Measures ops of all classes on rows and pasts between those of a calibration, and whole requests, and
/// holds them against `costs`.
pub fn check(
    lowered: &Lowered,
    backends: &Backends,
    devices: &[Arc<dyn Device>],
    costs: &Costs,
    options: &ModelOptions,
    progress: &mut dyn Progress,
) -> Result<CheckReport, CheckError> {
    let model = model_of(lowered, options.kv_type.bytes() == 2);
    let mut grid = Grid::held_out().within(model.context, options.chunk);
    grid.seconds /= devices.len().max(1) as f64;
    let targets = Target::all(&lowered.graph, &grid);
    let measured = measure(model, devices, &targets, &grid, progress);
    let measured = measured.map_err(CalibrateError::from)?;
    let mut ops = Vec::new();
    for (device, times) in devices.iter().zip(&measured.times) {
        let Some(profile) = costs.profile.device(&device.info().name) else { continue };
        let cost = CostModel {
            profile: &costs.profile,
            graph: &lowered.graph,
            corrections: &costs.corrections,
        };
        let start = costs.start(profile);
        ops.extend(times.iter().filter_map(|timed| compare(&cost, profile, start, timed)));
    }
    progress.at(1.0, "whole requests");
    let requests = requests(lowered, backends, devices, costs, options)?;
    Ok(CheckReport { classes: classes(&ops), ops, requests })
}

/// A measured step beside its prediction. `None` of what was measured before, and of single units of
/// layers, which are predicted as they are beside the others.
fn compare(
    cost: &CostModel<'_>,
    profile: &DeviceProfile,
    start: f64,
    timed: &Timed<'_>,
) -> Option<OpError> {
    let Timed { target, shape, seconds, .. } = timed;
    let graph = cost.graph;
    if shape.tokens == 1 && shape.past == 0 {
        return None;
    }
    let (what, class, predicted) = match &target.what {
        What::Ops(nodes) => {
            let node = *nodes.first()?;
            let class = OpClass::of(&graph.node(node).op).name();
            (graph.node(node).name.clone(), class, cost.op(profile, node, shape).ok()?.seconds)
        }
        What::Units(units) => {
            let unit = *units.first()?;
            if graph.unit(unit).layer.is_some() {
                return None;
            }
            (graph.unit(unit).name(), "unit", cost.unit(profile, unit, shape).ok()?.seconds)
        }
        What::Layers(units) => {
            let each =
                units.iter().map(|&unit| Some(cost.unit(profile, unit, shape).ok()?.seconds));
            let first = graph.unit(*units.first()?).name();
            (format!("{first} and {} more", units.len() - 1), "layer", each.sum::<Option<f64>>()?)
        }
    };
    Some(OpError {
        device: profile.name.clone(),
        what,
        class: class.to_owned(),
        tokens: shape.tokens,
        past: shape.past,
        measured: (seconds - start).max(0.05 * seconds) / f64::from(target.count().max(1)),
        predicted,
    })
}

/// Sums up errors by device and class.
fn classes(ops: &[OpError]) -> Vec<ClassErrors> {
    let mut groups: BTreeMap<(&str, &str), Vec<f64>> = BTreeMap::new();
    for op in ops {
        groups.entry((&*op.device, &*op.class)).or_default().push(op.error());
    }
    let class = |((device, class), mut errors): ((&str, &str), Vec<f64>)| {
        let near = errors.iter().filter(|error| **error <= 0.1).count();
        ClassErrors {
            device: device.to_owned(),
            class: class.to_owned(),
            count: errors.len(),
            within_tenth: near as f64 / errors.len() as f64,
            median: median(&mut errors).unwrap_or(0.0),
            worst: errors.iter().copied().fold(0.0, f64::max),
        }
    };
    groups.into_iter().map(class).collect()
}

/// Whole requests on each device alone, and split in the middle over the first two.
fn requests(
    lowered: &Lowered,
    backends: &Backends,
    devices: &[Arc<dyn Device>],
    costs: &Costs,
    options: &ModelOptions,
) -> Result<Vec<Timing>, CheckError> {
    if !lowered.hyper.causal {
        return Ok(Vec::new());
    }
    let names: Vec<&str> = devices.iter().map(|device| device.info().name.as_str()).collect();
    let alone = |name: &str| ModelOptions {
        device: Some(name.to_owned()),
        pins: Vec::new(),
        plan: None,
        ..options.clone()
    };
    let mut placements: Vec<(String, ModelOptions)> =
        names.iter().map(|name| ((*name).to_owned(), alone(name))).collect();
    if let [first, second, ..] = names[..] {
        let units = lowered.graph.units();
        let later = units[units.len() / 2..].iter();
        let pins =
            later.map(|unit| Pin { pattern: unit.name(), device: second.to_owned(), phase: None });
        let split = ModelOptions { pins: pins.collect(), ..alone(first) };
        placements.push((format!("{first} then {second}"), split));
    }
    let mut timings = Vec::new();
    for (placement, options) in placements {
        let plan = lowered.plan(backends, &options)?;
        timings.push(request(lowered, backends, &plan, costs, &options, placement)?);
    }
    Ok(timings)
}

fn request(
    lowered: &Lowered,
    backends: &Backends,
    plan: &Plan,
    costs: &Costs,
    options: &ModelOptions,
    placement: String,
) -> Result<Timing, CheckError> {
    let mut runner = lowered.runner(backends, plan, options)?;
    let prompt = PROMPT.min(runner.context().saturating_sub(GENERATED + 1)).max(1);
    let vocabulary = lowered.vocabulary().max(1);
    let tokens: Vec<u32> = (0..prompt).map(|at| ((at * 7919 + 13) % vocabulary) as u32).collect();
    let mut sequence = runner.begin(runner.context());
    let (mut firsts, mut each) = (Vec::new(), Vec::new());
    // The first go is for warming up.
    for go in 0..=GOES {
        if firsts.iter().chain(&each).sum::<f64>() > LONG {
            break;
        }
        runner.rewind(&mut sequence, 0);
        let start = Instant::now();
        runner.feed(&mut sequence, &tokens, Outputs::Last, |_, row| {
            std::hint::black_box(row);
        })?;
        let first = start.elapsed().as_secs_f64();
        for token in 0..GENERATED {
            let start = Instant::now();
            let token = [(token % vocabulary) as u32];
            runner.feed(&mut sequence, &token, Outputs::Last, |_, row| {
                std::hint::black_box(row);
            })?;
            if go > 0 {
                each.push(start.elapsed().as_secs_f64());
            }
        }
        if go > 0 {
            firsts.push(first);
        }
    }
    runner.end(sequence);
    let past = prompt + GENERATED / 2;
    let kv = options.kv_type.bytes() as f64;
    let predicted = costs.request(&lowered.graph, plan, (prompt, options.chunk), past, kv);
    let [predicted_first, predicted_token] = predicted.unwrap_or([f64::NAN; 2]);
    Ok(Timing {
        placement,
        prompt,
        first_token: [median(&mut firsts).unwrap_or(f64::NAN), predicted_first],
        token: [median(&mut each).unwrap_or(f64::NAN), predicted_token],
    })
}
