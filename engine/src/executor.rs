//! Runs plans: segments compiled to programs, submitted with fences between them. The executor adds
//! nothing to a plan and drops nothing.

use std::collections::HashMap;
use std::sync::Arc;

use trefoil_devices_api::{
    AllocRequest, Bucket, Buffer, BufferRef, CompileError, Device, DeviceError, Failure, Job,
    Phase, Point, Points, Program, Purpose, Role, RunArgs, Submission, Timeline, Work,
};
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

/// A move of a tensor before a segment.
#[derive(Debug)]
struct TensorCopy {
    from: BufferRef,
    to: BufferRef,
}

#[derive(Debug)]
struct CompiledBucket {
    bucket: Bucket,
    segments: Vec<Segment>,
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
        kv: KvPool,
    ) -> Result<Self, ExecuteError> {
        let mut tensors = TensorPool::default();
        let mut buckets = Vec::with_capacity(plan.buckets.len());
        // Largest first: its tensors serve the smaller buckets too.
        let mut order: Vec<&BucketPlan> = plan.buckets.iter().collect();
        order.sort_by_key(|bucket| std::cmp::Reverse(bucket.bucket.max_tokens));
        for bucket in order {
            buckets.push(compile_bucket(graph, bucket, devices, &kv, &mut tensors)?);
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
        let mut waits = Points::new();
        for segment in &self.buckets[index].segments {
            let copies = segment
                .copies
                .iter()
                .map(|copy| Work::Copy { from: copy.from.clone(), to: copy.to.clone() });
            let run = Work::Run {
                program: segment.program.clone(),
                args: segment.args.clone(),
                step: self.step.clone(),
            };
            for work in copies.chain([run]) {
                self.reached += 1;
                let point = Point { timeline: self.timeline.clone(), value: self.reached };
                let signals = Points::from_iter([point.clone()]);
                let label = segment.label.clone();
                segment.device.submit(0, Submission { waits, signals, work, label })?;
                waits = Points::from_iter([point]);
            }
        }
        Ok(())
    }
}

/// Buffers of tensors that cross between segments, shared over buckets (one runs at a time).
#[derive(Default)]
struct TensorPool {
    buffers: HashMap<(NodeIndex, trefoil_devices_api::DomainId), Buffer>,
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
}

fn compile_bucket(
    graph: &Arc<LayerGraph>,
    plan: &BucketPlan,
    devices: &[Arc<dyn Device>],
    kv: &KvPool,
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
                    let there = tensors.buffer(maker.as_ref(), node, bytes)?.view(0..bytes)?;
                    if here.buffer.id != there.buffer.id {
                        copies.push(TensorCopy { from: there, to: here.clone() });
                    }
                    here
                }
            });
        }
        if segment.outputs.contains(&graph.output()) {
            let bytes = bucket.tensor_bytes(graph, graph.output());
            output = Some(tensors.buffer(device.as_ref(), graph.output(), bytes)?);
        }
        let args = Arc::new(RunArgs { buffers, kv: kv.layout().clone() });
        segments.push(Segment { device, program, args, label, copies });
    }
    let output = output.expect("the last segment makes the result");
    Ok(CompiledBucket { bucket, segments, output })
}
