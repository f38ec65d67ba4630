//! From a plan to programs with their buffers.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use trefoil_devices_api::{
    AllocRequest, Backing, Bucket, Buffer, BufferRef, Columns, CompileError, Device, DeviceError,
    DomainId, Job, Link, MemoryManager, Program, Purpose, Role, RunArgs, Work,
};
use trefoil_graph::ops::TensorShape;
use trefoil_graph::{LayerGraph, NodeIndex, Segment as GraphSegment, StepInputs, linear_part};
use trefoil_scheduler::tensor_pool::{Place, TensorPool, last_readers};
use trefoil_scheduler::{BucketPlan, Piece, PieceShare};

use super::ExecuteError;
use super::lanes::Lanes;
use super::largest::LargestOf;
use super::stages::{Load, Stages};
use crate::kv::KvPool;

/// A segment ready to be submitted.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) lane: usize,
    pub(super) program: Arc<dyn Program>,
    pub(super) label: Arc<str>,
    /// Its place among the segments of the plan.
    pub(super) index: usize,
    /// KV layers that it reads and writes.
    pub(super) kv: Vec<usize>,
    /// How its weights get to the device, where they are streamed.
    pub(super) load: Option<Load>,
    /// Its buffers, by number of the set.
    pub(super) sets: Vec<Bound>,
    /// What other devices compute at the same time, of a product that is split: no KV layers, and
    /// nothing beside.
    pub(super) beside: Vec<Segment>,
}

/// A segment's buffers in one set.
#[derive(Debug)]
pub(super) struct Bound {
    /// Moves of its inputs, before it.
    pub(super) copies: Vec<TensorCopy>,
    /// Moves of its part of a split product to the whole, after all parts.
    pub(super) joins: Vec<TensorCopy>,
    pub(super) args: Arc<RunArgs>,
}

/// Where a bucket's result is in one set.
#[derive(Debug)]
pub(super) struct Output {
    /// Moves to where the host reads it.
    pub(super) copies: Vec<TensorCopy>,
    pub(super) buffer: Buffer,
    /// Instead of the moves, where only the largest elements are looked at.
    pub(super) largest: Option<LargestOf>,
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
    /// Which columns of the target the rows become, where they are not all of it.
    columns: Option<Columns>,
}

impl TensorCopy {
    /// Bytes of the rows that a step has.
    pub(super) fn bytes(&self, step: &StepInputs) -> usize {
        step.count(self.shape.rows) * self.shape.width * size_of::<f32>()
    }

    /// The copy of the rows that a step has.
    pub(super) fn work(&self, step: &StepInputs) -> Result<Work, DeviceError> {
        let bytes = self.bytes(step);
        if let Some(columns) = self.columns {
            let (from, to) = (self.from.view(0..bytes)?, self.to.clone());
            return Ok(Work::CopyColumns { from, to, columns });
        }
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

/// Which tensor is in which buffer, and the buffers.
type Pool = (TensorPool<(NodeIndex, usize)>, Vec<Buffer>);

/// Buffers of tensors that cross between segments, by set; shared over buckets, since no two steps
/// under way use one set. Within a step, pieces run one after the other, so that a tensor that nobody
/// reads any more leaves its buffer to another.
#[derive(Default)]
struct Tensors {
    pools: HashMap<(usize, DomainId), Pool>,
    /// The last piece that reads each tensor.
    last: HashMap<NodeIndex, usize>,
    /// The piece that is compiled.
    piece: usize,
    /// Tensors that were copied to a domain, and by which piece.
    copied: HashMap<(Tensor, DomainId), usize>,
}

/// A tensor in a set of buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Tensor {
    set: usize,
    node: NodeIndex,
    /// 0 for all of it, from 1 on for the parts of a split product.
    part: usize,
}

impl Tensor {
    fn whole(set: usize, node: NodeIndex) -> Self {
        Self { set, node, part: 0 }
    }
}

impl Tensors {
    /// Begins with another bucket.
    fn begin(&mut self, last: HashMap<NodeIndex, usize>) {
        self.pools.values_mut().for_each(|(pool, _)| pool.clear());
        self.copied.clear();
        (self.last, self.piece) = (last, 0);
    }

