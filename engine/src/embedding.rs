//! An encoder at work for many callers: a bounded queue, and the thread that owns the runner.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};

use crate::runner::{Outputs, RunError, Runner, Sequence};
use crate::service::SubmitError;

/// An embedding that could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EmbedError {
    /// The runner.
    #[error(transparent)]
    Run(#[from] RunError),
    /// A bug: the computation panicked. The embedder goes on.
    #[error("internal error while embedding; please report it with the log")]
    Panicked,
}

/// Takes the embeddings of one request, in the order of its texts; returns false to cancel the rest.
/// An error is the last that it hears.
pub type EmbeddingSink = Box<dyn FnMut(Result<Vec<f32>, EmbedError>) -> bool + Send>;

struct Job {
    texts: Vec<Vec<u32>>,
    sink: EmbeddingSink,
}

/// An encoder's queue and thread.
#[derive(Debug)]
pub struct Embedder {
    sender: Option<Sender<Job>>,
    capacity: usize,
    thread: Option<JoinHandle<()>>,
}

impl Embedder {
    /// Starts the thread. At most `capacity` requests wait.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub fn start(runner: Runner, capacity: usize) -> std::io::Result<Self> {
        let capacity = capacity.max(1);
        let (sender, receiver) = bounded(capacity);
        let thread = std::thread::Builder::new()
            .name("trefoil-embed".to_owned())
            .spawn(move || work(runner, &receiver))?;
        Ok(Self { sender: Some(sender), capacity, thread: Some(thread) })
    }

    /// Queues a request: texts as token ids, what the model puts around every text included. `sink` is
    /// called on the embedder's thread.
    ///
    /// # Errors
    /// The queue is full, or the embedder is going down.
    pub fn submit(&self, texts: Vec<Vec<u32>>, sink: EmbeddingSink) -> Result<(), SubmitError> {
        let sender = self.sender.as_ref().ok_or(SubmitError::Stopped)?;
        sender.try_send(Job { texts, sink }).map_err(|error| match error {
            TrySendError::Full(_) => SubmitError::QueueFull { capacity: self.capacity },
            TrySendError::Disconnected(_) => SubmitError::Stopped,
        })
    }
}

impl Drop for Embedder {
    fn drop(&mut self) {
        self.sender = None;
        if let Some(thread) = self.thread.take() {
            // The thread ends when the channel closes; panics were contained.
            let _ = thread.join();
        }
    }
}

fn work(mut runner: Runner, receiver: &Receiver<Job>) {
    for Job { texts, mut sink } in receiver {
        for text in texts {
            let mut sequence = runner.begin(runner.context());
            let embedding = || embed(&mut runner, &mut sequence, &text);
            let result = match catch_unwind(AssertUnwindSafe(embedding)) {
                Ok(result) => result.map_err(EmbedError::from),
                Err(_) => {
                    tracing::error!("an embedding panicked");
                    Err(EmbedError::Panicked)
                }
            };
            runner.end(sequence);
            let failed = result.is_err();
            if !sink(result) || failed {
                break;
            }
        }
    }
}

/// The embedding of one text.
fn embed(runner: &mut Runner, sequence: &mut Sequence, text: &[u32]) -> Result<Vec<f32>, RunError> {
    let mut embedding = Vec::new();
    let keep = |_, row: &[f32]| embedding = row.to_vec();
    // One row comes out of a text, whatever its length.
    runner.feed(sequence, text, Outputs::Last, keep)?;
    Ok(embedding)
}
