//! Fences between queues of any devices, written once for all backends.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use trefoil_telemetry::Nanos;

use crate::Failure;

#[derive(Debug, Default)]
struct State {
    value: u64,
    failure: Option<Arc<Failure>>,
    /// Values that were signalled with a time, the newest last.
    times: VecDeque<(u64, Nanos)>,
}

/// Values whose times are remembered.
const TIMES: usize = 1024;

/// A counter that only grows. Work signals a value when it is done, other work waits for it; a
/// failure is final and wakes every waiter: no value is reached after it.
#[derive(Debug, Default)]
pub struct Timeline {
    state: Mutex<State>,
    changed: Condvar,
}

/// A value of a timeline: "everything up to here is done".
#[derive(Clone, Debug)]
pub struct Point {
    /// The timeline.
    pub timeline: Arc<Timeline>,
    /// The value.
    pub value: u64,
}

impl Timeline {
    /// Raises the value to `value`; a lower one changes nothing, nor does any after a failure: what
    /// follows failed work on a queue must not look as if the failed work had been done.
    pub fn signal(&self, value: u64) {
        self.raise(value, None);
    }

    /// As [`Timeline::signal`], for devices whose time is not the machine's: says when it happened.
    pub fn signal_at(&self, value: u64, time: Nanos) {
        self.raise(value, Some(time));
    }

    fn raise(&self, value: u64, time: Option<Nanos>) {
        let mut state = self.state.lock();
        if value > state.value && state.failure.is_none() {
            state.value = value;
            if let Some(time) = time {
                if state.times.len() == TIMES {
                    state.times.pop_front();
                }
                state.times.push_back((value, time));
            }
            self.changed.notify_all();
        }
    }

    /// When the value was reached, as [`Timeline::signal_at`] said; `None` if nobody did.
    pub fn time_of(&self, value: u64) -> Option<Nanos> {
        let state = self.state.lock();
        let known = state.times.iter().find(|(reached, _)| *reached >= value);
        known.map(|&(_, time)| time)
    }

    /// Marks the timeline as failed; the first cause stays.
    pub fn fail(&self, cause: Arc<Failure>) {
        let mut state = self.state.lock();
        state.failure.get_or_insert(cause);
        self.changed.notify_all();
    }

    /// Has the value been reached? `None` if not yet.
    pub fn poll(&self, value: u64) -> Option<Result<(), Arc<Failure>>> {
        Self::look(&self.state.lock(), value)
    }

    fn look(state: &State, value: u64) -> Option<Result<(), Arc<Failure>>> {
        if state.value >= value {
            return Some(Ok(()));
        }
        state.failure.clone().map(Err)
    }

    /// Blocks until the value is reached or the timeline fails. For queue threads and the engine's
    /// own thread only.
    pub fn wait(&self, value: u64) -> Result<(), Arc<Failure>> {
        let mut state = self.state.lock();
        loop {
            if let Some(result) = Self::look(&state, value) {
                return result;
            }
            self.changed.wait(&mut state);
        }
    }

    /// As [`Timeline::wait`], but gives up after `limit` with `None`.
    pub fn wait_for(&self, value: u64, limit: Duration) -> Option<Result<(), Arc<Failure>>> {
        let end = Instant::now() + limit;
        let mut state = self.state.lock();
        loop {
            if let Some(result) = Self::look(&state, value) {
                return Some(result);
            }
            if self.changed.wait_until(&mut state, end).timed_out() {
                return Self::look(&state, value);
            }
        }
    }
}

impl Point {
    /// Blocks until the point is reached or its timeline fails.
    pub fn wait(&self) -> Result<(), Arc<Failure>> {
        self.timeline.wait(self.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DeviceError, LostReason, SubmissionId};

    fn failure(label: &str) -> Arc<Failure> {
        let error = DeviceError::Lost { reason: LostReason::Driver, epoch: 0 };
        let (device, label) = ("sim0".to_owned(), label.to_owned());
        Arc::new(Failure { origin: SubmissionId(1), device, label, error })
    }

    #[test]
    fn a_waiter_wakes_when_the_value_is_reached() {
        let timeline = Arc::new(Timeline::default());
        let other = timeline.clone();
        let waiter = std::thread::spawn(move || other.wait(2));
        timeline.signal(1);
        assert!(timeline.poll(2).is_none());
        timeline.signal(2);
        assert!(waiter.join().expect("no panic").is_ok());
        timeline.signal(1);
        assert!(matches!(timeline.poll(2), Some(Ok(()))), "the value never falls");
    }

    #[test]
    fn the_first_failure_reaches_every_waiter_but_not_what_was_done() {
        let timeline = Timeline::default();
        timeline.signal(3);
        timeline.fail(failure("first"));
        timeline.fail(failure("second"));
        assert!(timeline.wait(3).is_ok());
        assert_eq!(timeline.wait(4).expect_err("failed").label, "first");
        timeline.signal(5);
        assert_eq!(timeline.wait(4).expect_err("failed for good").label, "first");
    }

    #[test]
    fn times_are_those_of_the_first_signal_that_reached_the_value() {
        let timeline = Timeline::default();
        timeline.signal_at(2, Nanos(20));
        timeline.signal_at(3, Nanos(30));
        timeline.signal(4);
        let times = [1, 2, 3, 4].map(|value| timeline.time_of(value));
        assert_eq!(times, [Some(Nanos(20)), Some(Nanos(20)), Some(Nanos(30)), None]);
    }
}
