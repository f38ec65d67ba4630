//! Runs plans: segments compiled to programs, submitted with fences between them. The executor adds
//! nothing to a plan and drops nothing.

use std::collections::HashMap;
use std::sync::Arc;

use trefoil_devices_api::{
    AllocRequest, Backing, Bucket, Buffer, CompileError, Device, DeviceError, DomainId, Failure,
    Job, Link, MemoryManager, Phase, Point, Points, Program, Purpose, Role, RunArgs, Submission,
    Timeline, Work,
};
use trefoil_graph::ops::TensorShape;
use trefoil_graph::{LayerGraph, NodeIndex, Rows, StepInputs};
use trefoil_scheduler::{BucketPlan, Plan};

use crate::kv::KvPool;

/// A step or a plan that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExecuteError {
    /// A segment has no program.
    #[error("{device}: cannot compile {segment}: {source}")]
    Compile {
        /// The device.
        device: String,
        /// The segment.
        segment: String,
        /// Why.
        source: CompileError,
    },
    /// A device refused a request.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Work failed on a device.
    #[error("{0}")]
    Failed(Arc<Failure>),
    /// A device that the plan names is not here.
    #[error("device {0} is in the plan but not here")]
    NoDevice(String),
    /// A tensor that no device can move.
    #[error("no device copies from {from} to {to}; place the units on devices that share memory")]
    NoWay {
        /// Domain where it is made.
        from: DomainId,
        /// Domain where it is read.
        to: DomainId,
    },
    /// A step that fits no bucket.
    #[error("{phase}: expected a step of at most {most} rows, got {got}")]
    TooManyRows {
        /// The phase.
        phase: &'static str,
        /// Rows of the largest bucket.
        most: usize,
        /// Rows of the step.
        got: usize,
    },
}

/// A segment ready to be submitted.
#[derive(Debug)]
struct Segment {
    device: Arc<dyn Device>,
    program: Arc<dyn Program>,
    args: Arc<RunArgs>,
    label: Arc<str>,
    copies: Vec<TensorCopy>,
}

/// A move of a tensor's rows from one domain to another.
#[derive(Debug)]
struct TensorCopy {
    /// Device that can reach both domains.
    device: Arc<dyn Device>,
    from: Buffer,
    to: Buffer,
    shape: TensorShape,
}

impl TensorCopy {
    /// The copy of the rows that a step has.
    fn work(&self, step: &StepInputs) -> Result<Work, DeviceError> {
        let bytes = step.count(self.shape.rows) * self.shape.width * size_of::<f32>();
        Ok(Work::Copy { from: self.from.view(0..bytes)?, to: self.to.view(0..bytes)? })
    }
}

#[derive(Debug)]
struct CompiledBucket {
    bucket: Bucket,
    segments: Vec<Segment>,
    /// Moves of the result to where the host reads it.
    last: Vec<TensorCopy>,
    output: Buffer,
}

/// A plan on real devices, with the model's KV pages.
#[derive(Debug)]
pub struct Executor {
    graph: Arc<LayerGraph>,
    buckets: Vec<CompiledBucket>,
    /// KV pages of all sequences.
    pub kv: KvPool,
    timeline: Arc<Timeline>,
    reached: u64,
    step: Arc<StepInputs>,
}

impl Executor {
    /// Compiles every segment of `plan` and takes the memory that it needs.
    pub fn new(
        graph: &Arc<LayerGraph>,
        plan: &Plan,
        devices: &[Arc<dyn Device>],
        memory: &MemoryManager,
        kv: KvPool,
    ) -> Result<Self, ExecuteError> {
        let mut tensors = TensorPool::default();
        let mut buckets = Vec::with_capacity(plan.buckets.len());
        // Largest first: its tensors serve the smaller buckets too.
        let mut order: Vec<&BucketPlan> = plan.buckets.iter().collect();
        order.sort_by_key(|bucket| std::cmp::Reverse(bucket.bucket.max_tokens));
        for bucket in order {
            buckets.push(compile_bucket(graph, bucket, devices, &kv, memory, &mut tensors)?);
        }
        buckets.sort_by_key(|bucket| bucket.bucket.max_tokens);
        Ok(Self {
            graph: graph.clone(),
            buckets,
            kv,
            timeline: Arc::default(),
            reached: 0,
            step: Arc::default(),
        })
    }

    /// Most rows of one step in a phase.
    pub fn max_tokens(&self, phase: Phase) -> usize {
        let buckets = self.buckets.iter().filter(|bucket| bucket.bucket.phase == phase);
        buckets.map(|bucket| bucket.bucket.max_tokens).max().unwrap_or(0)
    }