    /// Goes on to a piece.
    fn go_on(&mut self, piece: usize) {
        self.piece = piece;
        self.pools.values_mut().for_each(|(pool, _)| pool.retire(piece));
    }

    fn get(
        &mut self,
        (tensor, domain): (Tensor, DomainId),
        bytes: usize,
        make: impl FnOnce() -> Result<Buffer, DeviceError>,
    ) -> Result<Buffer, DeviceError> {
        let (pool, buffers) = self.pools.entry((tensor.set, domain)).or_default();
        let read = self.last.get(&tensor.node).copied().filter(|_| tensor.part == 0);
        let key = (tensor.node, tensor.part);
        match pool.place(key, bytes, read.unwrap_or(self.piece)) {
            Place::Known(at) => Ok(buffers[at].clone()),
            Place::New(_) => {
                let buffer = make()?;
                buffers.push(buffer.clone());
                Ok(buffer)
            }
        }
    }

    /// Is a tensor in a domain already, because a piece before this one was given a copy? Notes that
    /// this one is, if not.
    fn was_copied(&mut self, tensor: Tensor, domain: DomainId) -> bool {
        let piece = self.piece;
        *self.copied.entry((tensor, domain)).or_insert(piece) < piece
    }

    /// A tensor's buffer where a device has its data.
    fn at(
        &mut self,
        device: &dyn Device,
        tensor: Tensor,
        bytes: usize,
    ) -> Result<Buffer, DeviceError> {
        let domain = device.domains()[0].id;
        let request = AllocRequest { domain, bytes, purpose: Purpose::Activations };
        self.get((tensor, domain), bytes, || device.alloc(request))
    }

    /// A tensor's buffer in host memory.
    fn on_host(
        &mut self,
        memory: &MemoryManager,
        tensor: Tensor,
        bytes: usize,
    ) -> Result<Buffer, DeviceError> {
        let make = || memory.host_buffer(bytes, Purpose::Activations.holder());
        self.get((tensor, DomainId::HOST), bytes, make)
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
    tensors: Tensors,
    stages: &'a mut Stages,
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
        stages: &'a mut Stages,
    ) -> Self {
        Self { graph, devices, memory, kv, lanes, tensors: Tensors::default(), stages }
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
        let pieces = plan.pieces(self.graph);
        self.tensors.begin(last_readers(self.graph, &pieces));
        let segments = pieces.iter().enumerate().map(|(number, piece)| {
            self.tensors.go_on(number);
            match piece.shares[..] {
                [] => self.segment(&mut progress, piece),
                _ => self.split(&mut progress, piece),
            }
        });
        let segments = segments.collect::<Result<_, _>>()?;
        let outputs = (0..sets).map(|set| self.output(&progress, set)).collect::<Result<_, _>>()?;
        Ok(CompiledBucket { bucket, segments, outputs })
    }

    /// The device called `name`.
    fn device(&self, name: &str) -> Result<&'a Arc<dyn Device>, ExecuteError> {
        let device = self.devices.iter().find(|device| device.info().name == name);
        device.ok_or_else(|| ExecuteError::NoDevice(name.to_owned()))
    }

    fn segment(&mut self, progress: &mut Progress, piece: &Piece) -> Result<Segment, ExecuteError> {
        let bucket = progress.bucket;
        let device = self.device(&piece.device)?;
        let label: Arc<str> = format!("{} {}", bucket.phase.name(), piece.name).into();
        let job = Job::default();
        let (program, load) = if piece.streamed {
            let (stage, buffer) = self.stages.next(device, self.graph, piece)?;
            let program = device.compile_streamed(self.graph, &piece.segment, bucket, buffer, &job);
            let program = program.map_err(|source| compile_error(device, &label, source))?;
            let load = Load {
                lane: self.lanes.of_queue(device, stage.queue),
                stage: stage.index,
                label: format!("{} weights of {}", bucket.phase.name(), piece.name).into(),
                to: device.domains()[0].id,
                bytes: program.streamed().0,
            };
            (program, Some(load))
        } else {
            (compile(device, self.graph, &piece.segment, bucket, &label)?, None)
        };
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
        let (kv, index, beside) = (kv.collect(), piece.index, Vec::new());
        let lane = self.lanes.of(device);
        Ok(Segment { lane, program, label, index, kv, load, sets, beside })
    }

