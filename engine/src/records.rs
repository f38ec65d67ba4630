//! Records of steps: when each segment and each copy began and ended.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use trefoil_devices_api::{Bucket, Completion, DomainId, Phase, SubmissionId};
use trefoil_graph::{Rows, StepInputs};
use trefoil_telemetry::Nanos;

/// Steps kept for a reader that does not take them.
const MOST_STEPS: usize = 8192;

/// When work was queued, began and ended, by the clock that the devices share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// When it was submitted.
    pub queued: Nanos,
    /// When it began: what it waited for was done, and the device free.
    pub start: Nanos,
    /// When it ended.
    pub end: Nanos,
    /// Time that it took by the processor's own clock, where it has one: without launch and wait.
    pub device_time: Option<Nanos>,
}

impl Times {
    /// Time from submission to begin: waiting for fences and for the device.
    pub fn queue_wait(&self) -> Nanos {
        self.start.since(self.queued)
    }

    /// Time from begin to end, as the host saw it.
    pub fn span(&self) -> Nanos {
        self.end.since(self.start)
    }

    /// Time that the work took: the processor's own measurement where there is one, else the host's.
    pub fn took(&self) -> Nanos {
        self.device_time.unwrap_or_else(|| self.span())
    }
}

/// A segment's run.
#[derive(Clone, Debug)]
pub struct SegmentRecord {
    /// Its place among the segments of its bucket ([`trefoil_scheduler::BucketPlan::segments`]); where a
    /// product is split, several records have the same.
    pub index: usize,
    /// Phase, first and last unit: `decode blk.0.attn_in..head`.
    pub label: Arc<str>,
    /// The device's name.
    pub device: Arc<str>,
    /// When.
    pub times: Times,
}

/// What a copy carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyKind {
    /// Rows of a tensor between two segments, or of the result to the host.
    Tensor,
    /// KV pages of a layer.
    KvPages,
    /// Weights that are streamed to a device for a step.
    Weights,
}

/// A copy between two domains.
#[derive(Clone, Debug)]
pub struct CopyRecord {
    /// What of: `decode copy of blk.0.attn_out to ram`.
    pub label: Arc<str>,
    /// The device that copied.
    pub device: Arc<str>,
    /// What it carries.
    pub kind: CopyKind,
    /// Domain of the source.
    pub from: DomainId,
    /// Domain of the target.
    pub to: DomainId,
    /// Bytes moved.
    pub bytes: u64,
    /// When.
    pub times: Times,
}

/// A step's work.
#[derive(Clone, Debug)]
pub struct StepRecord {
    /// The phase.
    pub phase: Phase,
    /// The bucket whose programs ran.
    pub bucket: Bucket,
    /// Rows of the step.
    pub tokens: usize,
    /// Rows whose output was wanted.
    pub outputs: usize,
    /// Sequences in it.
    pub sequences: usize,
    /// Tokens in the KV cache before the step, of the longest sequence.
    pub past: usize,
    /// Its segments, in order.
    pub segments: Vec<SegmentRecord>,
    /// Its copies, in the order of their submission; moves of KV pages after a prompt belong to its
    /// last step.
    pub copies: Vec<CopyRecord>,
}

/// What a segment of a step took on a device, all its pieces together.
#[derive(Clone, Debug, PartialEq)]
pub struct SegmentRun {
    /// Its place among the segments of its bucket.
    pub index: usize,
    /// The device: a segment's own, or one that has a share of its products.
    pub device: Arc<str>,
    /// Time at work.
    pub took: Nanos,
}

impl StepRecord {
    /// What its segments took, each once per device, in order.
    pub fn runs(&self) -> Vec<SegmentRun> {
        let mut runs: Vec<SegmentRun> = Vec::new();
        for SegmentRecord { index, device, times, .. } in &self.segments {
            // The pieces of a segment follow one another.
            let own = runs.iter_mut().rev().take_while(|run| run.index == *index);
            match own.into_iter().find(|run| run.device == *device) {
                Some(run) => run.took.0 += times.took().0,
                None => {
                    let (device, took) = (device.clone(), times.took());
                    runs.push(SegmentRun { index: *index, device, took });
                }
            }
        }
        runs
    }

    fn times(&self) -> impl Iterator<Item = &Times> {
        self.segments.iter().map(|s| &s.times).chain(self.copies.iter().map(|c| &c.times))
    }

    /// When its first work was submitted; `None` for a step without any.
    pub fn queued(&self) -> Option<Nanos> {
        self.times().map(|times| times.queued).min()
    }

    /// When its first work began.
    pub fn start(&self) -> Option<Nanos> {
        self.times().map(|times| times.start).min()
    }

