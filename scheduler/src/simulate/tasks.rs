//! From a plan and a request to tasks.

use std::collections::BTreeMap;

use trefoil_devices_api::{DomainId, Phase};
use trefoil_graph::{NodeIndex, StepShape, UnitId};
use trefoil_telemetry::Bytes;

use super::events::{Resource, Task};
use super::{Activity, MOST_TASKS, SimulationError, SimulationRequest, shown};
use crate::cost::{Cost, CostModel};
use crate::partition::TensorEdge;
use crate::plan::{BucketPlan, LinearSplit, SegmentPlan};
use crate::planner::tensors;
use crate::profile::Profile;
use crate::split_cost::{SplitWork, waiting_watts};

/// What a task is, beside its numbers.
pub(super) struct Label {
    pub(super) activity: Activity,
    /// Index of a name.
    pub(super) name: usize,
    pub(super) phase: Phase,
    pub(super) step: usize,
}

/// All tasks of a request.
pub(super) struct Listed {
    pub(super) tasks: Vec<Task>,
    pub(super) labels: Vec<Label>,
    pub(super) names: Vec<String>,
    pub(super) chunks: usize,
}

/// A bucket of the plan, with everything looked up that is the same in all its steps.
struct Steps<'a> {
    phase: Phase,
    segments: Vec<SegmentPlan>,
    /// Device of each segment.
    devices: Vec<usize>,
    /// Are its weights streamed, by segment?
    streamed: Vec<bool>,
    splits: Vec<LinearSplit>,
    /// Segment of each unit.
    segment_of: Vec<usize>,
    tensors: &'a [(TensorEdge, Vec<NodeIndex>)],
    /// Names of the segments.
    names: Vec<usize>,
    /// Names of the copies, by tensor.
    tensor_names: Vec<usize>,
    result_name: usize,
}

struct Lister<'a> {
    request: &'a SimulationRequest<'a>,
    model: CostModel<'a>,
    out: Listed,
}

pub(super) fn list(request: &SimulationRequest<'_>) -> Result<Listed, SimulationError> {
    let (plan, workload) = (request.plan, request.workload);
    let of = |phase: Phase| plan.buckets.iter().filter(move |b| b.bucket.phase == phase);
    let missing = |phase: Phase| SimulationError::Phase { phase: phase.name() };
    // As the planner has it: the smallest that takes the prompt whole, else the largest.
    let prefill = of(Phase::Prefill)
        .filter(|bucket| bucket.bucket.max_tokens as u64 >= workload.prompt)
        .min_by_key(|bucket| bucket.bucket.max_tokens)
        .or_else(|| of(Phase::Prefill).max_by_key(|bucket| bucket.bucket.max_tokens))
        .ok_or_else(|| missing(Phase::Prefill))?;
    let decode = of(Phase::Decode)
        .min_by_key(|bucket| bucket.bucket.max_tokens)
        .ok_or_else(|| missing(Phase::Decode))?;
    let tensors = tensors(request.graph);
    let mut lister = Lister {
        request,
        model: CostModel {
            profile: request.profile,
            graph: request.graph,
            corrections: request.corrections,
        },
        out: Listed { tasks: Vec::new(), labels: Vec::new(), names: Vec::new(), chunks: 0 },
    };
    let prompt_steps = lister.steps(prefill, &tensors)?;
    let chunk = prefill.bucket.max_tokens.max(1) as u64;
    let shape = |tokens, past| StepShape {
        tokens,
        past,
        rows_out: 1,
        sequences: 1,
        kv_element_bytes: request.kv_element_bytes as f64,
    };
    let decode_steps = lister.steps(decode, &tensors)?;
    let chunks = workload.prompt.div_ceil(chunk) as usize;
    let runs = |steps: &Steps<'_>, times: usize| steps.segments.len().saturating_mul(times);
    let least = runs(&prompt_steps, chunks).saturating_add(runs(
        &decode_steps,
        usize::try_from(workload.generate).unwrap_or(usize::MAX),
    ));
    if least > MOST_TASKS {
        return Err(SimulationError::TooLong { most: MOST_TASKS });
    }
    let mut before: Option<Vec<usize>> = None;
    for (step, past) in (0..workload.prompt).step_by(chunk as usize).enumerate() {
        let tokens = chunk.min(workload.prompt - past);
        let after: &[usize] = match &before {
            Some(last) if !request.pipelined => &last[last.len() - 1..],
            _ => &[],
        };
        let passed =
            before.as_deref().filter(|_| request.pipelined).map(|last| &last[..last.len() - 1]);
        before = Some(lister.step(&prompt_steps, step, &shape(tokens, past), after, passed)?);
        lister.out.chunks += 1;
    }
    let mut last = lister.move_kv(&prompt_steps, before.as_deref().unwrap_or_default())?;
    for step in 0..workload.generate {
        let shape = shape(1, workload.prompt + step);
        let done = lister.step(&decode_steps, step as usize, &shape, &last, None)?;
        last = done[done.len() - 1..].to_vec();
    }
    Ok(lister.out)
}

