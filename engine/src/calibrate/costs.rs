//! Costs of this machine as they are known: measured, or from files.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use trefoil_devices_api::{Device, DomainId, Phase};
use trefoil_graph::{LayerGraph, StepShape, UnitId};
use trefoil_scheduler::BucketPlan;
use trefoil_scheduler::Plan;
use trefoil_scheduler::cost::{Corrections, CostModel, OpClass};
use trefoil_scheduler::fit::fit;
use trefoil_scheduler::planner::{Goal, PlanRequest, plan as make_plan};
use trefoil_scheduler::policy::Resolved;
use trefoil_scheduler::profile::{DeviceProfile, Profile};

use super::{
    CalibrateError, Calibration, CalibrationOptions, DeviceEntry, Effort, PairSample, Silent,
    Store, When, calibrate, keep, measurements,
};
use crate::model::{Lowered, ModelError};
use crate::records::{SegmentRecord, StepRecord};

/// The machine's numbers, and where they come from.
#[derive(Clone, Debug)]
pub struct Costs {
    /// Numbers of the devices.
    pub profile: Profile,
    /// What ops and units take beyond them.
    pub corrections: Corrections,
    /// Where they come from, in words.
    pub source: String,
    /// Identities of the profile's domains.
    domains: Vec<DomainId>,
    /// Seconds of each device's hand-off that are not its work.
    outside: BTreeMap<String, f64>,
}

impl Costs {
    /// From a calibration that was just made.
    pub fn of(
        devices: &[Arc<dyn Device>],
        calibration: &Calibration,
    ) -> Result<Self, CalibrateError> {
        Self::fitted(devices, &calibration.entries, calibration.pairs.clone())
    }

    fn fitted(
        devices: &[Arc<dyn Device>],
        entries: &[DeviceEntry],
        pairs: Vec<PairSample>,
    ) -> Result<Self, CalibrateError> {
        let (measured, domains) = measurements(devices, entries, pairs);
        let fitted = fit(&measured)?;
        let count: usize = entries.iter().map(|entry| entry.samples.count()).sum();
        let probed = entries.iter().filter(|entry| entry.effort == Effort::Probe);
        let probed: Vec<&str> = probed.map(|entry| entry.samples.name.as_str()).collect();
        let date = entries.iter().map(|entry| entry.samples.date.as_str()).min().unwrap_or("?");
        let mut source = format!("costs as measured on this machine, {count} samples since {date}");
        if !probed.is_empty() {
            source.push_str(&format!(
                " ({} by a quick probe: `trefoil calibrate` measures more)",
                probed.join(", ")
            ));
        }
        let (profile, corrections) = (fitted.profile, fitted.corrections);
        let outside =
            entries.iter().map(|entry| (entry.samples.name.clone(), entry.samples.outside));
        let outside = outside.collect();
        Ok(Self { profile, corrections, source, domains, outside })
    }

