//! A device that fails on demand.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use trefoil_devices_api::{
    AllocRequest, Bucket, Buffer, CompileError, Completion, Device, DeviceError, DeviceInfo,
    DomainId, DomainInfo, Dropped, Job, Limits, Link, OpQuery, Program, Sample, Submission,
    SubmissionId, Support, Work,
};
use trefoil_graph::{LayerGraph, Segment};

/// Which work counts.
type Counts = fn(&Work) -> bool;

/// Another device, of which one submission fails in its queue when that is asked for.
#[derive(Debug)]
pub struct Faulty {
    inner: Arc<dyn Device>,
    /// Submissions until the failure; 0 for none.
    left: AtomicU64,
    counts: std::sync::Mutex<Counts>,
}

impl Faulty {
    /// Does all that `inner` does.
    pub fn new(inner: Arc<dyn Device>) -> Self {
        Self { inner, left: AtomicU64::new(0), counts: std::sync::Mutex::new(|_| true) }
    }

    /// Makes the submission number `number` from now on fail, counting those that `counts` says.
    pub fn fail(&self, number: u64, counts: Counts) {
        *self.counts.lock().expect("no panic") = counts;
        self.left.store(number, Ordering::Relaxed);
    }

    fn fails_now(&self, work: &Work) -> bool {
        let counts = *self.counts.lock().expect("no panic");
        if self.left.load(Ordering::Relaxed) == 0 || !counts(work) {
            return false;
        }
        self.left.fetch_sub(1, Ordering::Relaxed) == 1
    }
}

impl Device for Faulty {
    fn info(&self) -> &DeviceInfo {
        self.inner.info()
    }
    fn domains(&self) -> &[DomainInfo] {
        self.inner.domains()
    }
    fn link(&self, from: DomainId, to: DomainId) -> Link {
        self.inner.link(from, to)
    }
    fn limits(&self) -> &Limits {
        self.inner.limits()
    }
    fn support(&self, query: &OpQuery<'_>) -> Support {
        self.inner.support(query)
    }
    fn compile(
        &self,
        graph: &Arc<LayerGraph>,
        segment: &Segment,
        bucket: Bucket,
        job: &Job,
    ) -> Result<Arc<dyn Program>, CompileError> {
        self.inner.compile(graph, segment, bucket, job)
    }
    fn compile_streamed(
        &self,
        graph: &Arc<LayerGraph>,
        segment: &Segment,
        bucket: Bucket,
        stage: &Buffer,
        job: &Job,
    ) -> Result<Arc<dyn Program>, CompileError> {
        self.inner.compile_streamed(graph, segment, bucket, stage, job)
    }
    fn alloc(&self, request: AllocRequest) -> Result<Buffer, DeviceError> {
        self.inner.alloc(request)
    }
    fn import(&self, foreign: &Buffer) -> Result<Buffer, DeviceError> {
        self.inner.import(foreign)
    }
    fn submit(&self, queue: usize, mut work: Submission) -> Result<SubmissionId, DeviceError> {
        if self.fails_now(&work.work) {
            // A copy that every device refuses when it gets to it.
            let (long, short) = (Buffer::host(8), Buffer::host(4));
            work.work = Work::Copy { from: long.whole(), to: short.whole() };
        }
        self.inner.submit(queue, work)
    }
    fn drain(&self, out: &mut Vec<Completion>) -> Dropped {
        self.inner.drain(out)
    }
    fn sample(&self) -> Sample {
        self.inner.sample()
    }
    fn reset(&self) -> Result<(), DeviceError> {
        self.inner.reset()
    }
}
