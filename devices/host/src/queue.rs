use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};
use parking_lot::{Mutex, RwLockReadGuard, RwLockWriteGuard};
use smallvec::SmallVec;
use trefoil_devices_api::{
    AlignedBytes, BufferRef, Completion, DeviceError, Dropped, Failure, LostReason, Program,
    RunArgs, Submission, SubmissionId, Work,
};
use trefoil_graph::StepInputs;
use trefoil_kernels::host::{HostKernels, HostScratch, KvBytes, KvLayout, Tensors};
use trefoil_telemetry::{Clock, Nanos};

use crate::device::HostSegment;

/// Completions kept for a reader that does not drain.
const HISTORY: usize = 4096;

struct Entry {
    id: SubmissionId,
    queued: Nanos,
    submission: Submission,
}

struct Shared {
    name: String,
    clock: Arc<dyn Clock>,
    done: Mutex<Done>,
    busy: AtomicU64,
    alive: AtomicBool,
}

#[derive(Default)]
struct Done {
    completions: VecDeque<Completion>,
    dropped: u64,
}

impl Shared {
    fn record(&self, completion: Completion) {
        let mut done = self.done.lock();
        if done.completions.len() == HISTORY {
            done.completions.pop_front();
            done.dropped += 1;
        }
        done.completions.push_back(completion);
    }
}

/// An in-order queue and the thread that works it off.
pub(crate) struct Queue {
    sender: Option<Sender<Entry>>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Queue({})", self.shared.name)
    }
}

impl Queue {
    pub(crate) fn start(
        name: &str,
        kernels: Box<dyn HostKernels>,
        clock: Arc<dyn Clock>,
        depth: usize,
    ) -> Self {
        let (sender, receiver) = bounded(depth);
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            clock,
            done: Mutex::default(),
            busy: AtomicU64::new(0),
            alive: AtomicBool::new(true),
        });
        let worker = shared.clone();
        let thread = std::thread::Builder::new()
            .name(format!("trefoil-{name}"))
            .spawn(move || work_off(&worker, &receiver, kernels))
            .expect("the system can start a thread");
        Self { sender: Some(sender), shared, thread: Some(thread) }
    }

    pub(crate) fn push(&self, id: SubmissionId, submission: Submission) -> Result<(), DeviceError> {
        let entry = Entry { id, queued: self.shared.clock.now(), submission };
        let sender = self.sender.as_ref().expect("the queue is open until it is dropped");
        sender.try_send(entry).map_err(|error| match error {
            TrySendError::Full(_) => DeviceError::BadRequest {
                what: format!("queue of {}", self.shared.name),
                expected: "fewer submissions under way".to_owned(),
                got: "a full queue".to_owned(),
            },
            TrySendError::Disconnected(_) => {
                DeviceError::Lost { reason: LostReason::Panicked, epoch: 0 }
            }
        })
    }

    pub(crate) fn drain(&self, out: &mut Vec<Completion>) -> Dropped {
        let mut done = self.shared.done.lock();
        out.extend(done.completions.drain(..));
        Dropped(std::mem::take(&mut done.dropped))
    }

    /// The time now, and the time spent running work since the start.
    pub(crate) fn busy(&self) -> (Nanos, Nanos) {
        (self.shared.clock.now(), Nanos(self.shared.busy.load(Ordering::Relaxed)))
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.shared.alive.load(Ordering::Relaxed)
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.sender = None;
        if let Some(thread) = self.thread.take() {
            // The thread ends when the channel closes; its panics were contained already.
            let _ = thread.join();
        }
    }
}

fn work_off(shared: &Shared, receiver: &Receiver<Entry>, mut kernels: Box<dyn HostKernels>) {
    let mut scratch = HostScratch::default();
    for Entry { id, queued, submission } in receiver {
        let Submission { waits, signals, work, label } = submission;
        let upstream = waits.iter().find_map(|point| point.wait().err());
        let start = shared.clock.now();
        let result = match upstream {
            Some(cause) => Err(DeviceError::Upstream(cause)),
            None => contained(|| run(work, kernels.as_mut(), &mut scratch)),
        };
        let end = shared.clock.now();
        shared.busy.fetch_add(end.since(start).0, Ordering::Relaxed);
        // Recorded before it is signalled: who waited finds the record.
        shared.record(Completion { id, label: label.clone(), queued, start, end });
        match result {
            Ok(()) => signals.iter().for_each(|point| point.timeline.signal(point.value)),
            Err(error) => {
                let device = shared.name.clone();
                let label = label.to_string();
                let failure = match error {
                    DeviceError::Upstream(cause) => cause,
                    error => Arc::new(Failure { origin: id, device, label, error }),
                };
                signals.iter().for_each(|point| point.timeline.fail(failure.clone()));
            }
        }
    }
    shared.alive.store(false, Ordering::Relaxed);
}

