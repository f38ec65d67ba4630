//! Measures this machine with a model's own ops, keeps what was measured, and predicts from it.

mod chain;
mod check;
mod costs;
mod links;
mod measure;
mod segment;
mod store;
mod targets;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use trefoil_devices_api::{Bucket, Device, DeviceKind, DomainId, OpQuery, Phase, Support};
use trefoil_graph::StepShape;
use trefoil_kernels::cpu::ThreadPool;
use trefoil_scheduler::fit::{DeviceSamples, DomainFacts, FitError, Measurements, PairSample};
use trefoil_scheduler::profile::ProcessorKind;
use trefoil_telemetry::host_memory;

pub use check::{CheckError, CheckReport, ClassErrors, OpError, Timing, check};
pub(crate) use costs::{CostRequest, without_power};
pub use costs::{Costs, Predictor, shape_of};
pub use store::{DeviceEntry, Store, StoreError};
pub use targets::Effort;

use crate::model::Lowered;
use crate::self_test::CaseError;
use crate::text::template::CivilTime;
use measure::{Model, measure};
use segment::{KvNeed, Ready, step};
use targets::{Grid, Sample, Target, What};

/// When a machine that was not measured is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum When {
    /// With the first use of a model: quickly.
    FirstRun,
    /// Never, but when asked.
    #[default]
    Never,
    /// With every use of a model: quickly.
    Always,
}

/// How costs come to be known.
#[derive(Clone, Debug, Default)]
pub struct CalibrationOptions {
    /// When this measures.
    pub when: When,
    /// The user's cache folder; without one, nothing is kept or found.
    pub cache: Option<PathBuf>,
    /// Profiles that a device's numbers are taken from instead of the measured ones, by device.
    pub cost_tables: Vec<(String, PathBuf)>,
}

/// Hears how far measuring is.
pub trait Progress {
    /// `share` (0 to 1) is done; `what` is measured now.
    fn at(&mut self, share: f64, what: &str);
}

/// Hears and says nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn at(&mut self, _: f64, _: &str) {}
}