    /// What is known of devices for a model; measured quickly first where that is missing and the
    /// options want it. `None` where nothing is known. `say` hears what takes time.
    pub(crate) fn find(
        lowered: &Lowered,
        devices: &[Arc<dyn Device>],
        options: &CalibrationOptions,
        (half, chunk): (bool, usize),
        say: &mut dyn FnMut(String),
    ) -> Result<Option<Self>, CalibrateError> {
        let store = options.cache.as_deref().map(Store::new);
        let known = |device: &Arc<dyn Device>| store.as_ref()?.device(device.as_ref());
        let mut entries: Vec<Option<DeviceEntry>> = devices.iter().map(known).collect();
        let knows = |entry: &Option<DeviceEntry>| {
            entry.as_ref().is_some_and(|entry| entry.models.contains(&lowered.fingerprint))
        };
        let wanted = match options.when {
            When::Never => false,
            When::Always => true,
            When::FirstRun => !entries.iter().all(knows),
        };
        // A single device takes everything whatever it costs.
        if wanted && devices.len() > 1 {
            let names: Vec<&str> = devices.iter().map(|d| d.info().name.as_str()).collect();
            say(format!(
                "measuring {} with this model for a second or two; `trefoil calibrate` measures \
                 more, telemetry.calibrate = \"never\" leaves it out",
                names.join(", ")
            ));
            let probe = calibrate(lowered, devices, Effort::Probe, (half, chunk), &mut Silent)?;
            match &store {
                Some(store) => {
                    if let Err(error) = keep(store, devices, &probe) {
                        tracing::warn!("{error}");
                    }
                    let fresh = devices.iter().map(|device| store.device(device.as_ref()));
                    let probed = probe.entries.into_iter();
                    entries = fresh.zip(probed).map(|(kept, new)| kept.or(Some(new))).collect();
                }
                None => entries = probe.entries.into_iter().map(Some).collect(),
            }
        }
        let Some(entries) = entries.into_iter().collect::<Option<Vec<DeviceEntry>>>() else {
            return Ok(None);
        };
        if entries.is_empty() {
            return Ok(None);
        }
        let mut pairs = Vec::new();
        for (index, a) in devices.iter().enumerate() {
            for b in &devices[index + 1..] {
                let pair = [a.as_ref(), b.as_ref()];
                pairs.extend(store.as_ref().and_then(|store| store.pair(pair)));
            }
        }
        let mut costs = Self::fitted(devices, &entries, pairs)?;
        for (device, file) in &options.cost_tables {
            costs.use_table(device, file)?;
        }
        Ok(Some(costs))
    }

    /// Seconds of work in a segment of a device that has nothing to do.
    pub(super) fn start(&self, device: &DeviceProfile) -> f64 {
        let outside = self.outside.get(&device.name).copied().unwrap_or(0.0);
        (device.handoff.get() - outside).max(0.0)
    }

    /// Takes a device's numbers from a profile instead of the measured ones.
    fn use_table(&mut self, device: &str, file: &Path) -> Result<(), CalibrateError> {
        let fail = |problem: String| CalibrateError::CostTable {
            device: device.to_owned(),
            file: file.display().to_string(),
            problem,
        };
        let Some(own) = self.profile.devices.iter_mut().find(|own| own.name == device) else {
            return Ok(());
        };
        let text = std::fs::read_to_string(file).map_err(|error| fail(error.to_string()))?;
        let table = Profile::parse(&file.display().to_string(), &text);
        let table = table.map_err(|error| fail(error.to_string()))?;
        let Some(new) = table.device(device) else {
            let names: Vec<&str> = table.devices.iter().map(|d| d.name.as_str()).collect();
            return Err(fail(format!("expected a device {device:?}, got {}", names.join(", "))));
        };
        let domain = own.domain.clone();
        *own = new.clone();
        own.domain = domain;
        own.addresses.clear();
        self.corrections.forget(device);
        self.source.push_str(&format!("; {device} from {}", file.display()));
        Ok(())
    }

    fn model<'a>(&'a self, graph: &'a LayerGraph) -> CostModel<'a> {
        CostModel { profile: &self.profile, graph, corrections: &self.corrections }
    }

    /// Places a model by predicted cost, on the devices that a policy lets be used.
    pub(crate) fn plan(
        &self,
        lowered: &Lowered,
        request: CostRequest<'_>,
    ) -> Result<Plan, ModelError> {
        let (model, graph) = (lowered.model_ref(), &*lowered.graph);
        let CostRequest { policy, buckets, context, kv_element_bytes } = request;
        let mut request = PlanRequest::new(model, graph, &self.profile, &self.corrections, buckets);
        let policy = policy.map(Resolved::for_chosen_devices);
        if let Some(policy) = &policy {
            policy.apply(&mut request)?;
        }
        request.pins = &[];
        let note = without_power(&mut request);
        request.context = context;
        request.kv_element_bytes = kv_element_bytes;
        let mut plan = make_plan(&request).map_err(ModelError::from)?.plan;
        self.set_domains(&mut plan);
        plan.reasons.push(self.source.clone());
        plan.reasons.extend(note);
        Ok(plan)
    }