    /// Most rows of one step whose output can be asked for.
    pub fn max_outputs(&self, phase: Phase) -> usize {
        let buckets = self.buckets.iter().filter(|bucket| bucket.bucket.phase == phase);
        buckets.map(|bucket| bucket.bucket.max_outputs).max().unwrap_or(0)
    }

    /// Runs one step: `fill` writes its rows, `read` gets the result, `[rows, width]`.
    pub fn step<T>(
        &mut self,
        phase: Phase,
        fill: impl FnOnce(&mut StepInputs),
        read: impl FnOnce(&[f32]) -> T,
    ) -> Result<T, ExecuteError> {
        let page_tokens = self.kv.layout().page_tokens as u32;
        if Arc::get_mut(&mut self.step).is_none() {
            // A device still holds the last step: only after a failure.
            self.step = Arc::default();
        }
        let step = Arc::get_mut(&mut self.step).expect("nobody else holds it");
        step.clear();
        step.page_tokens = page_tokens;
        fill(step);
        let (tokens, outputs) = (step.count(Rows::Tokens), step.count(Rows::Outputs));
        let Some(index) = self.bucket_for(phase, tokens, outputs) else {
            let most = self.max_tokens(phase);
            return Err(ExecuteError::TooManyRows { phase: phase.name(), most, got: tokens });
        };
        self.submit(index)?;
        let result = self.timeline.wait(self.reached);
        if let Err(failure) = result {
            // The failed timeline stays failed: the next step begins on a new one.
            self.timeline = Arc::default();
            self.reached = 0;
            return Err(ExecuteError::Failed(failure));
        }
        let shape = self.graph.node(self.graph.output()).shape;
        let len = self.step.count(shape.rows) * shape.width;
        let bytes = self.buckets[index].output.read()?;
        Ok(read(bytemuck::cast_slice(&bytes[..len * size_of::<f32>()])))
    }

    fn bucket_for(&self, phase: Phase, tokens: usize, outputs: usize) -> Option<usize> {
        self.buckets.iter().position(|compiled| {
            let bucket = compiled.bucket;
            bucket.phase == phase && bucket.max_tokens >= tokens && bucket.max_outputs >= outputs
        })
    }

    /// Submits every segment of a bucket, each after the one before it.
    fn submit(&mut self, index: usize) -> Result<(), ExecuteError> {
        let bucket = &self.buckets[index];
        let mut waits = Points::new();
        let mut submit = |device: &dyn Device, work: Work, label: &Arc<str>| {
            self.reached += 1;
            let point = Point { timeline: self.timeline.clone(), value: self.reached };
            let signals = Points::from_iter([point.clone()]);
            let waits = std::mem::replace(&mut waits, Points::from_iter([point]));
            device.submit(0, Submission { waits, signals, work, label: label.clone() })
        };
        for segment in &bucket.segments {
            for copy in &segment.copies {
                submit(copy.device.as_ref(), copy.work(&self.step)?, &segment.label)?;
            }
            let run = Work::Run {
                program: segment.program.clone(),
                args: segment.args.clone(),
                step: self.step.clone(),
            };
            submit(segment.device.as_ref(), run, &segment.label)?;
        }
        let label = &bucket.segments.last().expect("plans have segments").label;
        for copy in &bucket.last {
            submit(copy.device.as_ref(), copy.work(&self.step)?, label)?;
        }
        Ok(())
    }
}

/// Buffers of tensors that cross between segments, shared over buckets (one runs at a time).
#[derive(Default)]
struct TensorPool {
    buffers: HashMap<(NodeIndex, DomainId), Buffer>,
}

impl TensorPool {
    fn buffer(
        &mut self,
        device: &dyn Device,
        node: NodeIndex,
        bytes: usize,
    ) -> Result<Buffer, DeviceError> {
        let domain = device.domains()[0].id;
        if let Some(buffer) = self.buffers.get(&(node, domain))
            && buffer.len >= bytes
        {
            return Ok(buffer.clone());
        }
        let purpose = Purpose::Activations;
        let buffer = device.alloc(AllocRequest { domain, bytes, purpose })?;
        self.buffers.insert((node, domain), buffer.clone());
        Ok(buffer)
    }

    /// A tensor's buffer in host memory.
    fn host_buffer(
        &mut self,
        memory: &MemoryManager,
        node: NodeIndex,
        bytes: usize,
    ) -> Result<Buffer, DeviceError> {
        if let Some(buffer) = self.buffers.get(&(node, DomainId::HOST))
            && buffer.len >= bytes
        {
            return Ok(buffer.clone());
        }
        let buffer = memory.host_buffer(bytes, "activations")?;
        self.buffers.insert((node, DomainId::HOST), buffer.clone());
        Ok(buffer)
    }
}

