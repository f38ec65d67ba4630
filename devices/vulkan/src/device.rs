//! The device contract over Vulkan.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use trefoil_devices_api::{
    AllocRequest, Backing, Binding, Bucket, Buffer, CompileError, Completion, Device, DeviceError,
    DeviceInfo, DeviceKind, DomainId, DomainInfo, Dropped, Job, Limits, Link, LostReason,
    MemoryManager, OpQuery, Phase, Program, Sample, Submission, SubmissionId, Support, WorkQueue,
    check_segment,
};
use trefoil_graph::ops::RopeTable;
use trefoil_graph::{LayerGraph, Segment};
use trefoil_kernels_vulkan::{
    Counts, Features, Form, MOST_CANDIDATES, Program as Kernels, SPLIT, Tuning, Turns, supported,
    tables,
};
use trefoil_telemetry::{Bytes, Clock, Nanos};

use crate::adapter::{Adapter, AdapterKind};
use crate::awake::Keeper;
use crate::context::Context;
use crate::loader::Loader;
use crate::memory::Allocation;
use crate::pipelines::Pipelines;
use crate::program::VulkanSegment;
use crate::transfer::Transfers;
use crate::weights::{Residency, Stream};
use crate::worker::{VulkanWorker, WorkerState, scratch_bytes};

/// How a device is opened.
#[derive(Clone, Debug)]
pub struct VulkanOptions {
    /// Its name: `gpu0`.
    pub name: String,
    /// Domain of its own memory, where it has any.
    pub domain: DomainId,
    /// Compute products in f32 where halves would be faster.
    pub exact: bool,
    /// Folder for compiled kernels.
    pub cache: Option<PathBuf>,
    /// Most bytes of its own memory to use; `None`: what the driver says is free.
    pub memory_limit: Option<Bytes>,
    /// Sizes of workgroups and tiles.
    pub tuning: Tuning,
    /// Largest piece of a weight in one buffer, below the device's own limit (for tests).
    pub max_part: Option<u64>,
    /// May it be kept awake ([`Device::keep_awake`])? `None`: if it is a card of its own.
    pub keep_awake: Option<bool>,
    /// Once true, every submission ends as if the driver had said that the device is lost (for
    /// tests of what follows).
    pub fault: Option<Arc<AtomicBool>>,
}

/// Rows and columns of the cooperative matrices that kernels use: AMD and NVIDIA have this shape.
const EDGE: u32 = 16;
/// Number of the queue that streams weights.
const LOAD_QUEUE: usize = 1;
/// Share of a card's memory that is used where the driver does not tell how much is free.
const SHARE: f64 = 0.9;
/// Tokens of context that scratch memory is taken for; more take more when they are there.
const USUAL_CONTEXT: u32 = 8192;
/// Copies over the bus, before anything is measured: PCIe 4.0 x16, half of its 32 GB/s.
const BUS_BYTES_PER_SECOND: f64 = 16e9;
/// Start of a copy: a submission and its wait.
const BUS_LATENCY: Nanos = Nanos(20_000);

#[derive(Debug)]
struct VulkanDevice {
    info: DeviceInfo,
    domains: Vec<DomainInfo>,
    limits: Limits,
    features: Features,
    exact: bool,
    memory: MemoryManager,
    // The queue's thread ends before what it uses is dropped.
    queue: WorkQueue,
    /// Keeps it awake between pieces of work, if that is of use.
    keeper: Option<Keeper>,
    /// Streams weights to memory of its own.
    loader: Option<WorkQueue>,
    residency: Residency,
    turns: Mutex<Vec<(Weak<RopeTable>, Weak<Allocation>)>>,
    tables: Arc<Allocation>,
    /// Most scratch memory that a compiled program needs.
    most_scratch: Arc<AtomicU64>,
    transfers: Arc<Transfers>,
    context: Arc<Context>,
}