/// Turns a panic of a kernel into a lost device.
fn contained(work: impl FnOnce() -> Result<(), DeviceError>) -> Result<(), DeviceError> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or(Err(DeviceError::Lost { reason: LostReason::Panicked, epoch: 0 }))
}

fn run(
    work: Work,
    kernels: &mut dyn HostKernels,
    scratch: &mut HostScratch,
) -> Result<(), DeviceError> {
    match work {
        Work::Barrier => Ok(()),
        Work::Copy { from, to } => {
            let source = from.buffer.read()?;
            let mut target = to.buffer.write()?;
            let (from, to) = (&source[from.range], &mut target[to.range]);
            if from.len() != to.len() {
                return Err(bad("copy", format!("{} bytes", from.len()), to.len()));
            }
            to.copy_from_slice(from);
            Ok(())
        }
        Work::Run { program, args, step } => {
            run_program(program.as_ref(), &args, &step, kernels, scratch)
        }
    }
}

fn bad(what: &str, expected: impl ToString, got: impl ToString) -> DeviceError {
    DeviceError::BadRequest {
        what: what.to_owned(),
        expected: expected.to_string(),
        got: got.to_string(),
    }
}

fn run_program(
    program: &dyn Program,
    args: &RunArgs,
    step: &StepInputs,
    kernels: &mut dyn HostKernels,
    scratch: &mut HostScratch,
) -> Result<(), DeviceError> {
    let segment: &HostSegment = program
        .as_any()
        .downcast_ref()
        .ok_or_else(|| bad("program", "one of this device", "another's"))?;
    step.check().map_err(|problem| bad("step", "consistent rows", problem))?;
    let (reads, rest) = args
        .buffers
        .split_at_checked(segment.inputs)
        .and_then(|(reads, rest)| Some((reads, rest.split_at_checked(segment.outputs)?)))
        .ok_or_else(|| bad("arguments", program.bindings().len(), args.buffers.len()))?;
    let (writes, kv_buffers) = rest;
    let layers = segment.program.kv_layers();
    if kv_buffers.len() != layers.len() {
        return Err(bad("arguments", program.bindings().len(), args.buffers.len()));
    }
    let inputs = reads.iter().map(Floats::read).collect::<Result<SmallVec<[_; 8]>, _>>()?;
    let mut outputs =
        writes.iter().map(FloatsMut::write).collect::<Result<SmallVec<[_; 8]>, _>>()?;
    let mut kv = SmallVec::<[_; 64]>::new();
    for (view, &layer) in kv_buffers.iter().zip(layers) {
        let shape = *args
            .kv
            .shapes
            .get(layer)
            .ok_or_else(|| bad("KV layer", format!("below {}", args.kv.shapes.len()), layer))?;
        let layout = KvLayout { page_tokens: args.kv.page_tokens, shape, half: args.kv.half };
        let guard = view.buffer.write()?;
        kv.push(KvBytes { bytes: Pages { guard, view }, layout });
    }
    let tensors = Tensors { inputs: &inputs, outputs: &mut outputs, kv: &mut kv };
    segment
        .program
        .run(kernels, scratch, step, tensors)
        .map_err(|error| bad(&error.what, error.expected, error.got))
}

/// A buffer's view as numbers, locked for reading.
struct Floats<'a> {
    guard: RwLockReadGuard<'a, AlignedBytes>,
    view: &'a BufferRef,
}

impl<'a> Floats<'a> {
    fn read(view: &'a BufferRef) -> Result<Self, DeviceError> {
        Ok(Self { guard: view.buffer.read()?, view })
    }
}

impl Deref for Floats<'_> {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        bytemuck::cast_slice(&self.guard[self.view.range.clone()])
    }
}

/// A buffer's view as numbers, locked for writing.
struct FloatsMut<'a> {
    guard: RwLockWriteGuard<'a, AlignedBytes>,
    view: &'a BufferRef,
}

impl<'a> FloatsMut<'a> {
    fn write(view: &'a BufferRef) -> Result<Self, DeviceError> {
        Ok(Self { guard: view.buffer.write()?, view })
    }
}

impl Deref for FloatsMut<'_> {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        bytemuck::cast_slice(&self.guard[self.view.range.clone()])
    }
}

impl DerefMut for FloatsMut<'_> {
    fn deref_mut(&mut self) -> &mut [f32] {
        bytemuck::cast_slice_mut(&mut self.guard[self.view.range.clone()])
    }
}

/// A KV layer's pages, locked.
struct Pages<'a> {
    guard: RwLockWriteGuard<'a, AlignedBytes>,
    view: &'a BufferRef,
}

impl Deref for Pages<'_> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.guard[self.view.range.clone()]
    }
}

impl DerefMut for Pages<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.guard[self.view.range.clone()]
    }
}