    /// From places in the profile's list to the identities that devices have.
    pub(crate) fn set_domains(&self, plan: &mut Plan) {
        let set = |domain: &mut DomainId| {
            if let Some(&own) = self.domains.get(usize::from(domain.0)) {
                *domain = own;
            }
        };
        plan.kv.iter_mut().for_each(set);
        plan.kv_decode.iter_mut().flatten().for_each(set);
        plan.memory.iter_mut().for_each(|memory| set(&mut memory.domain));
        for transfer in plan.buckets.iter_mut().flat_map(|bucket| &mut bucket.transfers) {
            set(&mut transfer.from);
            set(&mut transfer.to);
        }
    }

    /// Predicted seconds of units on a device in a step, without the segment's hand-off; `None` for a
    /// device that is not known or does not take them.
    pub fn units(
        &self,
        graph: &LayerGraph,
        device: &str,
        units: &[UnitId],
        step: &StepShape,
    ) -> Option<f64> {
        let model = self.model(graph);
        let device = self.profile.device(device)?;
        let costs = units.iter().map(|&unit| model.unit(device, unit, step));
        let sum: trefoil_scheduler::cost::Cost = costs.sum::<Result<_, _>>().ok()?;
        Some(sum.seconds)
    }

    /// Predicted seconds of a step of a bucket: its segments with their hand-offs, and its copies.
    pub fn step(&self, graph: &LayerGraph, bucket: &BucketPlan, step: &StepShape) -> Option<f64> {
        let mut sum = 0.0;
        let segments = bucket.segments();
        for segment in &segments {
            let device = self.profile.device(&segment.device)?;
            sum += self.units(graph, &segment.device, &segment.units, step)?;
            sum += device.handoff.get();
        }
        let copy = |from: &str, to: &str, bytes: f64| {
            let link = self.profile.links.iter().find(|link| link.from == from && link.to == to);
            link.map_or(0.0, |link| link.latency.get() + bytes / link.bandwidth.get())
        };
        for transfer in &bucket.transfers {
            let node = graph.nodes().find(|&node| graph.node(node).name == transfer.tensor);
            let bytes = node.map_or(0, |node| graph.node(node).shape.bytes(step));
            sum += copy(&transfer.from.to_string(), &transfer.to.to_string(), bytes as f64);
        }
        let last = self.profile.device(&segments.last()?.device)?;
        let bytes = graph.node(graph.output()).shape.bytes(step) as f64;
        sum += copy(&last.domain, &DomainId::HOST.to_string(), bytes);
        Some(sum)
    }

    /// Predicted seconds of a prompt read in chunks of at most `chunk` tokens, and of a token after `past`
    /// others.
    pub fn request(
        &self,
        graph: &LayerGraph,
        plan: &Plan,
        (prompt, chunk): (usize, usize),
        past: usize,
        kv_element_bytes: f64,
    ) -> Option<[f64; 2]> {
        let bucket = |phase| plan.buckets.iter().find(|bucket| bucket.bucket.phase == phase);
        let step = |bucket: &BucketPlan, tokens: usize, past: usize, last: bool| {
            let shape = StepShape {
                rows_out: u64::from(last),
                kv_element_bytes,
                ..StepShape::prefill(tokens as u64, past as u64)
            };
            self.step(graph, bucket, &shape)
        };
        let prefill = bucket(Phase::Prefill)?;
        let chunks = (0..prompt).step_by(chunk.max(1)).map(|past| {
            let rows = chunk.max(1).min(prompt - past);
            step(prefill, rows, past, past + rows == prompt)
        });
        let first = chunks.sum::<Option<f64>>()?;
        Some([first, step(bucket(Phase::Decode)?, 1, past, true)?])
    }