/// Opens an adapter.
pub fn device(
    adapter: Adapter,
    options: VulkanOptions,
    memory: MemoryManager,
    clock: Arc<dyn Clock>,
) -> Result<Arc<dyn Device>, DeviceError> {
    if !adapter.missing.is_empty() {
        return Err(DeviceError::BadRequest {
            what: format!("{} ({})", adapter.name, adapter.driver),
            expected: "a driver with all that the kernels need".to_owned(),
            got: format!("none of: {}; a newer driver may help", adapter.missing.join(", ")),
        });
    }
    let shared = adapter.shares_memory();
    let domain = if shared { DomainId::HOST } else { options.domain };
    let context = Context::open(adapter, domain, options.fault.clone())?;
    let adapter = &context.adapter;
    let budget = (!shared).then(|| {
        let free = context.budget().map(|(budget, _)| budget);
        let share = Bytes((adapter.memory.0 as f64 * SHARE) as u64);
        options.memory_limit.or(free).unwrap_or(share).min(adapter.memory)
    });
    if let Some(budget) = budget {
        memory.set_budget(domain, budget);
    }
    let own = DomainInfo { id: domain, size: budget, alignment: 64, host_visible: shared };
    let max_buffer = adapter.max_buffer;
    let max_part = options.max_part.unwrap_or(u64::MAX).min(max_buffer / 2);
    let features = Features {
        subgroup: adapter.subgroup.0,
        shared_bytes: adapter.shared_bytes,
        max_threads: adapter.max_threads,
        matrices: adapter
            .matrices
            .iter()
            .any(|m| (m.m, m.n, m.k) == (EDGE, EDGE, EDGE))
            .then_some(EDGE),
        // Software has no such instruction, and takes the same path as the GPU that it plays.
        integer_dot: adapter.dot_product
            && (adapter.integer_dot || adapter.kind == AdapterKind::Software),
        tuning: options.tuning,
        max_part: usize::try_from(max_part).unwrap_or(usize::MAX),
    };
    let info = DeviceInfo {
        name: options.name,
        kind: DeviceKind::Gpu,
        product: format!("{} (Vulkan {})", adapter.name, adapter.api),
        uuid: adapter.uuid.clone(),
        driver: adapter.driver.clone(),
        kernel_set: format!("{}{}", crate::KERNEL_SET, if options.exact { "-f32" } else { "" }),
        only_when_named: adapter.kind == AdapterKind::Software,
    };
    let transfers = Arc::new(Transfers::new(&context));
    let table_bytes = tables();
    let tables = transfers.local(table_bytes.len() as u64, None)?;
    transfers.upload(&tables, 0, &table_bytes)?;
    let pipelines = Arc::new(Pipelines::new(&context, options.cache)?);
    let most_scratch = Arc::new(AtomicU64::new(0));
    // Clocks of a part of the processor take from the processor's own.
    let keep_awake = options.keep_awake.unwrap_or(adapter.kind == AdapterKind::Discrete);
    let keeper = keep_awake.then(|| Keeper::start(&context, &pipelines)).transpose()?;
    let worker = VulkanWorker {
        context: context.clone(),
        pipelines,
        wakefulness: keeper.as_ref().map(|keeper| keeper.shared().clone()),
        transfers: transfers.clone(),
        memory: memory.clone(),
        most_scratch: most_scratch.clone(),
        state: WorkerState::default(),
    };
    let queue = WorkQueue::start(&info.name, clock.clone(), move || worker);
    let loader = (!shared).then(|| {
        let loader = Loader { context: context.clone(), transfers: Transfers::new(&context) };
        WorkQueue::numbered(LOAD_QUEUE, &info.name, clock, move || loader)
    });
    Ok(Arc::new(VulkanDevice {
        info,
        domains: vec![own],
        limits: Limits {
            queues: 1 + usize::from(loader.is_some()),
            load_queue: loader.as_ref().map(|_| LOAD_QUEUE),
            submission: None,
            buffer: Some(Bytes(max_buffer)),
            largest: MOST_CANDIDATES,
        },
        features,
        exact: options.exact,
        memory,
        queue,
        keeper,
        loader,
        residency: Residency::default(),
        turns: Mutex::default(),
        tables: Arc::new(tables),
        most_scratch,
        transfers,
        context,
    }))
}

