//! The queues that an executor gives work to, and points of their timelines.

use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;
use trefoil_devices_api::{
    Completion, Device, DeviceError, Failure, Point, Points, Submission, SubmissionId, Timeline,
    Work,
};

/// A device's queue, with a timeline that counts what the executor gave to it.
#[derive(Debug)]
struct Lane {
    device: Arc<dyn Device>,
    /// Number of the queue on the device.
    queue: usize,
    timeline: Arc<Timeline>,
    given: u64,
}

/// "This piece of work, and all that its lane was given before, is done."
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) lane: usize,
    value: u64,
}

/// What must be done before something may begin: at most one mark per lane, the latest.
#[derive(Clone, Debug, Default)]
pub(super) struct Marks(SmallVec<[Mark; 4]>);

impl Marks {
    pub(super) fn add(&mut self, mark: Mark) {
        match self.0.iter_mut().find(|known| known.lane == mark.lane) {
            Some(known) => known.value = known.value.max(mark.value),
            None => self.0.push(mark),
        }
    }

    pub(super) fn add_all(&mut self, other: &Self) {
        other.0.iter().for_each(|&mark| self.add(mark));
    }

    /// Only this mark: it waited for all the others.
    pub(super) fn replace(&mut self, mark: Mark) {
        self.0.clear();
        self.0.push(mark);
    }

    /// Is the mark reached when these are?
    pub(super) fn covers(&self, mark: Mark) -> bool {
        self.0.iter().any(|known| known.lane == mark.lane && known.value >= mark.value)
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// All queues that a plan uses.
#[derive(Debug, Default)]
pub(super) struct Lanes(Vec<Lane>);

impl Lanes {
    /// The lane of a device; a new one if it has none yet.
    pub(super) fn of(&mut self, device: &Arc<dyn Device>) -> usize {
        self.of_queue(device, 0)
    }

    /// The lane of one of a device's queues; a new one if it has none yet.
    pub(super) fn of_queue(&mut self, device: &Arc<dyn Device>, queue: usize) -> usize {
        self.position(&device.info().name, queue).unwrap_or_else(|| {
            let (device, timeline) = (device.clone(), Arc::default());
            self.0.push(Lane { device, queue, timeline, given: 0 });
            self.0.len() - 1
        })
    }

    /// Is there more than one device?
    pub(super) fn are_of_several(&self) -> bool {
        let mut names = self.0.iter().map(|lane| &lane.device.info().name);
        let first = names.next();
        names.any(|name| Some(name) != first)
    }

    /// More work comes to all devices within this time.
    pub(super) fn keep_awake(&self, time: Duration) {
        self.0.iter().filter(|lane| lane.queue == 0).for_each(|lane| lane.device.keep_awake(time));
    }

    fn position(&self, name: &str, queue: usize) -> Option<usize> {
        self.0.iter().position(|lane| lane.device.info().name == name && lane.queue == queue)
    }

    /// The first lane of a lane's device: a device tells of the work of all its queues at once.
    pub(super) fn told_by(&self, lane: usize) -> usize {
        let name = &self.0[lane].device.info().name;
        let first = self.0.iter().position(|other| other.device.info().name == *name);
        first.unwrap_or(lane)
    }

    /// Names of the devices, by lane.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|lane| lane.device.info().name.as_str())
    }

    /// Gives work to a lane; it begins when all of `waits` is done.
    pub(super) fn submit(
        &mut self,
        lane: usize,
        waits: &Marks,
        work: Work,
        label: &Arc<str>,
    ) -> Result<(Mark, SubmissionId), DeviceError> {
        let point =
            |mark: &Mark| Point { timeline: self.0[mark.lane].timeline.clone(), value: mark.value };
        let waits: Points = waits.0.iter().map(point).collect();
        let to = &mut self.0[lane];
        to.given += 1;
        let mark = Mark { lane, value: to.given };
        let signals = Points::from_iter([Point { timeline: to.timeline.clone(), value: to.given }]);
        let id = to
            .device
            .submit(to.queue, Submission { waits, signals, work, label: label.clone() })?;
        Ok((mark, id))
    }

    /// Waits until the mark is reached.
    pub(super) fn wait(&self, mark: Mark) -> Result<(), Arc<Failure>> {
        self.0[mark.lane].timeline.wait(mark.value)
    }

    /// Is everything that was given done, without failure?
    pub(super) fn is_idle(&self) -> bool {
        let done = |lane: &Lane| matches!(lane.timeline.poll(lane.given), Some(Ok(())));
        self.0.iter().all(done)
    }

    /// Waits until no device is at the executor's work, whatever became of it.
    pub(super) fn settle(&self) {
        let behind = self.0.iter().filter_map(|lane| {
            let timeline: Arc<Timeline> = Arc::default();
            let signals = Points::from_iter([Point { timeline: timeline.clone(), value: 1 }]);
            let (waits, work, label) = (Points::new(), Work::Barrier, "settle".into());
            let barrier = Submission { waits, signals, work, label };
            // A device that takes nothing any more has nothing to do either.
            lane.device.submit(lane.queue, barrier).ok().map(|_| timeline)
        });
        let behind: Vec<Arc<Timeline>> = behind.collect();
        for timeline in behind {
            // Reached or failed: the queue got there.
            let _ = timeline.wait(1);
        }
    }

    /// Forgets failures: all marks made so far mean nothing any more. Nothing is under way.
    pub(super) fn renew(&mut self) {
        for lane in &mut self.0 {
            lane.timeline = Arc::default();
            lane.given = 0;
        }
    }

    /// Moves the records of a lane's finished work to `out`.
    pub(super) fn drain(&self, lane: usize, out: &mut Vec<Completion>) {
        self.0[lane].device.drain(out);
    }

    /// Number of lanes.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}