    /// Predicted seconds of a recorded segment, at the step's own tokens and past; `None` of parts of
    /// a segment that is cut.
    pub fn segment(
        &self,
        graph: &LayerGraph,
        plan: &Plan,
        step: &StepRecord,
        segment: &SegmentRecord,
        kv_element_bytes: f64,
    ) -> Option<f64> {
        let units = units_of(plan, step, segment)?;
        self.units(graph, &segment.device, &units, &shape_of(step, kv_element_bytes))
    }

    /// Learns from the segments of finished steps how far the devices are from the predictions now.
    /// A segment's factor counts for all classes of its ops.
    pub fn observe(
        &mut self,
        graph: &LayerGraph,
        plan: &Plan,
        records: &[StepRecord],
        kv_element_bytes: f64,
    ) {
        let plain = Self { corrections: self.corrections.without_online(), ..self.clone() };
        for step in records {
            for segment in &step.segments {
                let predicted = plain.segment(graph, plan, step, segment, kv_element_bytes);
                let Some(predicted) = predicted else { continue };
                let measured = segment.times.took().seconds();
                for class in
                    [OpClass::Linear, OpClass::Experts, OpClass::Attention, OpClass::Elementwise]
                {
                    self.corrections.observe(&segment.device, class, predicted, measured);
                }
            }
        }
    }
}

/// Lets latency count instead of energy where no device tells its power, and says so.
pub(crate) fn without_power(request: &mut PlanRequest<'_>) -> Option<String> {
    let known = request.profile.devices.iter().any(|device| device.power.busy.get() > 0.0);
    if known || request.goal != Goal::Energy {
        return None;
    }
    request.goal = Goal::Latency;
    Some("no device tells its power: latency counts instead of energy".to_owned())
}

/// Costs of a plan of one model: what its recorded steps should have taken.
#[derive(Clone, Copy, Debug)]
pub struct Predictor<'a> {
    /// The costs.
    pub costs: &'a Costs,
    /// The model.
    pub graph: &'a LayerGraph,
    /// Bytes of one stored key or value element.
    pub kv_element_bytes: f64,
}

impl Predictor<'_> {
    /// Predicted seconds of a recorded segment, as [`Costs::segment`].
    pub fn segment(&self, plan: &Plan, step: &StepRecord, segment: &SegmentRecord) -> Option<f64> {
        self.costs.segment(self.graph, plan, step, segment, self.kv_element_bytes)
    }

    /// Predicted seconds of a recorded step: its segments, hand-offs and copies.
    pub fn step(&self, plan: &Plan, step: &StepRecord) -> Option<f64> {
        let bucket = plan.buckets.iter().find(|bucket| bucket.bucket == step.bucket)?;
        self.costs.step(self.graph, bucket, &shape_of(step, self.kv_element_bytes))
    }
}

/// What a plan by cost is asked for.
pub(crate) struct CostRequest<'a> {
    pub(crate) policy: Option<&'a Resolved>,
    pub(crate) buckets: &'a [trefoil_devices_api::Bucket],
    pub(crate) context: usize,
    pub(crate) kv_element_bytes: usize,
}

/// A recorded step as the cost model sees it.
pub fn shape_of(step: &StepRecord, kv_element_bytes: f64) -> StepShape {
    StepShape {
        tokens: step.tokens as u64,
        past: step.past as u64,
        rows_out: step.outputs as u64,
        sequences: step.sequences as u64,
        kv_element_bytes,
    }
}

/// Units of a recorded segment, if it is whole.
fn units_of(plan: &Plan, step: &StepRecord, segment: &SegmentRecord) -> Option<Vec<UnitId>> {
    let bucket = plan.buckets.iter().find(|bucket| bucket.bucket == step.bucket)?;
    let planned = bucket.segments().into_iter().nth(segment.index)?;
    let name = |unit: Option<&UnitId>| unit.map(|unit| bucket.units[unit.0].unit.as_str());
    let (first, last) = (name(planned.units.first())?, name(planned.units.last())?);
    // Not of the parts of a segment that is cut.
    let units = segment.label.split_once(' ')?.1;
    let whole = units == first || units.split_once("..") == Some((first, last));
    (whole && planned.device == *segment.device).then_some(planned.units)
}