impl VulkanDevice {
    fn domain(&self) -> DomainId {
        self.domains[0].id
    }

    /// Cosines and sines of a table, made once while any program uses them.
    fn turns(&self, table: &Arc<RopeTable>) -> Result<Arc<Allocation>, DeviceError> {
        let mut turns = self.turns.lock();
        turns.retain(|(_, made)| made.strong_count() > 0);
        let known =
            turns.iter().find(|(known, _)| std::ptr::eq(known.as_ptr(), Arc::as_ptr(table)));
        if let Some(allocation) = known.and_then(|(_, made)| made.upgrade()) {
            return Ok(allocation);
        }
        let allocation = Arc::new(self.filled(bytemuck::cast_slice(&Turns::of(table)))?);
        turns.push((Arc::downgrade(table), Arc::downgrade(&allocation)));
        Ok(allocation)
    }

    /// Device memory with these bytes.
    fn filled(&self, bytes: &[u8]) -> Result<Allocation, DeviceError> {
        let len = Bytes::from(bytes.len());
        let reservation = self.memory.reserve(self.domain(), len, "vectors")?;
        let allocation = self.transfers.local(bytes.len() as u64, Some(reservation))?;
        self.transfers.upload(&allocation, 0, bytes)?;
        Ok(allocation)
    }

    fn foreign_stage(&self, stage: &Buffer) -> DeviceError {
        DeviceError::BadRequest {
            what: format!("buffer for weights streamed to {}", self.info.name),
            expected: format!("memory of {}, which has its own", self.info.name),
            got: stage.domain.to_string(),
        }
    }

    /// A program whose weights are kept, or streamed through a buffer.
    fn made(
        &self,
        graph: &Arc<LayerGraph>,
        segment: &Segment,
        bucket: Bucket,
        stage: Option<Arc<Allocation>>,
        job: &Job,
    ) -> Result<Arc<dyn Program>, CompileError> {
        check_segment(self, graph, segment, bucket, job)?;
        let form = Form { steady: bucket.phase == Phase::Decode, exact: self.exact };
        let max_rows = |rows| bucket.max_rows(rows);
        let kernels = Kernels::new(graph, segment, max_rows, self.features, form);
        let counts = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let largest = Counts {
            tokens: counts(bucket.max_tokens),
            outputs: counts(bucket.max_outputs),
            sequences: counts(bucket.max_outputs),
            splits: USUAL_CONTEXT.div_ceil(SPLIT).next_power_of_two(),
            page_tokens: 16,
            half: true,
        };
        self.most_scratch.fetch_max(scratch_bytes(&kernels, &largest), Ordering::Relaxed);
        let (stream, weights) = match stage {
            Some(stage) => {
                let (stream, weights) = Stream::new(stage, kernels.weights())?;
                (Some(stream), weights)
            }
            None => {
                let (context, memory) = (&self.context, &self.memory);
                let weights = kernels.weights();
                (None, self.residency.resident(context, memory, &self.transfers, weights)?)
            }
        };
        let mut constants: Vec<u8> = bytemuck::cast_slice(kernels.constants()).to_vec();
        let mut lists = Vec::with_capacity(kernels.lists().len());
        for list in kernels.lists() {
            constants.resize(constants.len().next_multiple_of(16), 0);
            lists.push(constants.len() as u64);
            let addresses = list.iter().flat_map(|&k| weights.addresses[k].to_le_bytes());
            constants.extend(addresses);
        }
        let turns =
            kernels.turns().iter().map(|table| self.turns(table)).collect::<Result<_, _>>()?;
        let bindings = Binding::of_segment(graph, segment, bucket, kernels.kv_layers());
        Ok(Arc::new(VulkanSegment {
            constants: self.filled(&constants)?,
            lists,
            weights,
            stream,
            turns,
            tables: self.tables.clone(),
            recordings: Mutex::default(),
            inputs: segment.inputs.len(),
            outputs: segment.outputs.len(),
            bindings,
            kernels,
        }))
    }
}