    /// A product that several devices share: each makes some columns of the result in a buffer of its
    /// own (devices do not write to one buffer at the same time), which then become one tensor.
    fn split(&mut self, progress: &mut Progress, piece: &Piece) -> Result<Segment, ExecuteError> {
        let node = piece.segment.nodes[0];
        let home = self.device(&piece.device)?;
        progress.made_by.insert(node, home.clone());
        let mut parts = Vec::with_capacity(piece.shares.len());
        for (number, share) in (1..).zip(&piece.shares) {
            parts.push(self.share(progress, piece, share, number)?);
        }
        let mut first = parts.remove(0);
        first.beside = parts;
        Ok(first)
    }

    /// Share number `part` of a split product, with the moves of its result.
    fn share(
        &mut self,
        progress: &Progress,
        piece: &Piece,
        share: &PieceShare,
        part: usize,
    ) -> Result<Segment, ExecuteError> {
        let (bucket, node) = (progress.bucket, piece.segment.nodes[0]);
        let (home, device) = (self.device(&piece.device)?, self.device(&share.device)?);
        let Range { start, end } = share.rows;
        let name = &self.graph.node(node).name;
        let phase = bucket.phase.name();
        let label: Arc<str> = format!("{phase} {name} rows {start}..{end}").into();
        let (graph, segment) = linear_part(self.graph, node, start..end)
            .ok_or_else(|| ExecuteError::Split { op: name.clone(), rows: start..end })?;
        let graph = Arc::new(graph);
        let program = compile(device, &graph, &segment, bucket, &label)?;
        let input = piece.segment.inputs[0];
        let shape = TensorShape { width: end - start, ..self.graph.node(node).shape };
        let columns = |width: usize, row: usize| Columns {
            width: width * size_of::<f32>(),
            row: row * size_of::<f32>(),
            offset: start * size_of::<f32>(),
        };
        let columns = columns(end - start, self.graph.node(node).shape.width);
        let bytes = most_bytes(bucket, shape);
        let whole_bytes = bucket.tensor_bytes(self.graph, node);
        let mut sets = Vec::with_capacity(progress.sets);
        for set in 0..progress.sets {
            let (read, copies) = self.input(progress, device, Tensor::whole(set, input))?;
            let tensor = Tensor { set, node, part };
            let made = self.tensors.at(device.as_ref(), tensor, bytes)?;
            let whole = self.tensors.at(home.as_ref(), Tensor::whole(set, node), whole_bytes)?;
            let mut joins = Vec::new();
            let mut from = made.clone();
            if made.domain != whole.domain {
                let arrived = self.tensors.at(home.as_ref(), tensor, bytes)?;
                let ways = [made.clone(), arrived.clone()];
                joins = self.moves(bucket, (tensor, shape), ways, [device, home])?;
                from = arrived;
            }
            let label = format!("{phase} join of {name} rows {start}..{end}").into();
            let lane = self.lanes.of(home);
            let columns = Some(columns);
            joins.push(TensorCopy { lane, from, to: whole, label, shape, columns });
            let buffers = vec![read, made.view(0..bytes)?];
            let args = Arc::new(RunArgs { buffers, kv: self.kv.layout().clone() });
            sets.push(Bound { copies, joins, args });
        }
        let (kv, index, beside) = (Vec::new(), piece.index, Vec::new());
        let (lane, load) = (self.lanes.of(device), None);
        Ok(Segment { lane, program, label, index, kv, load, sets, beside })
    }

