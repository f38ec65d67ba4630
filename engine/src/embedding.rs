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

/// Rows of a step above which more texts make it no faster for each.
const MOST_ROWS: usize = 512;

fn work(mut runner: Runner, receiver: &Receiver<Job>) {
    for Job { texts, mut sink } in receiver {
        let mut rest = texts.as_slice();
        while !rest.is_empty() {
            let (texts, later) = rest.split_at(together(&runner, rest));
            rest = later;
            let context = runner.context();
            let mut sequences: Vec<Sequence> =
                texts.iter().map(|_| runner.begin(context)).collect();
            let embeddings = || embed(&mut runner, &mut sequences, texts);
            let result = match catch_unwind(AssertUnwindSafe(embeddings)) {
                Ok(result) => result.map_err(EmbedError::from),
                Err(_) => {
                    tracing::error!("an embedding panicked");
                    Err(EmbedError::Panicked)
                }
            };
            sequences.into_iter().for_each(|sequence| runner.end(sequence));
            let go_on = match result {
                Ok(embeddings) => embeddings.into_iter().all(|embedding| sink(Ok(embedding))),
                Err(error) => {
                    sink(Err(error));
                    false
                }
            };
            if !go_on {
                break;
            }
        }
    }
}

/// How many of the next texts share a step: one at least. Several only where a row comes out the same in
/// steps of any size, so that an embedding does not depend on its neighbours.
fn together(runner: &Runner, texts: &[Vec<u32>]) -> usize {
    let kv = &runner.executor.kv;
    let (mut rows, mut pages) = (MOST_ROWS.min(runner.rows_at_once()), kv.available_pages());
    let fits = texts.iter().take_while(|text| {
        let need = (text.len(), text.len().div_ceil(kv.layout().page_tokens));
        let fits = need.0 <= rows && need.1 <= pages;
        (rows, pages) = (rows.saturating_sub(need.0), pages.saturating_sub(need.1));
        fits
    });
    if runner.has_steady_rows() { fits.count().max(1) } else { 1 }
}

/// The embeddings of texts, in one step.
fn embed(
    runner: &mut Runner,
    sequences: &mut [Sequence],
    texts: &[Vec<u32>],
) -> Result<Vec<Vec<f32>>, RunError> {
    let mut embeddings = Vec::with_capacity(texts.len());
    let keep = |_, row: &[f32]| embeddings.push(row.to_vec());
    // One row comes out of a text, whatever its length.
    match (sequences, texts) {
        ([sequence], [text]) => runner.feed(sequence, text, Outputs::Last, keep)?,
        (sequences, texts) => {
            let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
            runner.feed_texts(sequences, &texts, keep)?;
        }
    }
    Ok(embeddings)
}
