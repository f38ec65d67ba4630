//! Simulated devices: declared costs and a virtual clock. They compute nothing (outputs stay as they
//! are) and take no time. Work begins in simulated time when the last of what it waits for was reached
//! and the device has done what it was given before, so that devices work side by side wherever fences
//! let them; the clock shows the end of the latest work. Time that passes on the host is not simulated.
//!
//! Used by tests of plans and schedulers, only when named.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use trefoil_devices_api::{
    AllocRequest, Binding, Bucket, Buffer, CompileError, Completion, Device, DeviceError,
    DeviceInfo, DeviceKind, DomainId, DomainInfo, Dropped, Failure, Job, Limits, Link, LostReason,
    MemoryManager, OpQuery, Program, Role, Sample, Submission, SubmissionId, Support, Work,
    check_segment,
};
use trefoil_graph::{LayerGraph, Rows, Segment, StepShape};
use trefoil_telemetry::{Bytes, Clock, Nanos, VirtualClock};

/// What a simulated device costs.
#[derive(Clone, Debug)]
pub struct SimSpec {
    /// Name: `sim0` and so on.
    pub name: String,
    /// Products with weights per second.
    pub flops_per_second: f64,
    /// Bytes of memory per second.
    pub bytes_per_second: f64,
    /// Time to start a submission.
    pub launch: Nanos,
    /// Kinds of ops that it does not take, as [`trefoil_graph::ops::Op::kind`] names them.
    pub refuses: Vec<&'static str>,
    /// It is lost when it is given this submission (counted from 1).
    pub lost_at: Option<u64>,
}

impl SimSpec {
    /// A device that takes everything and is never lost.
    pub fn new(name: &str, flops_per_second: f64, bytes_per_second: f64, launch: Nanos) -> Self {
        let refuses = Vec::new();
        let name = name.to_owned();
        Self { name, flops_per_second, bytes_per_second, launch, refuses, lost_at: None }
    }
}

/// A simulated device.
#[derive(Debug)]
pub struct SimDevice {
    info: DeviceInfo,
    domains: [DomainInfo; 1],
    limits: Limits,
    spec: SimSpec,
    clock: Arc<VirtualClock>,
    memory: MemoryManager,
    state: Mutex<State>,
    next: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    /// When the device has done all it was given.
    free_at: Nanos,
    busy: Nanos,
    completions: Vec<Completion>,
    epoch: u64,
    lost: bool,
}

#[derive(Debug)]
struct SimProgram {
    graph: Arc<LayerGraph>,
    segment: Segment,
    bindings: Vec<Binding>,
}

impl Program for SimProgram {
    fn bindings(&self) -> &[Binding] {
        &self.bindings
    }

