//! An in-order queue with a thread of its own, written once for all backends.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};
use parking_lot::Mutex;
use trefoil_telemetry::{Clock, Nanos};

use crate::{
    Completion, DeviceError, Dropped, Failure, LostReason, Submission, SubmissionId, Work,
};

/// Completions kept for a reader that does not drain.
const HISTORY: usize = 4096;

/// Bit from which on a submission's number says its queue.
const QUEUE_SHIFT: u32 = 48;

/// Submissions that may wait in a queue.
const DEPTH: usize = 4096;

/// What a backend does with work whose waits are reached. Called on the queue's own thread, one
/// piece after the other; returns when the work is done.
pub trait Worker: Send {
    /// Does one piece of work. Returns the time that it took by the processor's own clock, if it was
    /// measured.
    fn run(&mut self, work: Work) -> Result<Option<Nanos>, DeviceError>;
}

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

/// An in-order queue and the thread that works it off. A panic in the worker is contained: it fails
/// the submission's signals as a lost device.
pub struct WorkQueue {
    sender: Option<Sender<Entry>>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// Its number on the device.
    number: usize,
    next: AtomicU64,
    /// The time of the last look at the load, and the time spent running work until then.
    looked: Mutex<(Nanos, Nanos)>,
}

impl std::fmt::Debug for WorkQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WorkQueue({})", self.shared.name)
    }
}

impl WorkQueue {
    /// Starts the thread of a device's queue 0; `make` is called on it, so that the worker need not
    /// cross threads.
    pub fn start<W: Worker>(
        name: &str,
        clock: Arc<dyn Clock>,
        make: impl FnOnce() -> W + Send + 'static,
    ) -> Self {
        Self::numbered(0, name, clock, make)
    }

    /// Starts a queue of another number, which works beside the others. Its submissions have numbers
    /// that no other queue of the device gives.
    pub fn numbered<W: Worker>(
        number: usize,
        name: &str,
        clock: Arc<dyn Clock>,
        make: impl FnOnce() -> W + Send + 'static,
    ) -> Self {
        let (sender, receiver) = bounded(DEPTH);
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
            .spawn(move || work_off(&worker, &receiver, make()))
            .expect("the system can start a thread");
        Self {
            sender: Some(sender),
            shared,
            thread: Some(thread),
            number,
            next: AtomicU64::new(((number as u64) << QUEUE_SHIFT) + 1),
            looked: Mutex::default(),
        }
    }

    /// Queues work and returns at once; `queue` must be this one's number.
    pub fn submit(
        &self,
        queue: usize,
        submission: Submission,
    ) -> Result<SubmissionId, DeviceError> {
        if queue != self.number {
            return Err(DeviceError::BadRequest {
                what: format!("queue of {}", self.shared.name),
                expected: self.number.to_string(),
                got: queue.to_string(),
            });
        }
        let id = SubmissionId(self.next.fetch_add(1, Ordering::Relaxed));
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
        })?;
        Ok(id)
    }

    /// Moves the records of finished work to `out`.
    pub fn drain(&self, out: &mut Vec<Completion>) -> Dropped {
        let mut done = self.shared.done.lock();
        out.extend(done.completions.drain(..));
        Dropped(std::mem::take(&mut done.dropped))
    }

    /// Share of the time since the last call that went into running work; `None` if no time passed.
    pub fn load(&self) -> Option<f64> {
        let now = self.shared.clock.now();
        let busy = self.busy();
        let (before, busy_before) = std::mem::replace(&mut *self.looked.lock(), (now, busy));
        let span = now.since(before);
        let share = busy.since(busy_before).seconds() / span.seconds();
        (span.0 > 0).then_some(share.clamp(0.0, 1.0))
    }

    /// Time that went into running work so far.
    pub fn busy(&self) -> Nanos {
        Nanos(self.shared.busy.load(Ordering::Relaxed))
    }

    /// Does the thread still run?
    pub fn is_alive(&self) -> bool {
        self.shared.alive.load(Ordering::Relaxed)
    }
}

impl Drop for WorkQueue {
    fn drop(&mut self) {
        self.sender = None;
        if let Some(thread) = self.thread.take() {
            // The thread ends when the channel closes; its panics were contained already.
            let _ = thread.join();
        }
    }
}

fn work_off(shared: &Shared, receiver: &Receiver<Entry>, mut worker: impl Worker) {
    for Entry { id, queued, submission } in receiver {
        let Submission { waits, signals, work, label } = submission;
        let upstream = waits.iter().find_map(|point| point.wait().err());
        let start = shared.clock.now();
        let result = match upstream {
            Some(cause) => Err(DeviceError::Upstream(cause)),
            None => contained(|| worker.run(work)),
        };
        let end = shared.clock.now();
        shared.busy.fetch_add(end.since(start).0, Ordering::Relaxed);
        // Recorded before it is signalled: who waited finds the record.
        let device_time = result.as_ref().ok().copied().flatten();
        shared.record(Completion { id, label: label.clone(), queued, start, end, device_time });
        match result {
            Ok(_) => signals.iter().for_each(|point| point.timeline.signal(point.value)),
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
fn contained<T>(work: impl FnOnce() -> Result<T, DeviceError>) -> Result<T, DeviceError> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or(Err(DeviceError::Lost { reason: LostReason::Panicked, epoch: 0 }))
}
