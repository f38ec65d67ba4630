//! The trait that a backend implements, and the plain data that crosses it.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use trefoil_graph::{LayerGraph, NodeIndex, Rows, Segment};
use trefoil_telemetry::{Bytes, Nanos};

use crate::{
    Buffer, CompileError, Completion, DeviceError, DomainId, DomainInfo, Dropped, Submission,
    SubmissionId,
};

/// Sort of processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// The machine's processor cores.
    Cpu,
    /// A graphics processor.
    Gpu,
    /// A neural processor.
    Npu,
    /// The reference interpreter.
    Reference,
    /// A simulated device.
    Simulated,
}

/// Who a device is.
#[derive(Clone, Debug, serde::Serialize)]
pub struct DeviceInfo {
    /// `cpu0`, `gpu0`, `npu0`, `ref0`, `sim0`.
    pub name: String,
    /// Sort of processor.
    pub kind: DeviceKind,
    /// What its maker calls it.
    pub product: String,
    /// Stable identity of this piece of hardware.
    pub uuid: String,
    /// Version of its driver.
    pub driver: String,
    /// Version of trefoil's kernels for it: part of every cache key.
    pub kernel_set: String,
    /// Is it used only when named?
    pub only_when_named: bool,
}

/// What a device can take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Queues that run side by side.
    pub queues: usize,
    /// Number of the queue for [`crate::Work::LoadWeights`], which runs beside the others; absent
    /// where the device streams no weights.
    pub load_queue: Option<usize>,
    /// Longest time one submission may run.
    pub submission: Option<Nanos>,
    /// Largest buffer that a program can bind.
    pub buffer: Option<Bytes>,
    /// Most elements of a row that [`crate::Work::Largest`] finds; 0 where the device does not take it.
    pub largest: usize,
}

/// How bytes get from one domain to another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Link {
    /// The device addresses both.
    Native,
    /// After an import, without a copy.
    Import,
    /// By a copy at this speed and with this start-up cost.
    Copy {
        /// Bytes per second.
        bytes_per_second: f64,
        /// Time before the first byte.
        latency: Nanos,
    },
    /// Not at all.
    Never,
}

/// Phase of generation that a plan places on its own.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Reading the prompt.
    Prefill,
    /// Making tokens.
    Decode,
}

impl Phase {
    /// Name as it stands in plans and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        }
    }
}

/// Range of token counts that share a program.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct Bucket {
    /// Phase.
    pub phase: Phase,
    /// Fewest rows.
    pub min_tokens: usize,
    /// Most rows; devices with static shapes pad up to it.
    pub max_tokens: usize,
    /// Most rows whose output is wanted, and most sequences.
    pub max_outputs: usize,
}

impl Bucket {
    /// Most rows that `rows` can stand for.
    pub fn max_rows(&self, rows: Rows) -> usize {
        match rows {
            Rows::Tokens => self.max_tokens,
            Rows::Outputs | Rows::Sequences => self.max_outputs,
        }
    }

    /// Most bytes of a node's tensor.
    pub fn tensor_bytes(&self, graph: &LayerGraph, node: NodeIndex) -> usize {
        let shape = graph.node(node).shape;
        shape.width * self.max_rows(shape.rows) * size_of::<f32>()
    }
}

/// A question about one op.
#[derive(Clone, Copy, Debug)]
pub struct OpQuery<'a> {
    /// The graph.
    pub graph: &'a LayerGraph,
    /// The op.
    pub node: NodeIndex,
    /// The bucket.
    pub bucket: Bucket,
}

/// A device's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Support {
    /// It has a kernel for exactly this.
    Native,
    /// It can, by a detour.
    Slow(String),
    /// It cannot, because.
    No(String),
}

/// What a program needs to be bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// A tensor made outside.
    Input(NodeIndex),
    /// A tensor made here for others.
    Output(NodeIndex),
    /// The pages of a KV layer, read and written.
    Kv(usize),
}

/// One binding of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding {
    /// What it is.
    pub role: Role,
    /// Bytes that are touched at most (KV: unknown before the pool is made, 0).
    pub max_bytes: Bytes,
}

impl Binding {
    /// Bindings of a segment in the usual order: inputs, outputs, KV layers.
    pub fn of_segment(
        graph: &LayerGraph,
        segment: &Segment,
        bucket: Bucket,
        kv_layers: &[usize],
    ) -> Vec<Self> {
        let tensor =
            |role, node| Self { role, max_bytes: Bytes::from(bucket.tensor_bytes(graph, node)) };
        let inputs = segment.inputs.iter().map(|&node| tensor(Role::Input(node), node));
        let outputs = segment.outputs.iter().map(|&node| tensor(Role::Output(node), node));
        let kv = kv_layers.iter().map(|&layer| Self { role: Role::Kv(layer), max_bytes: Bytes(0) });
        inputs.chain(outputs).chain(kv).collect()
    }
}

/// A segment compiled for a device and a bucket.
pub trait Program: Debug + Send + Sync {
    /// What must be bound, in the order of the arguments.
    fn bindings(&self) -> &[Binding];
    /// Memory it holds for itself.
    fn scratch(&self) -> Bytes;
    /// Bytes that [`crate::Work::LoadWeights`] copies; 0 where its weights are kept.
    fn streamed(&self) -> Bytes {
        Bytes(0)
    }
    /// For the backend's own use.
    fn as_any(&self) -> &dyn std::any::Any;
}

