//! From a plan to programs with their buffers.

use std::collections::HashMap;
use std::sync::Arc;

use trefoil_devices_api::{
    AllocRequest, Backing, Bucket, Buffer, Device, DeviceError, DomainId, Job, Link, MemoryManager,
    Program, Purpose, Role, RunArgs, Work,
};
use trefoil_graph::ops::TensorShape;
use trefoil_graph::{LayerGraph, NodeIndex, StepInputs};
use trefoil_scheduler::{BucketPlan, SegmentPlan};

use super::ExecuteError;
use super::lanes::Lanes;
use crate::kv::KvPool;

/// A segment ready to be submitted.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) lane: usize,
    pub(super) program: Arc<dyn Program>,
    pub(super) label: Arc<str>,
    /// KV layers that it reads and writes.
    pub(super) kv: Vec<usize>,
    /// Its buffers, by number of the set.
    pub(super) sets: Vec<Bound>,
}

/// A segment's buffers in one set.
#[derive(Debug)]
pub(super) struct Bound {
    /// Moves of its inputs, before it.
    pub(super) copies: Vec<TensorCopy>,
    pub(super) args: Arc<RunArgs>,
}

/// Where a bucket's result is in one set.
#[derive(Debug)]
pub(super) struct Output {
    /// Moves to where the host reads it.
    pub(super) copies: Vec<TensorCopy>,
    pub(super) buffer: Buffer,
}

/// A move of a tensor's rows from one domain to another.
#[derive(Debug)]
pub(super) struct TensorCopy {
    /// Queue of the device that reaches both domains.
    pub(super) lane: usize,
    pub(super) from: Buffer,
    pub(super) to: Buffer,
    pub(super) label: Arc<str>,
    shape: TensorShape,
}

impl TensorCopy {
    /// Bytes of the rows that a step has.
    pub(super) fn bytes(&self, step: &StepInputs) -> usize {
        step.count(self.shape.rows) * self.shape.width * size_of::<f32>()
    }

    /// The copy of the rows that a step has.
    pub(super) fn work(&self, step: &StepInputs) -> Result<Work, DeviceError> {
        let bytes = self.bytes(step);
        Ok(Work::Copy { from: self.from.view(0..bytes)?, to: self.to.view(0..bytes)? })
    }
}

/// A bucket's programs. Steps that are under way at once use sets of buffers of their own.
#[derive(Debug)]
pub(super) struct CompiledBucket {
    pub(super) bucket: Bucket,
    pub(super) segments: Vec<Segment>,
    pub(super) outputs: Vec<Output>,
}

impl CompiledBucket {
    /// Steps that can be under way at once.
    pub(super) fn sets(&self) -> usize {
        self.outputs.len()
    }
}

/// Buffers of tensors that cross between segments, by set; shared over buckets, since no two steps
/// under way use one set.
#[derive(Default)]
struct TensorPool {
    buffers: HashMap<(usize, NodeIndex, DomainId), Buffer>,
}

impl TensorPool {
    fn get(
        &mut self,
        (set, node, domain): (usize, NodeIndex, DomainId),
        bytes: usize,
        make: impl FnOnce() -> Result<Buffer, DeviceError>,
    ) -> Result<Buffer, DeviceError> {
        let key = (set, node, domain);
        if let Some(buffer) = self.buffers.get(&key)
            && buffer.len >= bytes
        {
            return Ok(buffer.clone());
        }
        let buffer = make()?;
        self.buffers.insert(key, buffer.clone());
        Ok(buffer)
    }

    /// A tensor's buffer where a device has its data.
    fn at(
        &mut self,
        device: &dyn Device,
        (set, node): (usize, NodeIndex),
        bytes: usize,
    ) -> Result<Buffer, DeviceError> {
        let domain = device.domains()[0].id;
        let request = AllocRequest { domain, bytes, purpose: Purpose::Activations };
        self.get((set, node, domain), bytes, || device.alloc(request))
    }

