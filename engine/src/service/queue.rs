//! Requests that wait: bounded, in the order of their priority and then of their coming.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::{Order, ServiceError, Sink, SubmitError};
use crate::generate::Cancel;

/// A request that waits.
pub(super) struct Job {
    pub(super) order: Order,
    pub(super) cancel: Cancel,
    pub(super) sink: Sink,
    pub(super) queued: Instant,
    /// Counts requests in the order of their coming.
    pub(super) number: u64,
}

/// What goes first: higher priority, then earlier coming.
pub(super) type Rank = (i32, std::cmp::Reverse<u64>);

impl Job {
    pub(super) fn rank(&self) -> Rank {
        (self.order.priority, std::cmp::Reverse(self.number))
    }
}

#[derive(Default)]
struct Waiting {
    jobs: Vec<Job>,
    numbers: u64,
    closed: bool,
}

impl Waiting {
    fn first(&self) -> Option<usize> {
        (0..self.jobs.len()).max_by_key(|&index| self.jobs[index].rank())
    }
}

/// The queue of a service.
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    /// Jobs in it, for a look without the lock.
    len: AtomicUsize,
    more: Condvar,
    capacity: usize,
    timeout: Option<Duration>,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("len", &self.len).field("capacity", &self.capacity).finish()
    }
}

impl Queue {
    pub(super) fn new(capacity: usize, timeout: Option<Duration>) -> Self {
        let (waiting, len, more) = (Mutex::default(), AtomicUsize::new(0), Condvar::new());
        Self { waiting, len, more, capacity: capacity.max(1), timeout }
    }

    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    pub(super) fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    pub(super) fn push(&self, mut job: Job) -> Result<(), SubmitError> {
        let mut waiting = self.waiting.lock();
        if waiting.closed {
            return Err(SubmitError::Stopped);
        }
        if waiting.jobs.len() >= self.capacity {
            return Err(SubmitError::QueueFull { capacity: self.capacity });
        }
        job.number = waiting.numbers;
        waiting.numbers += 1;
        waiting.jobs.push(job);
        self.len.store(waiting.jobs.len(), Ordering::Relaxed);
        self.more.notify_one();
        Ok(())
    }

    /// No more jobs are taken.
    pub(super) fn close(&self) {
        self.waiting.lock().closed = true;
        self.more.notify_all();
    }

    /// Waits until there is a job. False if there never will be.
    pub(super) fn wait(&self) -> bool {
        let mut waiting = self.waiting.lock();
        while waiting.jobs.is_empty() && !waiting.closed {
            self.more.wait(&mut waiting);
        }
        !waiting.closed
    }

    pub(super) fn is_closed(&self) -> bool {
        self.waiting.lock().closed
    }

    /// Looks at the first job.
    pub(super) fn peek<T>(&self, look: impl FnOnce(&Job) -> T) -> Option<T> {
        if self.len() == 0 {
            return None;
        }
        let waiting = self.waiting.lock();
        waiting.first().map(|index| look(&waiting.jobs[index]))
    }

    /// Takes the job of a rank.
    pub(super) fn pop(&self, rank: Rank) -> Option<Job> {
        let mut waiting = self.waiting.lock();
        let index = waiting.jobs.iter().position(|job| job.rank() == rank)?;
        let job = waiting.jobs.swap_remove(index);
        self.len.store(waiting.jobs.len(), Ordering::Relaxed);
        Some(job)
    }

    /// Takes the jobs that need not wait any more, with the reason: cancelled, too late, all if closed.
    pub(super) fn give_up(&self, now: Instant) -> Vec<(Job, ServiceError)> {
        if self.len() == 0 {
            return Vec::new();
        }
        let mut waiting = self.waiting.lock();
        let closed = waiting.closed;
        let why = |job: &Job| {
            let waited = now.saturating_duration_since(job.queued);
            match (self.timeout, job.order.time_limit) {
                _ if closed => Some(ServiceError::Stopped),
                _ if job.cancel.is_cancelled() => Some(ServiceError::Cancelled),
                (_, Some(limit)) if waited > limit => Some(ServiceError::Deadline(limit)),
                (Some(limit), _) if waited > limit => Some(ServiceError::QueueTimeout(limit)),
                _ => None,
            }
        };
        let mut gone = Vec::new();
        let mut index = 0;
        while index < waiting.jobs.len() {
            match why(&waiting.jobs[index]) {
                Some(error) => gone.push((waiting.jobs.swap_remove(index), error)),
                None => index += 1,
            }
        }
        self.len.store(waiting.jobs.len(), Ordering::Relaxed);
        gone
    }
}