impl<'a> Lister<'a> {
    fn name(&mut self, name: String) -> usize {
        self.out.names.push(name);
        self.out.names.len() - 1
    }

    fn steps(
        &mut self,
        bucket: &BucketPlan,
        tensors: &'a [(TensorEdge, Vec<NodeIndex>)],
    ) -> Result<Steps<'a>, SimulationError> {
        let (graph, profile) = (self.request.graph, self.request.profile);
        let (expected, got) = (graph.units().len(), bucket.units.len());
        if expected != got {
            return Err(SimulationError::Units { expected, got });
        }
        let (segments, streamed): (Vec<SegmentPlan>, Vec<bool>) =
            bucket.streamed_runs(graph).into_iter().unzip();
        let mut devices = Vec::with_capacity(segments.len());
        let mut names = Vec::with_capacity(segments.len());
        let mut segment_of = vec![0; expected];
        for (index, segment) in segments.iter().enumerate() {
            devices.push(device_index(profile, &segment.device)?);
            for unit in &segment.units {
                segment_of[unit.0] = index;
            }
            let unit = |unit: Option<&UnitId>| graph.unit(*unit.expect("not empty")).name();
            let (first, last) = (unit(segment.units.first()), unit(segment.units.last()));
            let name = if first == last { first } else { format!("{first} .. {last}") };
            names.push(self.name(name));
        }
        let tensor_names = tensors.iter().map(|(_, nodes)| {
            let names = nodes.iter().map(|&node| graph.node(node).name.as_str());
            self.name(names.collect::<Vec<_>>().join(", "))
        });
        let tensor_names = tensor_names.collect();
        let result_name = self.name("result".to_owned());
        let phase = bucket.bucket.phase;
        Ok(Steps {
            phase,
            segments,
            devices,
            streamed,
            splits: bucket.splits.clone(),
            segment_of,
            tensors,
            names,
            tensor_names,
            result_name,
        })
    }

    fn push(&mut self, task: Task, label: Label) -> Result<usize, SimulationError> {
        if self.out.tasks.len() == MOST_TASKS {
            return Err(SimulationError::TooLong { most: MOST_TASKS });
        }
        self.out.tasks.push(task);
        self.out.labels.push(label);
        Ok(self.out.tasks.len() - 1)
    }

    /// A copy over a link.
    fn copy(
        &mut self,
        domains: (usize, usize),
        bytes: f64,
        after: Vec<usize>,
        label: Label,
    ) -> Result<usize, SimulationError> {
        let profile = self.request.profile;
        let [from, to] = [domains.0, domains.1].map(|domain| &profile.domains[domain].name);
        let link = profile.links.iter().position(|link| (&link.from, &link.to) == (from, to));
        let link =
            link.ok_or_else(|| SimulationError::Link { from: from.clone(), to: to.clone() })?;
        let (latency, bandwidth) =
            (profile.links[link].latency.get(), profile.links[link].bandwidth.get());
        let task = Task {
            resource: Resource::Link(link),
            fixed: latency,
            work: bytes / bandwidth,
            traffic: vec![(domains.0, bytes), (domains.1, bytes)],
            joules: 0.0,
            after,
        };
        self.push(task, label)
    }

    /// One step: a task per segment and per copy. `after` must have ended before it begins; `passed`
    /// are the segments of the step before, each of which must have ended before its own. Returns the
    /// tasks of the segments, then the one that ends the step.
    fn step(
        &mut self,
        steps: &Steps<'_>,
        step: usize,
        shape: &StepShape,
        after: &[usize],
        passed: Option<&[usize]>,
    ) -> Result<Vec<usize>, SimulationError> {
        let (graph, profile) = (self.request.graph, self.request.profile);
        let domain = |device: usize| profile.domain_index(&profile.devices[device].domain);
        let mut done: Vec<usize> = Vec::with_capacity(steps.segments.len() + 1);
        let mut copies: BTreeMap<(usize, usize), usize> = BTreeMap::new();
        // By device: segments whose weights were streamed to it.
        let mut loads: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (index, segment) in steps.segments.iter().enumerate() {
            let at = steps.devices[index];
            let device = &profile.devices[at];
            let mut waits: Vec<usize> = if index == 0 { after.to_vec() } else { Vec::new() };
            waits.extend(passed.map(|passed| passed[index]));
            let inside = |unit: &usize| steps.segment_of[*unit] == index;
            for (number, (tensor, nodes)) in steps.tensors.iter().enumerate() {
                let maker = steps.segment_of[tensor.maker];
                if maker == index || !tensor.readers.iter().any(inside) {
                    continue;
                }
                let made = domain(steps.devices[maker]);
                let reads = device.addresses.iter().map(|name| profile.domain_index(name));
                let mut reads = reads.chain([domain(at)]);
                let held = reads.find_map(|domain| match copies.get(&(number, domain)) {
                    _ if domain == made => Some(done[maker]),
                    copy => copy.copied(),
                });
                let ready = match held {
                    Some(task) => task,
                    None => {
                        let bytes = nodes.iter().map(|&node| graph.node(node).shape.bytes(shape));
                        let bytes = bytes.sum::<u64>() as f64;
                        let (activity, name) = (Activity::Copy, steps.tensor_names[number]);
                        let label = Label { activity, name, phase: steps.phase, step };
                        let to = domain(at);
                        let task = self.copy((made, to), bytes, vec![done[maker]], label)?;
                        copies.insert((number, to), task);
                        task
                    }
                };
                waits.push(ready);
            }
            if steps.streamed[index] {
                let before = loads.get(&at).map_or(&[][..], Vec::as_slice);
                // Two buffers: the copy waits for the last run that read its one.
                let free = before.len().checked_sub(2).map(|last| vec![done[before[last]]]);
                let free = free.unwrap_or_else(|| after.to_vec());
                waits.push(self.load(steps, (step, index), free)?);
                loads.entry(at).or_default().push(index);
            }
            waits.sort_unstable();
            waits.dedup();
            let units = segment.units.iter().map(|&unit| self.model.unit(device, unit, shape));
            let mut cost: Cost = units.sum::<Result<_, _>>()?;
            let split = self.split_more(steps, index, shape)?;
            cost.seconds += split.seconds;
            let bytes =
                segment.units.iter().map(|&unit| self.model.dram_bytes(device, unit, shape));
            let task = Task {
                resource: Resource::Device(at),
                fixed: device.handoff.get(),
                work: cost.seconds,
                traffic: vec![(domain(at), bytes.sum())],
                joules: split.joules,
                after: waits,
            };
            let (activity, name) = (Activity::Run, steps.names[index]);
            let label = Label { activity, name, phase: steps.phase, step };
            done.push(self.push(task, label)?);
        }
        let output = graph.output();
        let last = steps.segment_of[graph.node(output).unit.0];
        let from = domain(steps.devices[last]);
        // The host's domain is the first; tokens are chosen there.
        let end = if from == 0 {
            done[last]
        } else {
            let bytes = graph.node(output).shape.bytes(shape) as f64;
            let (activity, name) = (Activity::Copy, steps.result_name);
            let label = Label { activity, name, phase: steps.phase, step };
            self.copy((from, 0), bytes, vec![done[last]], label)?
        };
        done.push(end);
        Ok(done)
    }

    /// What splits of a segment's products make it take longer, usually less than nothing, and the
    /// joules beyond those of its device at work for that time. The other devices' work is in the
    /// segment's, as if they did nothing else.
    fn split_more(
        &self,
        steps: &Steps<'_>,
        index: usize,
        shape: &StepShape,
    ) -> Result<Cost, SimulationError> {
        let profile = self.request.profile;
        let graph = self.request.graph;
        let home = &profile.devices[steps.devices[index]];
        let units = steps.segments[index].units.iter();
        let watts = home.power.busy.get() - home.power.idle.get() + waiting_watts(profile);
        let mut more = Cost::default();
        for &node in units.flat_map(|&unit| &graph.unit(unit).nodes) {
            let name = &graph.node(node).name;
            let Some(split) = steps.splits.iter().find(|split| split.op == *name) else { continue };
            let rows: usize = split.shares.iter().map(|share| share.rows).sum();
            let mut shares = Vec::with_capacity(split.shares.len());
            for share in &split.shares {
                let part = share.rows as f64 / rows.max(1) as f64;
                shares.push((&profile.devices[device_index(profile, &share.device)?], part));
            }
            let work = SplitWork { model: self.model, node, home, step: shape };
            let whole = self.model.op(home, node, shape)?;
            let split = work.cost(&shares)?;
            let domains = || SimulationError::Link { from: home.domain.clone(), to: name.clone() };
            let split = split.ok_or_else(domains)?;
            more.seconds += split.seconds - whole.seconds;
            more.joules += split.joules - split.seconds * watts;
        }
        Ok(more)
    }

    /// The copy of a segment's weights to its device.
    fn load(
        &mut self,
        steps: &Steps<'_>,
        (step, index): (usize, usize),
        after: Vec<usize>,
    ) -> Result<usize, SimulationError> {
        let device = &self.request.profile.devices[steps.devices[index]];
        let units = steps.segments[index].units.iter();
        let bytes: Bytes = units.map(|&unit| self.model.weight_bytes(device, unit)).sum();
        let to = self.request.profile.domain_index(&device.domain);
        let (activity, name) = (Activity::LoadWeights, steps.names[index]);
        let label = Label { activity, name, phase: steps.phase, step };
        self.copy((0, to), bytes.0 as f64, after, label)
    }

    /// Moves of KV pages after the prompt; what decode waits for.
    fn move_kv(
        &mut self,
        steps: &Steps<'_>,
        done: &[usize],
    ) -> Result<Vec<usize>, SimulationError> {
        let (plan, graph) = (self.request.plan, self.request.graph);
        let mut waits: Vec<usize> = done.last().copied().into_iter().collect();
        let Some(later) = &plan.kv_decode else { return Ok(waits) };
        let layers = plan.kv.iter().zip(later).zip(graph.kv()).enumerate();
        for (layer, ((&DomainId(from), &DomainId(to)), kv)) in
            layers.filter(|(_, ((a, b), _))| a != b)
        {
            let tokens = self.request.workload.prompt as f64;
            let each = kv.elements_per_token() as f64 * self.request.kv_element_bytes as f64;
            let bytes = tokens * each;
            let units = 0..graph.units().len();
            let unit = units.map(UnitId).find(|&unit| graph.unit_kv_layer(unit) == Some(layer));
            // Overlapped, a layer's pages move once the last chunk has passed the layer.
            let after = match unit.filter(|_| self.request.pipelined) {
                Some(unit) => vec![done[steps.segment_of[unit.0]]],
                None => waits.clone(),
            };
            let name = self.name(format!("KV of layer {layer}, {}", shown(bytes)));
            let (activity, phase) = (Activity::MoveKv, Phase::Prefill);
            let label = Label { activity, name, phase, step: self.out.chunks - 1 };
            let task = self.copy((usize::from(from), usize::from(to)), bytes, after, label)?;
            waits.push(task);
        }
        Ok(waits)
    }
}

fn device_index(profile: &Profile, name: &str) -> Result<usize, SimulationError> {
    let found = profile.devices.iter().position(|device| device.name == name);
    found.ok_or_else(|| SimulationError::Device {
        profile: profile.name.clone(),
        got: name.to_owned(),
        known: profile.devices.iter().map(|d| d.name.as_str()).collect::<Vec<_>>().join(", "),
    })
}
