//! What is under way, for whoever looks from outside.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::kv::{KvPool, PageCounts};

/// Replies under way and pages of the KV cache. Written by the service's thread after every turn.
#[derive(Debug, Default)]
pub struct Load {
    running: AtomicUsize,
    used: AtomicUsize,
    cached: AtomicUsize,
    free: AtomicUsize,
    evicted: AtomicU64,
    decoded: Mutex<Vec<usize>>,
}

impl Load {
    /// Replies under way, also those that were put aside for others.
    pub fn running(&self) -> usize {
        self.running.load(Ordering::Relaxed)
    }

    /// Pages of the KV cache.
    pub fn pages(&self) -> PageCounts {
        PageCounts {
            used: self.used.load(Ordering::Relaxed),
            cached: self.cached.load(Ordering::Relaxed),
            free: self.free.load(Ordering::Relaxed),
        }
    }

    /// Cached pages that were given away so far.
    pub fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }

    /// Tokens made so far by each reply that has a sequence, the longest under way first.
    pub fn decoded(&self) -> Vec<usize> {
        self.decoded.lock().clone()
    }

    pub(super) fn set_decoded(&self, tokens: impl Iterator<Item = usize>) {
        let mut decoded = self.decoded.lock();
        decoded.clear();
        decoded.extend(tokens);
    }

    pub(super) fn set(&self, running: usize, kv: &KvPool) {
        let PageCounts { used, cached, free } = kv.counts();
        self.running.store(running, Ordering::Relaxed);
        self.used.store(used, Ordering::Relaxed);
        self.cached.store(cached, Ordering::Relaxed);
        self.free.store(free, Ordering::Relaxed);
        self.evicted.store(kv.evicted_pages(), Ordering::Relaxed);
    }
}