    /// Where a device reads a tensor, and the moves to there.
    fn input(
        &mut self,
        progress: &Progress,
        device: &Arc<dyn Device>,
        tensor: Tensor,
    ) -> Result<(BufferRef, Vec<TensorCopy>), ExecuteError> {
        let (bucket, node) = (progress.bucket, tensor.node);
        let bytes = bucket.tensor_bytes(self.graph, node);
        let here = self.tensors.at(device.as_ref(), tensor, bytes)?;
        let maker = &progress.made_by[&node];
        let there = self.tensors.at(maker.as_ref(), tensor, bytes)?;
        let mut copies = Vec::new();
        if here.id != there.id && !self.tensors.was_copied(tensor, here.domain) {
            let shape = self.graph.node(node).shape;
            let ways = [there, here.clone()];
            copies = self.moves(bucket, (tensor, shape), ways, [device, maker])?;
        }
        Ok((here.view(0..bytes)?, copies))
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
                    let tensor = Tensor::whole(set, node);
                    self.tensors.at(device.as_ref(), tensor, bytes)?.view(0..bytes)?
                }
                Role::Input(node) => {
                    let tensor = Tensor::whole(set, node);
                    let (here, moves) = self.input(progress, device, tensor)?;
                    copies.extend(moves);
                    here
                }
            });
        }
        let args = Arc::new(RunArgs { buffers, kv: self.kv.layout().clone() });
        Ok(Bound { copies, joins: Vec::new(), args })
    }

    /// Moves of a tensor between two domains: by one of the two devices, or through the host.
    fn moves(
        &mut self,
        bucket: Bucket,
        (tensor, shape): (Tensor, TensorShape),
        [from, to]: [Buffer; 2],
        devices: [&Arc<dyn Device>; 2],
    ) -> Result<Vec<TensorCopy>, ExecuteError> {
        let name = &self.graph.node(tensor.node).name;
        let lanes = &mut *self.lanes;
        let mut copy = |device: &Arc<dyn Device>, from: Buffer, to: Buffer| {
            let label = format!("{} copy of {name} to {}", bucket.phase.name(), to.domain).into();
            TensorCopy { lane: lanes.of(device), from, to, label, shape, columns: None }
        };
        if let Some(device) = mover(from.domain, to.domain, devices) {
            return Ok(vec![copy(device, from, to)]);
        }
        let none = ExecuteError::NoWay { from: from.domain, to: to.domain };
        let up = mover(from.domain, DomainId::HOST, devices);
        let down = mover(DomainId::HOST, to.domain, devices);
        let (Some(up), Some(down)) = (up, down) else { return Err(none) };
        let bytes = most_bytes(bucket, shape);
        let host = self.tensors.on_host(self.memory, tensor, bytes)?;
        Ok(vec![copy(up, from, host.clone()), copy(down, host, to)])
    }

    /// Where the host reads a set's result.
    fn output(&mut self, progress: &Progress, set: usize) -> Result<Output, ExecuteError> {
        let (bucket, node) = (progress.bucket, self.graph.output());
        let bytes = bucket.tensor_bytes(self.graph, node);
        let tensor = Tensor::whole(set, node);
        let device = progress.made_by.get(&node).expect("the last segment makes the result");
        let made = self.tensors.at(device.as_ref(), tensor, bytes)?;
        if let Backing::Host(_) = made.backing() {
            return Ok(Output { copies: Vec::new(), buffer: made, largest: None });
        }
        let buffer = self.tensors.on_host(self.memory, tensor, bytes)?;
        let shape = self.graph.node(node).shape;
        let largest = match device.limits().largest {
            0 => None,
            most => {
                let lane = self.lanes.of(device);
                let rows = bucket.max_rows(shape.rows);
                Some(LargestOf::new(self.memory, lane, made.clone(), rows, shape, most)?)
            }
        };
        let ways = [made, buffer.clone()];
        let copies = self.moves(bucket, (tensor, shape), ways, [device, device])?;
        Ok(Output { copies, buffer, largest })
    }
}

/// Most bytes of a tensor of this shape.
fn most_bytes(bucket: Bucket, shape: TensorShape) -> usize {
    bucket.max_rows(shape.rows) * shape.width * size_of::<f32>()
}

fn compile(
    device: &Arc<dyn Device>,
    graph: &Arc<LayerGraph>,
    segment: &GraphSegment,
    bucket: Bucket,
    label: &Arc<str>,
) -> Result<Arc<dyn Program>, ExecuteError> {
    let made = device.compile(graph, segment, bucket, &Job::default());
    made.map_err(|source| compile_error(device, label, source))
}

fn compile_error(device: &Arc<dyn Device>, label: &Arc<str>, source: CompileError) -> ExecuteError {
    let (device, segment) = (device.info().name.clone(), label.to_string());
    ExecuteError::Compile { device, segment, source }
}