    /// A tensor's buffer in host memory.
    fn on_host(
        &mut self,
        memory: &MemoryManager,
        (set, node): (usize, NodeIndex),
        bytes: usize,
    ) -> Result<Buffer, DeviceError> {
        let make = || memory.host_buffer(bytes, Purpose::Activations.holder());
        self.get((set, node, DomainId::HOST), bytes, make)
    }
}

/// The device among `devices` that copies from one domain to the other.
pub(super) fn mover<'a>(
    from: DomainId,
    to: DomainId,
    devices: impl IntoIterator<Item = &'a Arc<dyn Device>>,
) -> Option<&'a Arc<dyn Device>> {
    devices.into_iter().find(|device| device.link(from, to) != Link::Never)
}

/// Compiles buckets one after the other.
pub(super) struct Compiler<'a> {
    graph: &'a Arc<LayerGraph>,
    devices: &'a [Arc<dyn Device>],
    memory: &'a MemoryManager,
    kv: &'a KvPool,
    lanes: &'a mut Lanes,
    tensors: TensorPool,
}

/// What is known of a bucket while its segments are compiled.
struct Progress {
    bucket: Bucket,
    sets: usize,
    made_by: HashMap<NodeIndex, Arc<dyn Device>>,
}

impl<'a> Compiler<'a> {
    pub(super) fn new(
        graph: &'a Arc<LayerGraph>,
        devices: &'a [Arc<dyn Device>],
        memory: &'a MemoryManager,
        kv: &'a KvPool,
        lanes: &'a mut Lanes,
    ) -> Self {
        Self { graph, devices, memory, kv, lanes, tensors: TensorPool::default() }
    }

    /// Compiles a bucket's segments, for as many steps at once as a context of `context` tokens can
    /// have.
    pub(super) fn bucket(
        &mut self,
        plan: &BucketPlan,
        context: usize,
    ) -> Result<CompiledBucket, ExecuteError> {
        let bucket = plan.bucket;
        let sets = plan.steps_at_once().min(context.div_ceil(bucket.max_tokens.max(1))).max(1);
        let mut progress = Progress { bucket, sets, made_by: HashMap::new() };
        let parts = plan.segments();
        let segments = parts.iter().map(|part| self.segment(&mut progress, part));
        let segments = segments.collect::<Result<_, _>>()?;
        let outputs = (0..sets).map(|set| self.output(&progress, set)).collect::<Result<_, _>>()?;
        Ok(CompiledBucket { bucket, segments, outputs })
    }

    fn segment(
        &mut self,
        progress: &mut Progress,
        part: &SegmentPlan,
    ) -> Result<Segment, ExecuteError> {
        let bucket = progress.bucket;
        let device = self.devices.iter().find(|device| device.info().name == part.device);
        let device = device.ok_or_else(|| ExecuteError::NoDevice(part.device.clone()))?;
        let segment = self.graph.segment(&part.units);
        let first = self.graph.unit(part.units[0]).name();
        let last = self.graph.unit(*part.units.last().expect("segments have units")).name();
        let label: Arc<str> = format!("{} {first}..{last}", bucket.phase.name()).into();
        let program =
            device.compile(self.graph, &segment, bucket, &Job::default()).map_err(|source| {
                let (device, segment) = (part.device.clone(), label.to_string());
                ExecuteError::Compile { device, segment, source }
            })?;
        for binding in program.bindings() {
            if let Role::Output(node) = binding.role {
                progress.made_by.insert(node, device.clone());
            }
        }
        let sets =
            (0..progress.sets).map(|set| self.bind(progress, device, &*program, &label, set));
        let sets = sets.collect::<Result<_, _>>()?;
        let kv = program.bindings().iter().filter_map(|binding| match binding.role {
            Role::Kv(layer) => Some(layer),
            _ => None,
        });
        let kv = kv.collect();
        let lane = self.lanes.of(device);
        Ok(Segment { lane, program, label, kv, sets })
    }

