//! The trait that a backend implements, and the plain data that crosses it.

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use trefoil_graph::{KvShape, LayerGraph, NodeIndex, Rows, Segment, StepInputs};
use trefoil_telemetry::{Bytes, Nanos};

use crate::{Buffer, BufferRef, CompileError, DeviceError, DomainId, DomainInfo, Point};

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
    /// Number of the queue for [`Work::LoadWeights`], which runs beside the others; absent where the
    /// device streams no weights.
    pub load_queue: Option<usize>,
    /// Longest time one submission may run.
    pub submission: Option<Nanos>,
    /// Largest buffer that a program can bind.
    pub buffer: Option<Bytes>,
    /// Most elements of a row that [`Work::Largest`] finds; 0 where the device does not take it.
    pub largest: usize,
}

/// An element of a row: its place and its value.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Candidate {
    /// Place in the row.
    pub id: u32,
    /// Value.
    pub value: f32,
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
    /// Bytes that [`Work::LoadWeights`] copies; 0 where its weights are kept.
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

/// Arguments of a program, recorded once and used in every step.
#[derive(Debug)]
pub struct RunArgs {
    /// One view per binding, in the program's order.
    pub buffers: Vec<BufferRef>,
    /// Layout of the KV pages behind [`Role::Kv`] bindings.
    pub kv: KvPages,
}

/// Layout of KV pages: page `p` of a layer holds its keys, then its values, each as
/// `[kv_heads][page_tokens][head_dim]`.
#[derive(Clone, Debug, Default)]
pub struct KvPages {
    /// Tokens per page (power of two).
    pub page_tokens: usize,
    /// Pages per layer.
    pub pages: usize,
    /// Is each element an f16 (else f32)?
    pub half: bool,
    /// Heads and their width, by layer.
    pub shapes: Vec<KvShape>,
}

/// What a submission does.
#[derive(Clone, Debug)]
pub enum Work {
    /// Runs a program on the rows of a step.
    Run {
        /// The program; made by this device.
        program: Arc<dyn Program>,
        /// Its arguments.
        args: Arc<RunArgs>,
        /// The rows.
        step: Arc<StepInputs>,
    },
    /// Copies bytes between buffers of equal length.
    Copy {
        /// Source.
        from: BufferRef,
        /// Target.
        to: BufferRef,
    },
    /// Copies pages between buffers of the same layout, each to its own place.
    CopyPages {
        /// Source.
        from: Buffer,
        /// Target.
        to: Buffer,
        /// Bytes of a page.
        page_bytes: usize,
        /// Numbers of the pages.
        runs: Arc<[Range<u32>]>,
    },
    /// Copies rows that lie next to each other to columns of a wider tensor.
    CopyColumns {
        /// Source: whole rows.
        from: BufferRef,
        /// Target.
        to: Buffer,
        /// Where the columns are.
        columns: Columns,
    },
    /// Finds the largest elements of each row of f32, so that the rest need not leave the device.
    Largest {
        /// Whole rows, in the device's own memory.
        from: BufferRef,
        /// Elements of a row.
        width: usize,
        /// How many of each row are wanted: at most [`Limits::largest`], and no more than it has.
        count: usize,
        /// [`Candidate`]s in host memory, `count` for each row: the largest first, the lower place first
        /// among equals.
        to: BufferRef,
    },
    /// Copies the weights of a program that [`Device::compile_streamed`] made to where it reads them.
    /// Goes to the device's queue for that ([`Limits::load_queue`]).
    LoadWeights {
        /// The program; made by this device.
        program: Arc<dyn Program>,
    },
    /// Nothing: orders fences.
    Barrier,
}

/// Columns of a tensor, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Columns {
    /// Bytes of the columns in one row.
    pub width: usize,
    /// Bytes of a row of the tensor.
    pub row: usize,
    /// Bytes before the first of the columns.
    pub offset: usize,
}

impl Work {
    /// Source and target, in bytes from their buffers' begin, of each row of a [`Work::CopyColumns`].
    ///
    /// # Errors
    /// Rows that are not whole, or columns that leave their row or the target.
    pub fn column_ranges(
        from: &BufferRef,
        to: &Buffer,
        columns: Columns,
    ) -> Result<impl Iterator<Item = [Range<usize>; 2]> + use<>, DeviceError> {
        let Columns { width, row, offset } = columns;
        let rows = from.range.len() / width.max(1);
        let inside = offset.checked_add(width).is_some_and(|end| end <= row);
        let whole = rows * width == from.range.len();
        let fits = row.checked_mul(rows).is_some_and(|end| end <= to.len);
        if !(inside && whole && fits) {
            return Err(DeviceError::BadRequest {
                what: "copy of columns".to_owned(),
                expected: format!("whole rows of {width} bytes within {row} and {} bytes", to.len),
                got: format!("{} bytes to offset {offset}", from.range.len()),
            });
        }
        let start = from.range.start;
        Ok((0..rows).map(move |index| {
            let (source, target) = (start + index * width, index * row + offset);
            [source..source + width, target..target + width]
        }))
    }

    /// Source and target of each run of pages of a [`Work::CopyPages`]; an error where one leaves its
    /// buffer.
    pub fn page_views(
        from: &Buffer,
        to: &Buffer,
        page_bytes: usize,
        runs: &[Range<u32>],
    ) -> impl Iterator<Item = Result<[BufferRef; 2], DeviceError>> {
        runs.iter().map(move |run| {
            let at = |page: u32| (page as usize).saturating_mul(page_bytes);
            let bytes = at(run.start)..at(run.end);
            Ok([from.view(bytes.clone())?, to.view(bytes)?])
        })
    }
}

/// A few points, kept without memory of their own.
pub type Points = smallvec::SmallVec<[Point; 4]>;

/// Work for a queue. Queues run their submissions in order.
#[derive(Clone, Debug)]
pub struct Submission {
    /// Points that must be reached first.
    pub waits: Points,
    /// Points that this reaches, or fails.
    pub signals: Points,
    /// What to do.
    pub work: Work,
    /// Reaches traces and errors: `decode blk.0.attn_in..head`.
    pub label: Arc<str>,
}

/// Identity of a submission on its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubmissionId(pub u64);

/// Finished work.
#[derive(Clone, Debug)]
pub struct Completion {
    /// Which.
    pub id: SubmissionId,
    /// Its label.
    pub label: Arc<str>,
    /// When it was submitted, by the clock that the device was made with.
    pub queued: Nanos,
    /// When it began, by the same clock: its waits were reached and the device was free.
    pub start: Nanos,
    /// When it ended, by the same clock.
    pub end: Nanos,
    /// Time that it took by the processor's own clock, without the way there and back; absent where
    /// it has none, and for work that is not measured by it.
    pub device_time: Option<Nanos>,
}

/// Number of completions that were thrown away because nobody drained them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped(pub u64);

/// A device's live readings; what cannot be read is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    /// Share of time busy with trefoil's work, 0 to 1.
    pub busy: Option<f64>,
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
    /// Makes a program whose weights are not kept: [`Work::LoadWeights`] copies them from host memory
    /// to `stage`, a buffer of this device with room for [`streamed_bytes`], before each run. Fences
    /// keep what else uses the buffer apart.
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