impl Device for VulkanDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn domains(&self) -> &[DomainInfo] {
        &self.domains
    }

    fn link(&self, from: DomainId, to: DomainId) -> Link {
        let own = self.domain();
        match (from, to) {
            (from, to) if from == own && to == own => Link::Native,
            (from, to)
                if [from, to] == [own, DomainId::HOST] || [from, to] == [DomainId::HOST, own] =>
            {
                Link::Copy { bytes_per_second: BUS_BYTES_PER_SECOND, latency: BUS_LATENCY }
            }
            _ => Link::Never,
        }
    }

    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn support(&self, query: &OpQuery<'_>) -> Support {
        match supported(&query.graph.node(query.node).op, &self.features) {
            Ok(()) => Support::Native,
            Err(reason) => Support::No(reason),
        }
    }

    fn compile(
        &self,
        graph: &Arc<LayerGraph>,
        segment: &Segment,
        bucket: Bucket,
        job: &Job,
    ) -> Result<Arc<dyn Program>, CompileError> {
        self.made(graph, segment, bucket, None, job)
    }

    fn compile_streamed(
        &self,
        graph: &Arc<LayerGraph>,
        segment: &Segment,
        bucket: Bucket,
        stage: &Buffer,
        job: &Job,
    ) -> Result<Arc<dyn Program>, CompileError> {
        let handle = match stage.backing() {
            Backing::Device(handle) if self.loader.is_some() => handle.clone(),
            _ => return Err(self.foreign_stage(stage).into()),
        };
        let stage = handle.downcast::<Allocation>().map_err(|_| self.foreign_stage(stage))?;
        self.made(graph, segment, bucket, Some(stage), job)
    }

    fn alloc(&self, request: AllocRequest) -> Result<Buffer, DeviceError> {
        let own = self.domain();
        if request.domain != own {
            return Err(DeviceError::BadRequest {
                what: format!("memory for {}", self.info.name),
                expected: own.to_string(),
                got: request.domain.to_string(),
            });
        }
        if own == DomainId::HOST {
            return self.memory.host_buffer(request.bytes, request.purpose.holder());
        }
        let len = Bytes::from(request.bytes);
        let reservation = self.memory.reserve(own, len, request.purpose.holder())?;
        let allocation = self.transfers.local(len.0, None)?;
        // As host memory is: what nobody wrote must not be a number that spoils sums, such as NaN.
        self.transfers.zero(&allocation)?;
        let backing = Backing::Device(Arc::new(allocation));
        Ok(Buffer::new(own, request.bytes, backing, Some(reservation)))
    }

    fn import(&self, foreign: &Buffer) -> Result<Buffer, DeviceError> {
        if foreign.domain == self.domain() {
            return Ok(foreign.clone());
        }
        Err(DeviceError::BadRequest {
            what: format!("import to {}", self.info.name),
            expected: format!("a buffer in {}", self.domain()),
            got: foreign.domain.to_string(),
        })
    }

    fn submit(&self, queue: usize, work: Submission) -> Result<SubmissionId, DeviceError> {
        match &self.loader {
            Some(loader) if queue == LOAD_QUEUE => loader.submit(queue, work),
            _ => self.queue.submit(queue, work),
        }
    }

    fn drain(&self, out: &mut Vec<Completion>) -> Dropped {
        let Dropped(computed) = self.queue.drain(out);
        let loaded = self.loader.as_ref().map_or(0, |loader| loader.drain(out).0);
        Dropped(computed + loaded)
    }

    fn keep_awake(&self, time: Duration) {
        if let Some(keeper) = &self.keeper {
            keeper.shared().keep(time);
        }
    }

    fn sample(&self) -> Sample {
        let free = self.context.budget().map(|(all, used)| Bytes(all.0.saturating_sub(used.0)));
        let (busy, busy_time) = (self.queue.load(), Some(self.queue.busy()));
        Sample { busy, busy_time, free, ..Sample::default() }
    }

    fn reset(&self) -> Result<(), DeviceError> {
        self.context.check()?;
        if self.queue.is_alive() && self.loader.as_ref().is_none_or(WorkQueue::is_alive) {
            return Ok(());
        }
        Err(DeviceError::Lost { reason: LostReason::Panicked, epoch: 0 })
    }
}
