//! Where the parts of a streamed answer go: events of a response, or frames of a socket.

use std::sync::Arc;

use serde_json::Value;
use tokio::sync::mpsc::UnboundedSender;

use super::error::ApiError;

/// A part of a streamed answer, in order: chunks, then one of the others.
#[derive(Clone, Debug)]
pub(crate) enum Frame {
    /// An object of the answer.
    Chunk(Value),
    /// All was said.
    Done,
    /// It failed after its status went out; nothing follows.
    Failed(ApiError),
}

/// Takes the frames of one answer, written as whoever sends them wants them.
pub(crate) struct Outlet<T> {
    sender: UnboundedSender<T>,
    write: Box<dyn Fn(Frame) -> T + Send + Sync>,
}

impl<T> Outlet<T> {
    /// Frames go into `sender` as `write` makes them.
    pub(crate) fn new(
        sender: UnboundedSender<T>,
        write: impl Fn(Frame) -> T + Send + Sync + 'static,
    ) -> Self {
        Self { sender, write: Box::new(write) }
    }

    /// Sends what `work` makes, then how it ended.
    pub(crate) async fn run<F>(self, work: impl FnOnce(Arc<Self>) -> F)
    where
        F: Future<Output = Result<(), ApiError>>,
    {
        let outlet = Arc::new(self);
        let end = match work(outlet.clone()).await {
            Ok(()) => Frame::Done,
            Err(error) => Frame::Failed(error),
        };
        outlet.send(end);
    }

    /// Sends a frame. False if nobody takes it: then the work can end.
    pub(crate) fn send(&self, frame: Frame) -> bool {
        self.sender.send((self.write)(frame)).is_ok()
    }

    /// What `work` makes, or nothing where nobody takes frames any more.
    ///
    /// # Errors
    /// Those of `work`.
    pub(crate) async fn unless_closed<P>(
        &self,
        work: impl Future<Output = Result<Option<P>, ApiError>>,
    ) -> Result<Option<P>, ApiError> {
        tokio::select! {
            made = work => made,
            () = self.sender.closed() => Ok(None),
        }
    }
}