/// The device among `devices` that copies from one domain to the other.
fn mover(from: &Buffer, to: &Buffer, devices: [&Arc<dyn Device>; 2]) -> Option<Arc<dyn Device>> {
    let can = |device: &&Arc<dyn Device>| device.link(from.domain, to.domain) != Link::Never;
    devices.into_iter().find(can).cloned()
}

/// Moves of a tensor between two domains: by one of the two devices, or through the host.
fn moves(
    graph: &LayerGraph,
    node: NodeIndex,
    from: Buffer,
    to: Buffer,
    devices: [&Arc<dyn Device>; 2],
    host: impl FnOnce() -> Result<Buffer, DeviceError>,
) -> Result<Vec<TensorCopy>, ExecuteError> {
    let shape = graph.node(node).shape;
    if let Some(device) = mover(&from, &to, devices) {
        return Ok(vec![TensorCopy { device, from, to, shape }]);
    }
    let host = host()?;
    let none = || ExecuteError::NoWay { from: from.domain, to: to.domain };
    let up = mover(&from, &host, devices).ok_or_else(none)?;
    let down = mover(&host, &to, devices).ok_or_else(none)?;
    Ok(vec![
        TensorCopy { device: up, from, to: host.clone(), shape },
        TensorCopy { device: down, from: host, to, shape },
    ])
}

fn compile_bucket(
    graph: &Arc<LayerGraph>,
    plan: &BucketPlan,
    devices: &[Arc<dyn Device>],
    kv: &KvPool,
    memory: &MemoryManager,
    tensors: &mut TensorPool,
) -> Result<CompiledBucket, ExecuteError> {
    let bucket = plan.bucket;
    let find = |name: &str| {
        let device = devices.iter().find(|device| device.info().name == name);
        device.cloned().ok_or_else(|| ExecuteError::NoDevice(name.to_owned()))
    };
    let mut segments = Vec::new();
    let mut made_by: HashMap<NodeIndex, Arc<dyn Device>> = HashMap::new();
    let mut output = None;
    let mut result_moves = Vec::new();
    for part in plan.segments() {
        let device = find(&part.device)?;
        let segment = graph.segment(&part.units);
        let first = graph.unit(part.units[0]).name();
        let last = graph.unit(*part.units.last().expect("segments have units")).name();
        let label: Arc<str> = format!("{} {first}..{last}", bucket.phase.name()).into();
        let program =
            device.compile(graph, &segment, bucket, &Job::default()).map_err(|source| {
                let (device, segment) = (part.device.clone(), label.to_string());
                ExecuteError::Compile { device, segment, source }
            })?;
        let mut buffers = Vec::with_capacity(program.bindings().len());
        let mut copies = Vec::new();
        for binding in program.bindings() {
            buffers.push(match binding.role {
                Role::Kv(layer) => kv.layer(layer).whole(),
                Role::Output(node) => {
                    made_by.insert(node, device.clone());
                    let bytes = bucket.tensor_bytes(graph, node);
                    tensors.buffer(device.as_ref(), node, bytes)?.view(0..bytes)?
                }
                Role::Input(node) => {
                    let bytes = bucket.tensor_bytes(graph, node);
                    let here = tensors.buffer(device.as_ref(), node, bytes)?.view(0..bytes)?;
                    let maker = &made_by[&node];
                    let there = tensors.buffer(maker.as_ref(), node, bytes)?;
                    if here.buffer.id != there.id {
                        let to = here.buffer.clone();
                        copies.extend(moves(graph, node, there, to, [&device, maker], || {
                            tensors.host_buffer(memory, node, bytes)
                        })?);
                    }
                    here
                }
            });
        }
        if segment.outputs.contains(&graph.output()) {
            let bytes = bucket.tensor_bytes(graph, graph.output());
            let made = tensors.buffer(device.as_ref(), graph.output(), bytes)?;
            output =
                Some(match made.backing() {
                    Backing::Host(_) => made,
                    Backing::Device(_) => {
                        let host = tensors.host_buffer(memory, graph.output(), bytes)?;
                        let pair = [&device, &device];
                        result_moves =
                            moves(graph, graph.output(), made, host.clone(), pair, || {
                                Ok(host.clone())
                            })?;
                        host
                    }
                });
        }
        let args = Arc::new(RunArgs { buffers, kv: kv.layout().clone() });
        segments.push(Segment { device, program, args, label, copies });
    }
    let output = output.expect("the last segment makes the result");
    Ok(CompiledBucket { bucket, segments, last: result_moves, output })
}