/// A machine that cannot be measured, or measurements of no use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CalibrateError {
    /// Nothing to measure on.
    #[error("expected at least one device to measure, got none; `trefoil devices` lists them")]
    NoDevice,
    /// A device failed.
    #[error("measuring: {0}")]
    Run(#[from] CaseError),
    /// No profile can be made.
    #[error(transparent)]
    Fit(#[from] FitError),
    /// Measurements that could not be kept.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file of costs.
    #[error("devices.{device}.cost_table: {file}: {problem}")]
    CostTable {
        /// The device.
        device: String,
        /// The file.
        file: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// What a calibration measured.
#[derive(Clone, Debug)]
pub struct Calibration {
    /// By device, in the order in which they were given.
    pub entries: Vec<DeviceEntry>,
    /// By pair of devices.
    pub pairs: Vec<PairSample>,
    /// Steps that were passed over for want of time.
    pub skipped: usize,
    /// Time that it took.
    pub took: Duration,
}

/// Time for a pair of devices at once, and for each alone.
const PAIR_TIME: Duration = Duration::from_millis(200);

/// Measures devices with a model's ops. `half` says whether stored keys and values are f16 (else f32);
/// `chunk` is the longest prompt chunk.
///
/// # Errors
/// A device that fails; one that only refuses something is measured without it.
pub fn calibrate(
    lowered: &Lowered,
    devices: &[Arc<dyn Device>],
    effort: Effort,
    (half, chunk): (bool, usize),
    progress: &mut dyn Progress,
) -> Result<Calibration, CalibrateError> {
    if devices.is_empty() {
        return Err(CalibrateError::NoDevice);
    }
    let start = Instant::now();
    let model = model_of(lowered, half);
    let mut grid = Grid::of(effort).within(model.context, chunk);
    // Devices share the time, so that many do not take longer.
    grid.seconds /= devices.len() as f64;
    progress.at(0.0, "launches");
    let chains = chain::measure(devices, &grid.chains)?;
    let targets = Target::all(&lowered.graph, &grid);
    let measured = measure(model, devices, &targets, &grid, progress)?;
    let date = CivilTime::now().strftime("%Y-%m-%d");
    let mut entries = Vec::with_capacity(devices.len());
    for ((device, (chains, outside)), times) in devices.iter().zip(chains).zip(measured.times) {
        let info = device.info();
        let mut of_device = DeviceSamples {
            name: info.name.clone(),
            kind: match info.kind {
                DeviceKind::Gpu => ProcessorKind::Gpu,
                DeviceKind::Npu => ProcessorKind::Npu,
                DeviceKind::Cpu | DeviceKind::Reference | DeviceKind::Simulated => {
                    ProcessorKind::Cpu
                }
            },
            product: info.product.clone(),
            domain: device.domains()[0].id.to_string(),
            date: date.clone(),
            ops: Vec::new(),
            units: Vec::new(),
            layers: Vec::new(),
            chains,
            outside,
            read: None,
            watts: device.sample().watts,
            refuses: refused(lowered, device.as_ref(), chunk),
        };
        for sample in times.iter().filter_map(|timed| timed.target.sample(&lowered.graph, timed)) {
            match sample {
                Sample::Op(op) => of_device.ops.push(op),
                Sample::Unit(unit) => of_device.units.push(unit),
                Sample::Layer(layer) => of_device.layers.push(layer),
            }
        }
        if effort == Effort::Full && info.kind == DeviceKind::Cpu {
            progress.at(1.0, "memory");
            let pool = ThreadPool::for_this_machine().ok();
            of_device.read = pool.map(|pool| crate::bench::read_bandwidth(&pool));
        }
        progress.at(1.0, "links");
        entries.push(DeviceEntry {
            effort,
            models: vec![lowered.fingerprint.clone()],
            samples: of_device,
            links: links::measure(device)?,
        });
    }
    let mut pairs = Vec::new();
    if effort != Effort::Probe {
        for (index, a) in devices.iter().enumerate() {
            for b in &devices[index + 1..] {
                progress.at(1.0, "devices at the same time");
                pairs.extend(pair(model, [a, b], &targets, &date)?);
            }
        }
    }
    Ok(Calibration { entries, pairs, skipped: measured.skipped, took: start.elapsed() })
}

fn model_of(lowered: &Lowered, half: bool) -> Model<'_> {
    Model {
        graph: &lowered.graph,
        vocabulary: lowered.vocabulary(),
        context: lowered.hyper.context,
        half,
    }
}

/// Kinds of the model's ops that a device does not take.
fn refused(lowered: &Lowered, device: &dyn Device, chunk: usize) -> Vec<String> {
    let graph = &lowered.graph;
    let buckets = [(Phase::Prefill, chunk.max(2)), (Phase::Decode, 1)];
    let kinds = graph.nodes().filter(|&node| {
        buckets.iter().any(|&(phase, max_tokens)| {
            let bucket = Bucket { phase, min_tokens: 1, max_tokens, max_outputs: 1 };
            matches!(device.support(&OpQuery { graph, node, bucket }), Support::No(_))
        })
    });
    let kinds: BTreeSet<String> = kinds.map(|node| graph.node(node).op.kind().to_owned()).collect();
    kinds.into_iter().collect()
}

/// What two devices keep of their speed, measured with the largest unit that both take.
fn pair(
    model: Model<'_>,
    devices: [&Arc<dyn Device>; 2],
    targets: &[Target],
    date: &str,
) -> Result<Option<PairSample>, CalibrateError> {
    let decode = StepShape::decode(0);
    let units = targets
        .iter()
        .filter(|target| matches!(target.what, What::Units(_)) && target.phase() == Phase::Decode);
    let work = |target: &&Target| {
        let nodes = target.nodes(model.graph);
        let cost = nodes.iter().map(|&node| model.graph.node_cost(node, &decode).weight_bytes);
        cost.sum::<f64>()
    };
    let Some(target) = units.max_by(|a, b| work(a).total_cmp(&work(b))) else { return Ok(None) };
    let bucket = target.bucket(&[decode]);
    let segment = target.segment(model.graph);
    let kv = KvNeed { tokens: 1, half: model.half };
    let ready = devices
        .map(|device| Ready::new(device, model.graph, std::slice::from_ref(&segment), bucket, kv));
    let [Ok(mut a), Ok(mut b)] = ready else { return Ok(None) };
    let inputs = Arc::new(step(1, 0, 1, model.vocabulary));
    let keep = links::together([&mut a, &mut b], &inputs, PAIR_TIME)?;
    let devices = devices.map(|device| device.info().name.clone());
    Ok(Some(PairSample { devices, keep, date: date.to_owned() }))
}

/// What is known of devices, ready to be fitted.
fn measurements(
    devices: &[Arc<dyn Device>],
    entries: &[DeviceEntry],
    pairs: Vec<PairSample>,
) -> (Measurements, Vec<DomainId>) {
    let mut domains: BTreeSet<DomainId> = devices.iter().map(|d| d.domains()[0].id).collect();
    domains.insert(DomainId::HOST);
    let facts = domains.iter().map(|&id| {
        let own = devices.iter().flat_map(|device| device.domains());
        let size = own.filter(|domain| domain.id == id).find_map(|domain| domain.size);
        let host = || host_memory().total.filter(|_| id == DomainId::HOST);
        // As the budgets have it where the system does not tell.
        let bytes = size.or_else(host).map_or(4 << 30, |bytes| bytes.0);
        DomainFacts { name: id.to_string(), bytes, usable: if size.is_some() { 0.97 } else { 0.8 } }
    });
    let measured = Measurements {
        domains: facts.collect(),
        devices: entries.iter().map(|entry| entry.samples.clone()).collect(),
        links: entries.iter().flat_map(|entry| entry.links.clone()).collect(),
        pairs,
    };
    (measured, domains.into_iter().collect())
}

/// Keeps what was measured, with what was known before.
pub fn keep(
    store: &Store,
    devices: &[Arc<dyn Device>],
    calibration: &Calibration,
) -> Result<(), StoreError> {
    for (device, entry) in devices.iter().zip(&calibration.entries) {
        let mut merged = entry.clone();
        if let Some(known) = store.device(device.as_ref()) {
            merged.effort = merged.effort.max(known.effort);
            merged.models.extend(known.models.into_iter().filter(|m| !entry.models.contains(m)));
            let mut samples = known.samples;
            samples.merge(entry.samples.clone());
            merged.samples = samples;
        }
        store.put_device(device.as_ref(), &merged)?;
    }
    for sample in &calibration.pairs {
        let find = |name: &str| devices.iter().find(|device| device.info().name == name);
        if let (Some(a), Some(b)) = (find(&sample.devices[0]), find(&sample.devices[1])) {
            store.put_pair([a.as_ref(), b.as_ref()], sample)?;
        }
    }
    Ok(())
}