/// What a buffer is for: the memory manager names it when memory runs out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// A tensor between segments.
    Activations,
    /// Pages of a KV layer.
    Kv,
    /// A program's own memory.
    Scratch,
    /// A copy of weights.
    Weights,
}

impl Purpose {
    /// Name under which the memory manager lists what is held for it.
    pub fn holder(self) -> &'static str {
        match self {
            Self::Activations => "activations",
            Self::Kv => "KV cache",
            Self::Scratch => "scratch",
            Self::Weights => "weights",
        }
    }
}

/// A request for memory.
#[derive(Clone, Copy, Debug)]
pub struct AllocRequest {
    /// Domain it must lie in.
    pub domain: DomainId,
    /// Size.
    pub bytes: usize,
    /// What for.
    pub purpose: Purpose,
}

/// A compile under way: its limit, and the caller's wish to stop it.
#[derive(Clone, Debug, Default)]
pub struct Job {
    /// Time allowed.
    pub limit: Option<Nanos>,
    cancelled: Arc<AtomicBool>,
}

impl Job {
    /// Asks the compile to stop.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Was it asked to stop?
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

/// A device's live readings; what cannot be read is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    /// Share of time busy with trefoil's work, 0 to 1.
    pub busy: Option<f64>,
    /// Time that went into trefoil's work so far; it only grows.
    pub busy_time: Option<Nanos>,
    /// Power in watts.
    pub watts: Option<f64>,
    /// Core clock in hertz.
    pub clock_hertz: Option<f64>,
    /// Free memory.
    pub free: Option<Bytes>,
}

/// One place where work can run. All that a backend implements.
pub trait Device: Debug + Send + Sync {
    /// Who it is.
    fn info(&self) -> &DeviceInfo;
    /// Domains it can address; the first is where its own data goes. Fixed for life.
    fn domains(&self) -> &[DomainInfo];
    /// How bytes get from one domain to another by this device.
    fn link(&self, from: DomainId, to: DomainId) -> Link;
    /// What it can take.
    fn limits(&self) -> &Limits;
    /// Can it run this op? Pure and cheap.
    fn support(&self, query: &OpQuery<'_>) -> Support;
    /// Makes a program. May take minutes on some devices; off the hot path.
    fn compile(
        &self,
        graph: &Arc<LayerGraph>,
        segment: &Segment,
        bucket: Bucket,
        job: &Job,
    ) -> Result<Arc<dyn Program>, CompileError>;
    /// Makes a program whose weights are not kept: [`crate::Work::LoadWeights`] copies them from host
    /// memory to `stage`, a buffer of this device with room for [`streamed_bytes`], before each run.
    /// Fences keep what else uses the buffer apart.
    ///
    /// # Errors
    /// As [`Device::compile`]; devices that read weights in place have nothing to stream.
    fn compile_streamed(
        &self,
        graph: &Arc<LayerGraph>,
        segment: &Segment,
        bucket: Bucket,
        stage: &Buffer,
        job: &Job,
    ) -> Result<Arc<dyn Program>, CompileError> {
        let _ = (graph, segment, bucket, stage, job);
        Err(CompileError::Device(DeviceError::BadRequest {
            what: format!("streamed weights on {}", self.info().name),
            expected: "a device with memory of its own that weights can be streamed to".to_owned(),
            got: "one that cannot; take the units out of the plan's \"streamed\"".to_owned(),
        }))
    }
    /// Takes memory.
    fn alloc(&self, request: AllocRequest) -> Result<Buffer, DeviceError>;
    /// Makes memory of another domain addressable without a copy.
    fn import(&self, foreign: &Buffer) -> Result<Buffer, DeviceError>;
    /// Queues work and returns at once.
    fn submit(&self, queue: usize, work: Submission) -> Result<SubmissionId, DeviceError>;
    /// Moves the records of finished work to `out`. Never blocks.
    fn drain(&self, out: &mut Vec<Completion>) -> Dropped;
    /// Work is going to come again and again within this time, with pauses in between: where the
    /// processor would sink to low clocks in them and is slower for it then, it is kept from that. Costs
    /// power; a hint, which most devices pass over.
    fn keep_awake(&self, _time: Duration) {}
    /// Live readings.
    fn sample(&self) -> Sample;
    /// Begins a new epoch after a loss: older handles are dead.
    fn reset(&self) -> Result<(), DeviceError>;
}

/// Boundary on which streamed weights begin in their buffer.
const STREAM_ALIGNMENT: usize = 256;

/// Bytes of a buffer that a segment's weights can be streamed through: each on a boundary of its own.
pub fn streamed_bytes(graph: &LayerGraph, segment: &Segment) -> usize {
    let weights = segment.nodes.iter().flat_map(|&node| graph.node(node).op.weights());
    let bytes = weights.map(|weight| weight.len_bytes().next_multiple_of(STREAM_ALIGNMENT));
    bytes.sum::<usize>() + STREAM_ALIGNMENT
}

/// What every backend checks before it compiles: the job goes on, and each op is supported.
pub fn check_segment(
    device: &dyn Device,
    graph: &LayerGraph,
    segment: &Segment,
    bucket: Bucket,
    job: &Job,
) -> Result<(), CompileError> {
    if job.is_cancelled() {
        return Err(CompileError::Stopped { after: Nanos(0), why: "cancelled".to_owned() });
    }
    for &node in &segment.nodes {
        if let Support::No(reason) = device.support(&OpQuery { graph, node, bucket }) {
            let node = graph.node(node);
            let (op, kind) = (node.name.clone(), node.op.kind());
            return Err(CompileError::Unsupported { op, kind, reason });
        }
    }
    Ok(())
}
