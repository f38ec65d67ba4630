//! Buffers that kernels reuse from call to call.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::ThreadPool;
use super::attention::JobBuffers;
use super::linear::{Prepared, TileBuffers, WorkItem};

/// Working memory of kernels. It grows to what the largest call needs; after that no call allocates.
/// One scratch serves one caller at a time, on any pool.
#[derive(Debug, Default)]
pub struct Scratch {
    pub(super) workers: Workers,
    /// Attention: (first row, end row) of each tile.
    pub(super) tiles: Vec<(usize, usize)>,
    /// Attention: states of single cuts.
    pub(super) partials: Vec<f32>,
    /// Linear: the inputs as kernels read them.
    pub(super) inputs: Vec<Prepared>,
    /// Linear: which rows of which weight each task computes.
    pub(super) work: Vec<WorkItem>,
}

impl Scratch {
    /// An empty scratch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes room for the pool's workers.
    pub(super) fn prepare(&mut self, pool: &ThreadPool) {
        while self.workers.0.len() < pool.threads() {
            self.workers.0.push(Mutex::default());
        }
    }
}

/// One set of buffers a worker.
#[derive(Debug, Default)]
pub(super) struct Workers(Vec<Mutex<WorkerBuffers>>);

/// What a worker needs for its task.
#[derive(Debug, Default)]
pub(super) struct WorkerBuffers {
    pub(super) attention: JobBuffers,
    pub(super) linear: TileBuffers,
}

impl Workers {
    /// The buffers of the worker that runs the calling task; never contended, since a worker runs
    /// one task at a time.
    pub(super) fn lock(&self, worker: usize) -> MutexGuard<'_, WorkerBuffers> {
        self.0[worker].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The first `len` elements of a buffer that is made longer where needed. Their values are left over
/// from earlier use.
pub(super) fn grown<T: Clone + Default>(buffer: &mut Vec<T>, len: usize) -> &mut [T] {
    if buffer.len() < len {
        buffer.resize(len, T::default());
    }
    &mut buffer[..len]
}
