//! What a model's steps take while it serves: sums since the start, and the last few steps as they
//! were, for whoever looks from outside.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use trefoil_devices_api::{Bucket, DomainId, Phase};

use crate::records::{CopyKind, SegmentRun, StepRecord};

/// Steps of each phase that are kept as they were.
pub const KEPT_STEPS: usize = 8;

/// How long the runs of a segment took.
#[derive(Clone, Debug, PartialEq)]
pub struct SegmentLive {
    /// The bucket.
    pub bucket: Bucket,
    /// Its place among the segments of the bucket.
    pub index: usize,
    /// The device.
    pub device: Arc<str>,
    /// Steps so far.
    pub runs: u64,
    /// Seconds of all of them.
    pub seconds: f64,
}

/// What the steps of a phase were.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PhaseLive {
    /// The phase.
    pub phase: Phase,
    /// Steps so far.
    pub steps: u64,
    /// Rows of all of them.
    pub rows: u64,
    /// Seconds of all of them, each from the begin of its first work to its result.
    pub seconds: f64,
    /// Sequences of the last one.
    pub last_sequences: usize,
}

/// What a device did.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceLive {
    /// Its name.
    pub device: Arc<str>,
    /// Rows of the steps that it had a part in: prefill, decode.
    pub rows: [u64; 2],
}

/// Copies between two domains.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinkLive {
    /// What they carried.
    pub kind: CopyKind,
    /// Domain of the source.
    pub from: DomainId,
    /// Domain of the target.
    pub to: DomainId,
    /// Bytes so far.
    pub bytes: u64,
    /// Seconds that they took.
    pub seconds: f64,
}

/// Everything that was measured so far.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// By segment, in the order of their first run.
    pub segments: Vec<SegmentLive>,
    /// By phase that had steps.
    pub phases: Vec<PhaseLive>,
    /// By device that had a part in a step.
    pub devices: Vec<DeviceLive>,
    /// By pair of domains.
    pub links: Vec<LinkLive>,
    /// The last steps of each phase, the oldest first.
    pub last: [VecDeque<Arc<StepRecord>>; 2],
}

impl Measured {
    /// The last steps of a phase, the oldest first.
    pub fn last_steps(&self, phase: Phase) -> impl Iterator<Item = &StepRecord> {
        self.last[place(phase)].iter().map(|step| &**step)
    }

    /// What the steps of a phase were; `None` if there were none.
    pub fn phase(&self, phase: Phase) -> Option<&PhaseLive> {
        self.phases.iter().find(|known| known.phase == phase)
    }

    /// How long the runs of a segment took; where its products are split, one entry per device.
    pub fn segment(
        &self,
        bucket: Bucket,
        index: usize,
    ) -> impl Iterator<Item = &SegmentLive> + use<'_> {
        self.segments.iter().filter(move |known| (known.bucket, known.index) == (bucket, index))
    }

    fn add(&mut self, step: StepRecord) {
        let seconds = match (step.start(), step.end()) {
            (Some(start), Some(end)) => end.since(start).seconds(),
            _ => return,
        };
        let rows = step.tokens as u64;
        let phase = find(
            &mut self.phases,
            |known| known.phase == step.phase,
            || PhaseLive { phase: step.phase, steps: 0, rows: 0, seconds: 0.0, last_sequences: 0 },
        );
        phase.steps += 1;
        phase.rows += rows;
        phase.seconds += seconds;
        phase.last_sequences = step.sequences;
        let mut at = 0;
        let runs = step.runs();
        for (number, run) in runs.iter().enumerate() {
            at = self.add_run(step.bucket, run, at) + 1;
            // Counted once, however many segments of the step are the device's.
            if !runs[..number].iter().any(|one| one.device == run.device) {
                let device = find(
                    &mut self.devices,
                    |known| known.device == run.device,
                    || DeviceLive { device: run.device.clone(), rows: [0; 2] },
                );
                device.rows[place(step.phase)] += rows;
            }
        }
        for copy in &step.copies {
            let same = |known: &LinkLive| {
                (known.kind, known.from, known.to) == (copy.kind, copy.from, copy.to)
            };
            let link = find(&mut self.links, same, || LinkLive {
                kind: copy.kind,
                from: copy.from,
                to: copy.to,
                bytes: 0,
                seconds: 0.0,
            });
            link.bytes += copy.bytes;
            link.seconds += copy.times.took().seconds();
        }
        let last = &mut self.last[place(step.phase)];
        if last.len() == KEPT_STEPS {
            last.pop_front();
        }
        last.push_back(Arc::new(step));
    }

    /// Adds a run; the search begins at `at`, where the segment is expected. Returns its place.
    fn add_run(&mut self, bucket: Bucket, run: &SegmentRun, at: usize) -> usize {
        let same = |known: &SegmentLive| {
            known.index == run.index && known.bucket == bucket && known.device == run.device
        };
        let expected = self.segments.get(at).is_some_and(same).then_some(at);
        let place = expected.or_else(|| self.segments.iter().position(same)).unwrap_or_else(|| {
            self.segments.push(SegmentLive {
                bucket,
                index: run.index,
                device: run.device.clone(),
                runs: 0,
                seconds: 0.0,
            });
            self.segments.len() - 1
        });
        let known = &mut self.segments[place];
        known.runs += 1;
        known.seconds += run.took.seconds();
        place
    }
}

