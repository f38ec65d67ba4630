//! Time as an input, so that tests and simulations can move it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::Nanos;

/// A source of time that only grows.
pub trait Clock: Send + Sync {
    /// Time since an arbitrary, fixed moment.
    fn now(&self) -> Nanos;
}

/// The machine's monotonic clock.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

impl Default for SystemClock {
    fn default() -> Self {
        Self { start: Instant::now() }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Nanos {
        Nanos(u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }
}

/// A clock that moves only when told to.
#[derive(Debug, Default)]
pub struct VirtualClock {
    now: AtomicU64,
}

impl VirtualClock {
    /// Moves the clock forward by `span`.
    pub fn advance(&self, span: Nanos) {
        self.now.fetch_add(span.0, Ordering::AcqRel);
    }

    /// Moves the clock forward to `time`; never back.
    pub fn advance_to(&self, time: Nanos) {
        self.now.fetch_max(time.0, Ordering::AcqRel);
    }
}

impl Clock for VirtualClock {
    fn now(&self) -> Nanos {
        Nanos(self.now.load(Ordering::Acquire))
    }
}
