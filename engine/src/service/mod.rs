//! One model at work for many callers: a bounded queue, and the thread that owns the runner.
//!
//! The thread goes in *turns* (`batch.rs`): a chunk of the prompt that is being read, and one decode
//! step with a row of every sequence that generates. Sequences join and leave between turns.

mod batch;
mod history;
mod load;
mod meters;
mod pace;
mod queue;
mod seat;
mod seating;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::generate::{Cancel, Event, GenerateError, Request, Summary};
use crate::loaded::TextSide;
use crate::runner::Runner;
use batch::Batcher;
pub use history::{Course, Ended, History, REMEMBERED, Sums};
pub use load::Load;
pub use meters::{MOST_SEGMENTS, Meters};
pub use pace::{Forecast, INTER_TOKEN_TARGET};
use queue::Queue;

/// What a caller hears of a reply, in order.
#[derive(Debug)]
pub enum Update {
    /// The request left the queue after this time. Said once, to the first reply.
    Started(Duration),
    /// Something was generated.
    Event(Event),
    /// The reply ended.
    Done(Result<Summary, ServiceError>),
}

/// A request that failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// The generation could not go on.
    #[error(transparent)]
    Generate(Arc<GenerateError>),
    /// The caller was gone before it began.
    #[error("cancelled in the queue")]
    Cancelled,
    /// It waited for too long.
    #[error("no place came free within {0:?}")]
    QueueTimeout(Duration),
    /// It took too long.
    #[error("not done within {0:?}")]
    Deadline(Duration),
    /// The service went down.
    #[error("the model is being unloaded")]
    Stopped,
    /// A bug: the generation panicked. The service goes on.
    #[error("internal error while generating; please report it with the log")]
    Panicked,
}

impl<E: Into<GenerateError>> From<E> for ServiceError {
    fn from(error: E) -> Self {
        Self::Generate(Arc::new(error.into()))
    }
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

/// Takes the updates of the replies to one request, each with its reply's number; returns false to
/// cancel all of them.
pub type Sink = Box<dyn FnMut(u32, Update) -> bool + Send>;

/// A request with what the service needs to know of it.
#[derive(Clone, Debug)]
pub struct Order {
    /// What is to be generated.
    pub request: Request,
    /// Replies to the one prompt; each has random numbers of its own.
    pub choices: u32,
    /// Higher ones go first; 0 is usual.
    pub priority: i32,
    /// May it begin with pages of others, and leave its own to others?
    pub cache: bool,
    /// Time after which it ends with an error, the queue counted.
    pub time_limit: Option<Duration>,
}

impl Order {
    /// One reply, with nothing special about it.
    pub fn new(request: Request) -> Self {
        Self { request, choices: 1, priority: 0, cache: true, time_limit: None }
    }
}

/// How a service works.
#[derive(Clone, Debug)]
pub struct ServiceOptions {
    /// Requests that may wait.
    pub queue: usize,
    /// Longest wait of a request; none without.
    pub queue_timeout: Option<Duration>,
    /// Sequences that run together.
    pub sequences: usize,
    /// Most tokens of a turn.
    pub turn_tokens: usize,
    /// Are pages of beginnings kept?
    pub prefix_cache: bool,
    /// Longest time between two tokens that reading prompts of others should make.
    pub inter_token: Duration,
    /// What a plan predicts of steps.
    pub forecast: Forecast,
    /// Where it counts what happens.
    pub meters: Option<Meters>,
}

impl Default for ServiceOptions {
    fn default() -> Self {
        Self {
            queue: 256,
            queue_timeout: None,
            sequences: 16,
            turn_tokens: 2048,
            prefix_cache: true,
            inter_token: INTER_TOKEN_TARGET,
            forecast: Forecast::default(),
            meters: None,
        }
    }
}

/// A model's queue and thread.
#[derive(Debug)]
pub struct Service {
    queue: Arc<Queue>,
    load: Arc<Load>,
    sequences: usize,
    thread: Option<JoinHandle<()>>,
}

impl Service {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system has no more threads.
    pub fn start(
        runner: Runner,
        text: Arc<TextSide>,
        options: ServiceOptions,
    ) -> std::io::Result<Self> {
        let queue = Arc::new(Queue::new(options.queue, options.queue_timeout));
        let load: Arc<Load> = Arc::default();
        let sequences = options.sequences;
        let batcher = Batcher::new(runner, text, queue.clone(), load.clone(), options);
        let thread = std::thread::Builder::new()
            .name("trefoil-engine".to_owned())
            // What one thread alone uses is made there.
            .spawn(move || batcher.start().work())?;
        Ok(Self { queue, load, sequences, thread: Some(thread) })
    }

    /// Queues a request. `sink` is called on the service's thread, and must not wait.
    ///
    /// # Errors
    /// There is no place in the queue.
    pub fn submit(&self, order: Order, sink: Sink) -> Result<Cancel, SubmitError> {
        let cancel = Cancel::default();
        let queued = Instant::now();
        self.queue.push(queue::Job { order, cancel: cancel.clone(), sink, queued, number: 0 })?;
        Ok(cancel)
    }

    /// Requests in the queue.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// What is under way, and the pages of the KV cache.
    pub fn load(&self) -> &Load {
        &self.load
    }

    /// Sequences that run together.
    pub fn sequences(&self) -> usize {
        self.sequences
    }

    /// Places in the queue.
    pub fn capacity(&self) -> usize {
        self.queue.capacity()
    }
}

impl Drop for Service {
    /// Ends what waits and what is under way with [`ServiceError::Stopped`].
    fn drop(&mut self) {
        self.queue.close();
        if let Some(thread) = self.thread.take() {
            // Panics of generations were contained.
            let _ = thread.join();
        }
    }
}