    /// When its result was there: moves of KV pages that go on after it do not count.
    pub fn end(&self) -> Option<Nanos> {
        let copies = self.copies.iter().filter(|copy| copy.kind == CopyKind::Tensor);
        let copies = copies.map(|copy| copy.times.end);
        self.segments.iter().map(|segment| segment.times.end).chain(copies).max()
    }
}

/// Work that was submitted and whose end is not known yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Open {
    Segment { serial: u64, at: usize },
    Copy { serial: u64, at: usize },
}

/// Lane and submission.
type Key = (usize, SubmissionId);

/// Keeps records while it is on; costs nothing while it is off.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    on: bool,
    names: Vec<Arc<str>>,
    steps: VecDeque<StepRecord>,
    /// Serial number of the first of `steps`.
    first: u64,
    dropped: u64,
    open: HashMap<Key, Open>,
    scratch: Vec<Completion>,
}

impl Recorder {
    pub(crate) fn is_on(&self) -> bool {
        self.on
    }

    /// Begins, or ends and forgets. `names` are those of the devices, by lane.
    pub(crate) fn switch(&mut self, on: bool, names: Vec<Arc<str>>) {
        *self = Self { on, names, first: self.first + self.steps.len() as u64, ..Self::default() };
    }

    /// Begins a step; returns its serial number.
    pub(crate) fn begin(&mut self, bucket: Bucket, step: &StepInputs) -> u64 {
        if self.steps.len() == MOST_STEPS {
            self.steps.pop_front();
            self.first += 1;
            self.dropped += 1;
        }
        self.steps.push_back(StepRecord {
            phase: bucket.phase,
            bucket,
            tokens: step.count(Rows::Tokens),
            outputs: step.count(Rows::Outputs),
            sequences: step.sequences.len(),
            past: step.sequences.iter().map(|s| s.past as usize).max().unwrap_or(0),
            segments: Vec::new(),
            copies: Vec::new(),
        });
        self.first + self.steps.len() as u64 - 1
    }

    fn step(&mut self, serial: u64) -> Option<&mut StepRecord> {
        let at = serial.checked_sub(self.first)?;
        self.steps.get_mut(usize::try_from(at).ok()?)
    }

    pub(crate) fn segment(&mut self, serial: u64, key: Key, label: &Arc<str>, index: usize) {
        let (label, device, times) = (label.clone(), self.names[key.0].clone(), Times::default());
        let Some(step) = self.step(serial) else { return };
        let at = step.segments.len();
        step.segments.push(SegmentRecord { index, label, device, times });
        self.open.insert(key, Open::Segment { serial, at });
    }

    pub(crate) fn copy(
        &mut self,
        serial: u64,
        key: Key,
        label: &Arc<str>,
        kind: CopyKind,
        [from, to]: [DomainId; 2],
        bytes: u64,
    ) {
        let (label, device, times) = (label.clone(), self.names[key.0].clone(), Times::default());
        let Some(step) = self.step(serial) else { return };
        let at = step.copies.len();
        step.copies.push(CopyRecord { label, device, kind, from, to, bytes, times });
        self.open.insert(key, Open::Copy { serial, at });
    }

    /// Says when work ran. Work of others is passed over.
    pub(crate) fn finished(&mut self, key: Key, times: Times) {
        match self.open.remove(&key) {
            None => {}
            Some(Open::Segment { serial, at }) => {
                if let Some(step) = self.step(serial) {
                    step.segments[at].times = times;
                }
            }
            Some(Open::Copy { serial, at }) => {
                if let Some(step) = self.step(serial) {
                    step.copies[at].times = times;
                }
            }
        }
    }

    /// The steps so far, the oldest first, without work whose end nobody told, and the number of
    /// older ones that were dropped. Nothing is under way.
    pub(crate) fn take(&mut self) -> (Vec<StepRecord>, u64) {
        let mut lost: Vec<Open> = self.open.drain().map(|(_, open)| open).collect();
        // From the end, so that places stay right.
        lost.sort_unstable_by_key(|open| {
            let (Open::Segment { at, .. } | Open::Copy { at, .. }) = *open;
            std::cmp::Reverse(at)
        });
        for open in lost {
            match open {
                Open::Segment { serial, at } => {
                    self.step(serial).map(|step| step.segments.remove(at));
                }
                Open::Copy { serial, at } => {
                    self.step(serial).map(|step| step.copies.remove(at));
                }
            }
        }
        self.first += self.steps.len() as u64;
        (self.steps.drain(..).collect(), std::mem::take(&mut self.dropped))
    }

    /// A list for completions, to be given back.
    pub(crate) fn scratch(&mut self) -> Vec<Completion> {
        std::mem::take(&mut self.scratch)
    }

    pub(crate) fn give_back(&mut self, scratch: Vec<Completion>) {
        self.scratch = scratch;
    }
}
