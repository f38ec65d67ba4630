use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use trefoil_devices_api::{
    AllocRequest, Binding, Bucket, Buffer, CompileError, Completion, Device, DeviceError,
    DeviceInfo, DomainId, DomainInfo, Dropped, Job, Limits, Link, LostReason, MemoryManager,
    OpQuery, Program, Purpose, Role, Sample, Submission, SubmissionId, Support, WorkQueue,
    check_segment,
};
use trefoil_graph::{LayerGraph, Segment};
use trefoil_kernels::host::{HostKernels, HostProgram, HostScratch};
use trefoil_telemetry::{Bytes, Clock, Nanos, host_memory};

use crate::worker::HostWorker;

/// What makes one host device differ from another.
pub struct HostDeviceSpec {
    /// Who it is.
    pub info: DeviceInfo,
    /// Its kernels; made once, used by the queue's thread.
    pub kernels: Box<dyn HostKernels>,
    /// Which ops it takes.
    pub support: fn(&OpQuery<'_>) -> Support,
    /// Budgets of host memory.
    pub memory: MemoryManager,
    /// Time of completions.
    pub clock: Arc<dyn Clock>,
}

/// A device whose memory is host memory.
#[derive(Debug)]
pub struct HostDevice {
    info: DeviceInfo,
    domains: [DomainInfo; 1],
    limits: Limits,
    support: fn(&OpQuery<'_>) -> Support,
    memory: MemoryManager,
    queue: WorkQueue,
    busy: Mutex<BusyMeter>,
    next: AtomicU64,
}

#[derive(Debug, Default)]
struct BusyMeter {
    at: Nanos,
    busy: Nanos,
}

impl HostDevice {
    /// Starts the device's queue thread.
    pub fn new(spec: HostDeviceSpec) -> Self {
        let size = host_memory().total;
        let kernels = spec.kernels;
        let queue = WorkQueue::start(&spec.info.name, spec.clock, move || HostWorker {
            kernels,
            scratch: HostScratch::default(),
        });
        Self {
            info: spec.info,
            domains: [DomainInfo { id: DomainId::HOST, size, alignment: 64, host_visible: true }],
            limits: Limits { queues: 1, submission: None, buffer: None },
            support: spec.support,
            memory: spec.memory,
            queue,
            busy: Mutex::default(),
            next: AtomicU64::new(1),
        }
    }
}

/// A host program with its bindings.
#[derive(Debug)]
pub(crate) struct HostSegment {
    pub(crate) program: HostProgram,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    bindings: Vec<Binding>,
}

impl Program for HostSegment {
    fn bindings(&self) -> &[Binding] {
        &self.bindings
    }

    fn scratch(&self) -> Bytes {
        Bytes(self.program.scratch_bytes())
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

impl Device for HostDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn domains(&self) -> &[DomainInfo] {
        &self.domains
    }

    fn link(&self, from: DomainId, to: DomainId) -> Link {
        if from == DomainId::HOST && to == DomainId::HOST { Link::Native } else { Link::Never }
    }

    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn support(&self, query: &OpQuery<'_>) -> Support {
        (self.support)(query)
    }

    fn compile(
        &self,
        graph: &Arc<LayerGraph>,
        segment: &Segment,
        bucket: Bucket,
        job: &Job,
    ) -> Result<Arc<dyn Program>, CompileError> {
        check_segment(self, graph, segment, bucket, job)?;
        let program = HostProgram::new(graph, segment, |rows| bucket.max_rows(rows));
        let tensor_bytes = |node| Bytes::from(bucket.tensor_bytes(graph, node));
        let inputs = segment.inputs.iter().map(|&node| (Role::Input(node), tensor_bytes(node)));
        let outputs = segment.outputs.iter().map(|&node| (Role::Output(node), tensor_bytes(node)));
        let kv = program.kv_layers().iter().map(|&layer| (Role::Kv(layer), Bytes(0)));
        let bindings = inputs
            .chain(outputs)
            .chain(kv)
            .map(|(role, max_bytes)| Binding { role, max_bytes })
            .collect();
        Ok(Arc::new(HostSegment {
            inputs: segment.inputs.len(),
            outputs: segment.outputs.len(),
            program,
            bindings,
        }))
    }

    fn alloc(&self, request: AllocRequest) -> Result<Buffer, DeviceError> {
        if request.domain != DomainId::HOST {
            return Err(DeviceError::BadRequest {
                what: format!("memory for {}", self.info.name),
                expected: DomainId::HOST.to_string(),
                got: request.domain.to_string(),
            });
        }
        let holder = match request.purpose {
            Purpose::Activations => "activations",
            Purpose::Kv => "KV cache",
            Purpose::Scratch => "scratch",
            Purpose::Weights => "weights",
        };
        self.memory.host_buffer(request.bytes, holder)
    }

    fn import(&self, foreign: &Buffer) -> Result<Buffer, DeviceError> {
        foreign.read().map(|_| foreign.clone())
    }

    fn submit(&self, queue: usize, work: Submission) -> Result<SubmissionId, DeviceError> {
        if queue != 0 {
            return Err(DeviceError::BadRequest {
                what: format!("queue of {}", self.info.name),
                expected: "0".to_owned(),
                got: queue.to_string(),
            });
        }
        let id = SubmissionId(self.next.fetch_add(1, Ordering::Relaxed));
        self.queue.push(id, work)?;
        Ok(id)
    }

    fn drain(&self, out: &mut Vec<Completion>) -> Dropped {
        self.queue.drain(out)
    }

    fn sample(&self) -> Sample {
        let (now, busy) = self.queue.busy();
        let mut last = self.busy.lock();
        let span = now.since(last.at);
        let share = busy.since(last.busy).seconds() / span.seconds();
        *last = BusyMeter { at: now, busy };
        Sample {
            busy: (span.0 > 0).then_some(share.clamp(0.0, 1.0)),
            free: host_memory().available,
            ..Sample::default()
        }
    }

    fn reset(&self) -> Result<(), DeviceError> {
        if self.queue.is_alive() {
            return Ok(());
        }
        Err(DeviceError::Lost { reason: LostReason::Panicked, epoch: 0 })
    }
}