    /// The buffers of a segment in a set.
    fn bind(
        &mut self,
        progress: &Progress,
        device: &Arc<dyn Device>,
        program: &dyn Program,
        label: &Arc<str>,
        set: usize,
    ) -> Result<Bound, ExecuteError> {
        let bucket = progress.bucket;
        let mut buffers = Vec::with_capacity(program.bindings().len());
        let mut copies = Vec::new();
        for binding in program.bindings() {
            buffers.push(match binding.role {
                Role::Kv(layer) => {
                    let pages = self.kv.layer(bucket.phase, layer);
                    if device.domains().iter().all(|domain| domain.id != pages.domain) {
                        let (segment, domain) = (label.to_string(), pages.domain);
                        let device = device.info().name.clone();
                        return Err(ExecuteError::KvOutOfReach { segment, device, domain });
                    }
                    pages.whole()
                }
                Role::Output(node) => {
                    let bytes = bucket.tensor_bytes(self.graph, node);
                    self.tensors.at(device.as_ref(), (set, node), bytes)?.view(0..bytes)?
                }
                Role::Input(node) => {
                    let bytes = bucket.tensor_bytes(self.graph, node);
                    let here = self.tensors.at(device.as_ref(), (set, node), bytes)?;
                    let maker = &progress.made_by[&node];
                    let there = self.tensors.at(maker.as_ref(), (set, node), bytes)?;
                    if here.id != there.id {
                        let ways = [there, here.clone()];
                        copies.extend(self.moves(bucket, (set, node), ways, [device, maker])?);
                    }
                    here.view(0..bytes)?
                }
            });
        }
        Ok(Bound { copies, args: Arc::new(RunArgs { buffers, kv: self.kv.layout().clone() }) })
    }

    /// Moves of a tensor between two domains: by one of the two devices, or through the host.
    fn moves(
        &mut self,
        bucket: Bucket,
        (set, node): (usize, NodeIndex),
        [from, to]: [Buffer; 2],
        devices: [&Arc<dyn Device>; 2],
    ) -> Result<Vec<TensorCopy>, ExecuteError> {
        let (shape, name) = (self.graph.node(node).shape, &self.graph.node(node).name);
        let lanes = &mut *self.lanes;
        let mut copy = |device: &Arc<dyn Device>, from: Buffer, to: Buffer| {
            let label = format!("{} copy of {name} to {}", bucket.phase.name(), to.domain).into();
            TensorCopy { lane: lanes.of(device), from, to, label, shape }
        };
        if let Some(device) = mover(from.domain, to.domain, devices) {
            return Ok(vec![copy(device, from, to)]);
        }
        let none = ExecuteError::NoWay { from: from.domain, to: to.domain };
        let up = mover(from.domain, DomainId::HOST, devices);
        let down = mover(DomainId::HOST, to.domain, devices);
        let (Some(up), Some(down)) = (up, down) else { return Err(none) };
        let bytes = bucket.tensor_bytes(self.graph, node);
        let host = self.tensors.on_host(self.memory, (set, node), bytes)?;
        Ok(vec![copy(up, from, host.clone()), copy(down, host, to)])
    }

    /// Where the host reads a set's result.
    fn output(&mut self, progress: &Progress, set: usize) -> Result<Output, ExecuteError> {
        let (bucket, node) = (progress.bucket, self.graph.output());
        let bytes = bucket.tensor_bytes(self.graph, node);
        let device = progress.made_by.get(&node).expect("the last segment makes the result");
        let made = self.tensors.at(device.as_ref(), (set, node), bytes)?;
        if let Backing::Host(_) = made.backing() {
            return Ok(Output { copies: Vec::new(), buffer: made });
        }
        let buffer = self.tensors.on_host(self.memory, (set, node), bytes)?;
        let copies = self.moves(bucket, (set, node), [made, buffer.clone()], [device, device])?;
        Ok(Output { copies, buffer })
    }
}
