use std::sync::Arc;

use trefoil_devices_api::{
    AllocRequest, Binding, Bucket, Buffer, CompileError, Completion, Device, DeviceError,
    DeviceInfo, DomainId, DomainInfo, Dropped, Job, Limits, Link, MemoryManager, OpQuery, Program,
    Sample, Submission, SubmissionId, Support, WorkQueue, check_segment,
};
use trefoil_graph::{LayerGraph, Segment};
use trefoil_kernels::host::{HostKernels, HostProgram, HostScratch};
use trefoil_telemetry::{Bytes, Clock};

use crate::side::HostSide;
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
    support: fn(&OpQuery<'_>) -> Support,
    side: HostSide,
}

impl HostDevice {
    /// Starts the device's queue thread.
    pub fn new(spec: HostDeviceSpec) -> Self {
        let kernels = spec.kernels;
        let queue = WorkQueue::start(&spec.info.name, spec.clock, move || HostWorker {
            kernels,
            scratch: HostScratch::default(),
        });
        let side = HostSide::new(&spec.info.name, spec.memory, queue);
        Self { info: spec.info, support: spec.support, side }
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
        self.side.domains()
    }

    fn link(&self, from: DomainId, to: DomainId) -> Link {
        self.side.link(from, to)
    }

    fn limits(&self) -> &Limits {
        self.side.limits()
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
        self.side.alloc(request)
    }

    fn import(&self, foreign: &Buffer) -> Result<Buffer, DeviceError> {
        self.side.import(foreign)
    }

    fn submit(&self, queue: usize, work: Submission) -> Result<SubmissionId, DeviceError> {
        self.side.submit(queue, work)
    }

    fn drain(&self, out: &mut Vec<Completion>) -> Dropped {
        self.side.drain(out)
    }

    fn sample(&self) -> Sample {
        self.side.sample()
    }

    fn reset(&self) -> Result<(), DeviceError> {
        self.side.reset()
    }
}
