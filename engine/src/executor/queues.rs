//! Lanes with the recorder of what they are given.

use std::sync::Arc;

use trefoil_devices_api::{DeviceError, DomainId, Work};

use super::lanes::{Lanes, Mark, Marks};
use crate::records::{CopyKind, Recorder, Times};

/// What a piece of work is, for the records.
#[derive(Clone, Copy, Debug)]
pub(super) enum Given {
    /// A segment, by its place in the bucket.
    Segment(usize),
    /// A copy.
    Copy {
        kind: CopyKind,
        /// From, to.
        domains: [DomainId; 2],
        bytes: u64,
    },
}

/// Lanes with the recorder of what they are given.
#[derive(Debug, Default)]
pub(super) struct Queues {
    pub(super) lanes: Lanes,
    pub(super) recorder: Recorder,
}

impl Queues {
    /// Gives work to a lane for the step called `serial`.
    pub(super) fn give(
        &mut self,
        lane: usize,
        waits: &Marks,
        work: Work,
        label: &Arc<str>,
        serial: u64,
        given: Given,
    ) -> Result<Mark, DeviceError> {
        let (mark, id) = self.lanes.submit(lane, waits, work, label)?;
        if self.recorder.is_on() {
            let key = (self.lanes.told_by(lane), id);
            match given {
                Given::Segment(index) => self.recorder.segment(serial, key, label, index),
                Given::Copy { kind, domains, bytes } => {
                    self.recorder.copy(serial, key, label, kind, domains, bytes);
                }
            }
        }
        Ok(mark)
    }

    /// Takes the times of finished work from the devices.
    pub(super) fn collect(&mut self) {
        if !self.recorder.is_on() {
            return;
        }
        let tells = |lane: &usize| self.lanes.told_by(*lane) == *lane;
        for lane in (0..self.lanes.len()).filter(tells) {
            let mut finished = self.recorder.scratch();
            self.lanes.drain(lane, &mut finished);
            for done in finished.drain(..) {
                let (queued, start, end) = (done.queued, done.start, done.end);
                let times = Times { queued, start, end, device_time: done.device_time };
                self.recorder.finished((lane, done.id), times);
            }
            self.recorder.give_back(finished);
        }
    }
}
