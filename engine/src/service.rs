//! One model at work for many callers: a bounded queue, and the thread that owns the runner.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};

use crate::generate::{Cancel, Event, GenerateError, Request, Summary, generate};
use crate::loaded::TextSide;
use crate::runner::Runner;

/// What a caller hears of its request, in order.
#[derive(Debug)]
pub enum Update {
    /// It left the queue after this time.
    Started(Duration),
    /// Something was generated.
    Event(Event),
    /// It ended.
    Done(Result<Summary, ServiceError>),
}

/// A request that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// The generation could not go on.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// The caller was gone before it began.
    #[error("cancelled in the queue")]
    Cancelled,
    /// A bug: the generation panicked. The service goes on.
    #[error("internal error while generating; please report it with the log")]
    Panicked,
}

/// A request that did not get into the queue.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// All places are taken.
    #[error("all {capacity} places in the queue are taken")]
    QueueFull {
        /// Places.
        capacity: usize,
    },
    /// The service is going down.
    #[error("the model is being unloaded")]
    Stopped,
}

/// Takes the updates of one request; returns false to cancel it.
pub type Sink = Box<dyn FnMut(Update) -> bool + Send>;

struct Job {
    request: Request,
    cancel: Cancel,
    sink: Sink,
    queued: Instant,
}

/// Requests in the queue and under way.
#[derive(Debug, Default)]
pub struct Load {
    waiting: AtomicUsize,
    running: AtomicUsize,
    kv_used: AtomicUsize,
    kv_total: AtomicUsize,
}

impl Load {
    /// Requests in the queue.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Requests under way.
    pub fn running(&self) -> usize {
        self.running.load(Ordering::Relaxed)
    }

    /// Pages of the KV cache: used and all.
    pub fn kv_pages(&self) -> (usize, usize) {
        (self.kv_used.load(Ordering::Relaxed), self.kv_total.load(Ordering::Relaxed))
    }
}

/// A model's queue and thread.
#[derive(Debug)]
pub struct Service {
    sender: Option<Sender<Job>>,
    load: Arc<Load>,
    capacity: usize,
    thread: Option<JoinHandle<()>>,
}

impl Service {
    /// Starts the thread. At most `capacity` requests wait.
    pub fn start(runner: Runner, text: Arc<TextSide>, capacity: usize) -> std::io::Result<Self> {
        let (sender, receiver) = bounded(capacity.max(1));
        let load: Arc<Load> = Arc::default();
        load.kv_total.store(runner.executor.kv.total_pages(), Ordering::Relaxed);
        let worker = load.clone();
        let thread = std::thread::Builder::new()
            .name("trefoil-engine".to_owned())
            .spawn(move || work(runner, &text, &receiver, &worker))?;
        Ok(Self { sender: Some(sender), load, capacity: capacity.max(1), thread: Some(thread) })
    }

    /// Queues a request. `sink` is called on the service's thread.
    pub fn submit(&self, request: Request, sink: Sink) -> Result<Cancel, SubmitError> {
        let sender = self.sender.as_ref().ok_or(SubmitError::Stopped)?;
        let cancel = Cancel::default();
        let job = Job { request, cancel: cancel.clone(), sink, queued: Instant::now() };
        self.load.waiting.fetch_add(1, Ordering::Relaxed);
        sender.try_send(job).map_err(|error| {
            self.load.waiting.fetch_sub(1, Ordering::Relaxed);
            match error {
                TrySendError::Full(_) => SubmitError::QueueFull { capacity: self.capacity },
                TrySendError::Disconnected(_) => SubmitError::Stopped,
            }
        })?;
        Ok(cancel)
    }

    /// What is in the queue and under way.
    pub fn load(&self) -> &Load {
        &self.load
    }

    /// Places in the queue.
    pub fn capacity(&self) -> usize {
        self.capacity
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.sender = None;
        if let Some(thread) = self.thread.take() {
            // The thread ends when the channel closes; panics of generations were contained.
            let _ = thread.join();
        }
    }
}

fn work(mut runner: Runner, text: &TextSide, receiver: &Receiver<Job>, load: &Load) {
    for Job { request, cancel, mut sink, queued } in receiver {
        load.waiting.fetch_sub(1, Ordering::Relaxed);
        load.running.fetch_add(1, Ordering::Relaxed);
        // A caller that is gone says so at once, before the prompt is read.
        let result = if sink(Update::Started(queued.elapsed())) {
            run(&mut runner, text, &request, &cancel, &mut sink)
        } else {
            Err(ServiceError::Cancelled)
        };
        load.kv_used.store(
            runner.executor.kv.total_pages() - runner.executor.kv.free_pages(),
            Ordering::Relaxed,
        );
        load.running.fetch_sub(1, Ordering::Relaxed);
        sink(Update::Done(result));
    }
}

fn run(
    runner: &mut Runner,
    text: &TextSide,
    request: &Request,
    cancel: &Cancel,
    sink: &mut Sink,
) -> Result<Summary, ServiceError> {
    let mut events = |event| sink(Update::Event(event));
    let work = || generate(runner, text, request, cancel, &mut events);
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => Ok(result?),
        Err(_) => {
            tracing::error!("a generation panicked");
            runner.release_all();
            Err(ServiceError::Panicked)
        }
    }
}
