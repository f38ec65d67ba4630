use std::sync::Arc;

use trefoil_devices_api::{
    AllocRequest, Binding, Bucket, Buffer, CompileError, Completion, Device, DeviceError,
    DeviceInfo, DomainId, DomainInfo, Dropped, Job, Limits, Link, LostReason, MemoryManager,
    OpQuery, Program, Sample, Submission, SubmissionId, Support, WorkQueue, check_segment,
};
use trefoil_graph::{LayerGraph, Segment};
use trefoil_kernels::host::{HostKernels, HostProgram, HostScratch};
use trefoil_telemetry::{Bytes, Clock, host_memory};

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
            limits: Limits {
                queues: 1,
                load_queue: None,
                submission: None,
                buffer: None,
                largest: 0,
            },
            support: spec.support,
            memory: spec.memory,
            queue,
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
        let bindings = Binding::of_segment(graph, segment, bucket, program.kv_layers());
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
        self.memory.host_buffer(request.bytes, request.purpose.holder())
    }

    fn import(&self, foreign: &Buffer) -> Result<Buffer, DeviceError> {
        foreign.read().map(|_| foreign.clone())
    }

    fn submit(&self, queue: usize, work: Submission) -> Result<SubmissionId, DeviceError> {
        self.queue.submit(queue, work)
    }

    fn drain(&self, out: &mut Vec<Completion>) -> Dropped {
        self.queue.drain(out)
    }

    fn sample(&self) -> Sample {
        let (busy, free) = (self.queue.load(), host_memory().available);
        Sample { busy, free, ..Sample::default() }
    }

    fn reset(&self) -> Result<(), DeviceError> {
        if self.queue.is_alive() {
            return Ok(());
        }
        Err(DeviceError::Lost { reason: LostReason::Panicked, epoch: 0 })
    }
}