    fn scratch(&self) -> Bytes {
        Bytes(0)
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

impl SimDevice {
    /// A device of host memory on a virtual clock that several may share.
    pub fn new(spec: SimSpec, clock: Arc<VirtualClock>, memory: MemoryManager) -> Self {
        let domain =
            DomainInfo { id: DomainId::HOST, size: None, alignment: 64, host_visible: true };
        Self {
            info: DeviceInfo {
                name: spec.name.clone(),
                kind: DeviceKind::Simulated,
                product: "simulated device".to_owned(),
                uuid: format!("simulated-{}", spec.name),
                driver: env!("CARGO_PKG_VERSION").to_owned(),
                kernel_set: "1".to_owned(),
                only_when_named: true,
            },
            domains: [domain],
            limits: Limits {
                queues: 1,
                load_queue: None,
                submission: None,
                buffer: None,
                largest: 0,
            },
            spec,
            clock,
            memory,
            state: Mutex::default(),
            next: AtomicU64::new(0),
        }
    }

    /// Time that the work takes: the slower of arithmetic and memory, and the start.
    fn span(&self, work: &Work) -> Nanos {
        let (flops, bytes) = match work {
            Work::Barrier | Work::LoadWeights { .. } => (0.0, 0.0),
            Work::Copy { from, .. } => (0.0, 2.0 * from.range.len() as f64),
            Work::CopyColumns { from, .. } => (0.0, 2.0 * from.range.len() as f64),
            Work::Largest { from, .. } => (0.0, from.range.len() as f64),
            Work::CopyPages { page_bytes, runs, .. } => {
                let pages: usize = runs.iter().map(|run| run.len()).sum();
                (0.0, 2.0 * (pages * page_bytes) as f64)
            }
            Work::Run { program, step, .. } => {
                let Some(program) = program.as_any().downcast_ref::<SimProgram>() else {
                    return self.spec.launch;
                };
                let past = step.sequences.iter().map(|s| u64::from(s.past)).max().unwrap_or(0);
                let shape = StepShape {
                    tokens: step.count(Rows::Tokens) as u64,
                    past,
                    rows_out: step.count(Rows::Outputs) as u64,
                    sequences: step.count(Rows::Sequences) as u64,
                    kv_element_bytes: 2.0,
                };
                let nodes = program.segment.nodes.iter();
                let cost: trefoil_graph::ops::OpCost =
                    nodes.map(|&node| program.graph.node_cost(node, &shape)).sum();
                (cost.flops(), cost.bytes())
            }
        };
        let seconds = (flops / self.spec.flops_per_second).max(bytes / self.spec.bytes_per_second);
        Nanos(self.spec.launch.0 + (seconds * 1e9) as u64)
    }

    fn lost(&self, epoch: u64) -> DeviceError {
        DeviceError::Lost { reason: LostReason::Driver, epoch }
    }
}

impl Device for SimDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn domains(&self) -> &[DomainInfo] {
        &self.domains
    }

    fn link(&self, from: DomainId, to: DomainId) -> Link {
        if from == to { Link::Native } else { Link::Never }
    }

    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn support(&self, query: &OpQuery<'_>) -> Support {
        let kind = query.graph.node(query.node).op.kind();
        if self.spec.refuses.contains(&kind) {
            return Support::No(format!("{} is told to refuse {kind}", self.spec.name));
        }
        Support::Native
    }

    fn compile(
        &self,
        graph: &Arc<LayerGraph>,
        segment: &Segment,
        bucket: Bucket,
        job: &Job,
    ) -> Result<Arc<dyn Program>, CompileError> {
        check_segment(self, graph, segment, bucket, job)?;
        let bytes = |node| Bytes::from(bucket.tensor_bytes(graph, node));
        let inputs = segment.inputs.iter().map(|&n| (Role::Input(n), bytes(n)));
        let outputs = segment.outputs.iter().map(|&n| (Role::Output(n), bytes(n)));
        let kv = segment.nodes.iter().filter_map(|&node| graph.kv_layer(node));
        let kv = kv.map(|layer| (Role::Kv(layer), Bytes(0)));
        let bindings = inputs
            .chain(outputs)
            .chain(kv)
            .map(|(role, max_bytes)| Binding { role, max_bytes })
            .collect();
        Ok(Arc::new(SimProgram { graph: graph.clone(), segment: segment.clone(), bindings }))
    }

    fn alloc(&self, request: AllocRequest) -> Result<Buffer, DeviceError> {
        self.memory.host_buffer(request.bytes, &self.spec.name)
    }

    fn import(&self, foreign: &Buffer) -> Result<Buffer, DeviceError> {
        Ok(foreign.clone())
    }

    /// Simulated work ends at once in real time: the caller's waits must have been reached, which
    /// they have when all devices of a plan are simulated.
    fn submit(&self, queue: usize, work: Submission) -> Result<SubmissionId, DeviceError> {
        if queue != 0 {
            return Err(DeviceError::BadRequest {
                what: format!("queue of {}", self.info.name),
                expected: "0".to_owned(),
                got: queue.to_string(),
            });
        }
        let id = SubmissionId(self.next.fetch_add(1, Ordering::Relaxed) + 1);
        let span = self.span(&work.work);
        let mut state = self.state.lock();
        if state.lost {
            return Err(self.lost(state.epoch));
        }
        let upstream = work.waits.iter().find_map(|point| point.wait().err());
        if upstream.is_none() && self.spec.lost_at == Some(id.0) {
            state.lost = true;
        }
        let failure = match upstream {
            Some(cause) => Some(cause),
            None if state.lost => Some(Arc::new(Failure {
                origin: id,
                device: self.info.name.clone(),
                label: work.label.to_string(),
                error: self.lost(state.epoch),
            })),
            None => None,
        };
        if let Some(failure) = failure {
            work.signals.iter().for_each(|point| point.timeline.fail(failure.clone()));
            return Ok(id);
        }
        let reached = work.waits.iter().filter_map(|point| point.timeline.time_of(point.value));
        let start = reached.max().unwrap_or_default().max(state.free_at);
        let queued = self.clock.now().min(start);
        let end = Nanos(start.0 + span.0);
        state.free_at = end;
        state.busy = Nanos(state.busy.0 + span.0);
        let (label, device_time) = (work.label, Some(span));
        state.completions.push(Completion { id, label, queued, start, end, device_time });
        self.clock.advance_to(end);
        work.signals.iter().for_each(|point| point.timeline.signal_at(point.value, end));
        Ok(id)
    }

    fn drain(&self, out: &mut Vec<Completion>) -> Dropped {
        out.append(&mut self.state.lock().completions);
        Dropped(0)
    }

    fn sample(&self) -> Sample {
        let now = self.clock.now();
        let busy = self.state.lock().busy;
        let share = (now.0 > 0).then(|| busy.seconds() / now.seconds());
        Sample { busy: share, busy_time: Some(busy), ..Sample::default() }
    }

    fn reset(&self) -> Result<(), DeviceError> {
        let mut state = self.state.lock();
        state.epoch += 1;
        state.lost = false;
        Ok(())
    }
}