/// The first that is meant, made if there is none.
fn find<T>(list: &mut Vec<T>, is: impl Fn(&T) -> bool, make: impl FnOnce() -> T) -> &mut T {
    let place = list.iter().position(is).unwrap_or_else(|| {
        list.push(make());
        list.len() - 1
    });
    &mut list[place]
}

/// Place of a phase in lists of two.
fn place(phase: Phase) -> usize {
    usize::from(phase == Phase::Decode)
}

/// Measurements of one model's steps: written by the thread that serves it, a few times a second, and
/// read by anybody.
#[derive(Debug, Default)]
pub struct Live {
    measured: Mutex<Measured>,
}

impl Live {
    /// Adds finished steps.
    pub fn add(&self, steps: Vec<StepRecord>) {
        if steps.is_empty() {
            return;
        }
        let mut measured = self.measured.lock();
        steps.into_iter().for_each(|step| measured.add(step));
    }

    /// What was measured so far.
    pub fn measured(&self) -> Measured {
        self.measured.lock().clone()
    }
}

#[cfg(test)]
mod tests {
    use trefoil_telemetry::Nanos;

    use super::*;
    use crate::records::{CopyRecord, SegmentRecord, Times};

    fn times(start: u64, end: u64) -> Times {
        Times { queued: Nanos(start), start: Nanos(start), end: Nanos(end), device_time: None }
    }

    fn step(phase: Phase, rows: usize, devices: &[&str]) -> StepRecord {
        let bucket = Bucket { phase, min_tokens: 1, max_tokens: 16, max_outputs: 16 };
        let segments = devices.iter().enumerate().map(|(index, &device)| SegmentRecord {
            index,
            label: format!("{} {index}", phase.name()).into(),
            device: device.into(),
            times: times(index as u64 * 1000, index as u64 * 1000 + 500),
        });
        StepRecord {
            phase,
            bucket,
            tokens: rows,
            outputs: 1,
            sequences: 1,
            past: 0,
            segments: segments.collect(),
            copies: vec![CopyRecord {
                label: "copy".into(),
                device: "cpu0".into(),
                kind: CopyKind::Tensor,
                from: DomainId(0),
                to: DomainId(1),
                bytes: 64,
                times: times(2500, 2600),
            }],
        }
    }

    #[test]
    fn steps_add_up_by_segment_device_and_link() {
        let live = Live::default();
        let (prefill, decode) = (Phase::Prefill, Phase::Decode);
        live.add(vec![step(prefill, 12, &["cpu0", "gpu0", "cpu0"]), step(decode, 1, &["gpu0"])]);
        live.add(vec![step(prefill, 4, &["cpu0", "gpu0", "cpu0"])]);
        let measured = live.measured();
        assert_eq!(measured.segments.len(), 4);
        let bucket = measured.segments[0].bucket;
        let middle: Vec<_> = measured.segment(bucket, 1).collect();
        assert_eq!((middle.len(), &*middle[0].device, middle[0].runs), (1, "gpu0", 2));
        assert!((middle[0].seconds - 1e-6).abs() < 1e-12);
        let rows = |name: &str| {
            measured.devices.iter().find(|known| &*known.device == name).expect("known").rows
        };
        // A device counts once a step, however many segments it has.
        assert_eq!((rows("cpu0"), rows("gpu0")), ([16, 0], [16, 1]));
        let phase = measured.phase(prefill).expect("had steps");
        assert_eq!((phase.steps, phase.rows), (2, 16));
        assert!((phase.seconds - 2.0 * 2.6e-6).abs() < 1e-12, "{}", phase.seconds);
        assert_eq!((measured.links.len(), measured.links[0].bytes), (1, 192));
        assert_eq!(measured.last_steps(decode).count(), 1);
    }

    #[test]
    fn pieces_of_a_segment_are_one_run() {
        let mut cut = step(Phase::Prefill, 4, &["cpu0", "gpu0", "cpu0", "cpu0"]);
        // Two pieces around a product that both devices share, then a segment of its own.
        cut.segments.iter_mut().zip([0, 0, 0, 1]).for_each(|(piece, index)| piece.index = index);
        let runs = cut.runs();
        let runs: Vec<_> = runs.iter().map(|run| (run.index, &*run.device, run.took.0)).collect();
        assert_eq!(runs, [(0, "cpu0", 1000), (0, "gpu0", 500), (1, "cpu0", 500)]);
    }

    #[test]
    fn only_the_last_steps_are_kept_as_they_were() {
        let live = Live::default();
        live.add((0..20).map(|rows| step(Phase::Prefill, rows, &["cpu0"])).collect());
        let measured = live.measured();
        let rows: Vec<usize> =
            measured.last_steps(Phase::Prefill).map(|step| step.tokens).collect();
        assert_eq!(rows, (20 - KEPT_STEPS..20).collect::<Vec<_>>());
        assert_eq!(measured.segments[0].runs, 20);
    }

    #[test]
    fn a_step_without_work_counts_for_nothing() {
        let live = Live::default();
        let mut empty = step(Phase::Decode, 1, &[]);
        empty.copies.clear();
        live.add(vec![empty]);
        assert!(live.measured().phases.is_empty());
    }
}
