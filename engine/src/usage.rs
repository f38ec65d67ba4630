//! What records of steps say in a few numbers: how busy devices were, and how right the plan was.

use std::collections::BTreeMap;

use trefoil_devices_api::Phase;
use trefoil_scheduler::{BucketPlan, Plan};
use trefoil_telemetry::Nanos;

use crate::calibrate::Predictor;
use crate::records::{SegmentRecord, StepRecord};

/// Most segments that are shown.
const MOST_LINES: usize = 24;

/// How long the steps of a phase took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PhaseTime {
    /// The phase.
    pub phase: Phase,
    /// Steps measured: full ones (as many rows as the bucket takes) where there are any, else all.
    pub steps: usize,
    /// Rows of those steps, on average.
    pub rows: f64,
    /// Seconds of such a step, on average, from its first work's begin to its result.
    pub seconds: f64,
    /// Rows of a full step.
    pub full_rows: usize,
    /// Predicted seconds: of the measured steps at their own rows and past where the devices' costs
    /// are known, on average; else of a full step, as the plan has it; absent where it has none.
    pub predicted_seconds: Option<f64>,
    /// Is the prediction one of the measured steps, whatever their rows?
    pub at_own_rows: bool,
}

/// How long the runs of a segment took.
#[derive(Clone, Debug, PartialEq)]
pub struct SegmentTime {
    /// Phase, first and last unit.
    pub label: String,
    /// The device.
    pub device: String,
    /// Runs.
    pub runs: usize,
    /// Seconds of a run, on average.
    pub seconds: f64,
    /// Predicted seconds of the same runs, on average, at the rows and past of each.
    pub predicted_seconds: f64,
}

/// What records of steps say in a few numbers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Usage {
    /// Share of the time from the first step's begin to the last one's end in which each device was at
    /// work, by name; 0 to 1.
    pub busy: Vec<(String, f64)>,
    /// Phases that had steps.
    pub phases: Vec<PhaseTime>,
    /// Segments that were predicted, in the order of their first run.
    pub segments: Vec<SegmentTime>,
}

impl Usage {
    /// Of `records`, made by `plan`.
    pub fn of(records: &[StepRecord], plan: &Plan) -> Self {
        Self::predicted(records, plan, None)
    }

    /// As [`Self::of`], with what each step and segment should have taken.
    pub fn predicted(
        records: &[StepRecord],
        plan: &Plan,
        predictor: Option<Predictor<'_>>,
    ) -> Self {
        let phases = [Phase::Prefill, Phase::Decode];
        let phases =
            phases.into_iter().filter_map(|phase| phase_time(records, plan, predictor, phase));
        let segments = predictor.map(|predictor| segments(records, plan, predictor));
        let segments = segments.unwrap_or_default();
        Self { busy: busy(records), phases: phases.collect(), segments }
    }
}

fn segments(records: &[StepRecord], plan: &Plan, predictor: Predictor<'_>) -> Vec<SegmentTime> {
    let mut all: Vec<SegmentTime> = Vec::new();
    let runs = records.iter().flat_map(|step| step.segments.iter().map(move |of| (step, of)));
    let timed = runs.filter_map(|(step, segment): (&StepRecord, &SegmentRecord)| {
        Some((segment, predictor.segment(plan, step, segment)?))
    });
    for (segment, predicted) in timed {
        let seconds = segment.times.took().seconds();
        let known = all
            .iter_mut()
            .find(|known| known.label == *segment.label && known.device == *segment.device);
        match known {
            Some(known) => {
                known.runs += 1;
                known.seconds += seconds;
                known.predicted_seconds += predicted;
            }
            None => all.push(SegmentTime {
                label: segment.label.to_string(),
                device: segment.device.to_string(),
                runs: 1,
                seconds,
                predicted_seconds: predicted,
            }),
        }
    }
    for segment in &mut all {
        segment.seconds /= segment.runs as f64;
        segment.predicted_seconds /= segment.runs as f64;
    }
    all
}

fn busy(records: &[StepRecord]) -> Vec<(String, f64)> {
    let start = records.iter().filter_map(StepRecord::start).min().unwrap_or_default();
    let mut last = Nanos::default();
    let mut devices: BTreeMap<&str, u64> = BTreeMap::new();
    for step in records {
        let segments = step.segments.iter().map(|segment| (&*segment.device, &segment.times));
        let copies = step.copies.iter().map(|copy| (&*copy.device, &copy.times));
        for (device, times) in segments.chain(copies) {
            *devices.entry(device).or_default() += times.took().0;
            last = last.max(times.end);
        }
    }
    let all = last.since(start);
    let share = |nanos: u64| if all.0 == 0 { 0.0 } else { nanos as f64 / all.0 as f64 };
    devices.into_iter().map(|(device, nanos)| (device.to_owned(), share(nanos))).collect()
}

fn phase_time(
    records: &[StepRecord],
    plan: &Plan,
    predictor: Option<Predictor<'_>>,
    phase: Phase,
) -> Option<PhaseTime> {
    let of_phase = || records.iter().filter(|step| step.phase == phase);
    // Of the largest bucket: one figure per phase.
    let full_rows = of_phase().map(|step| step.bucket.max_tokens).max()?;
    let is_full = |step: &&StepRecord| step.tokens == full_rows;
    let full = of_phase().any(|step| is_full(&step));
    let chosen: Vec<&StepRecord> = of_phase().filter(|step| !full || is_full(step)).collect();
    let seconds = chosen.iter().filter_map(|step| Some(step.end()?.since(step.start()?).seconds()));
    let seconds: f64 = seconds.sum();
    let steps = chosen.len();
    let rows: usize = chosen.iter().map(|step| step.tokens).sum();
    let planned = plan
        .buckets
        .iter()
        .find(|bucket| bucket.bucket.phase == phase && bucket.bucket.max_tokens == full_rows);
    let own = predictor.and_then(|predictor| {
        let each = chosen.iter().map(|record| predictor.step(plan, record));
        Some(each.sum::<Option<f64>>()? / steps as f64)
    });
    Some(PhaseTime {
        phase,
        steps,
        rows: rows as f64 / steps as f64,
        seconds: seconds / steps as f64,
        full_rows,
        predicted_seconds: own.or(planned.and_then(|bucket| bucket.predicted_seconds)),
        at_own_rows: own.is_some(),
    })
}

/// What a segment took in some steps of its bucket.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepTimes {
    /// Steps.
    pub steps: usize,
    /// Rows of a step, on average.
    pub rows: f64,
    /// Tokens in the KV cache before a step, on average.
    pub past: f64,
    /// Seconds of a step on the segment's own device, on average.
    pub seconds: f64,
    /// Predicted seconds of the same steps, on average; absent where costs are not known, and for
    /// segments that are cut.
    pub predicted_seconds: Option<f64>,
}

impl StepTimes {
    /// What segment `index` of `bucket` took in `steps`, as far as they are of that bucket; `None` if
    /// it did not run in any.
    pub fn of<'a>(
        steps: impl Iterator<Item = &'a StepRecord>,
        plan: &Plan,
        bucket: &BucketPlan,
        index: usize,
        predictor: Option<Predictor<'_>>,
    ) -> Option<Self> {
        let own = bucket.segments().into_iter().nth(index)?.device;
        let mut sum =
            Self { steps: 0, rows: 0.0, past: 0.0, seconds: 0.0, predicted_seconds: None };
        let mut predicted = Some(0.0);
        for step in steps.filter(|step| step.bucket == bucket.bucket) {
            let mut runs = step.runs().into_iter();
            let Some(run) = runs.find(|run| run.index == index && *run.device == *own) else {
                continue;
            };
            sum.steps += 1;
            sum.rows += step.tokens as f64;
            sum.past += step.past as f64;
            sum.seconds += run.took.seconds();
            let record = step.segments.iter().find(|segment| segment.index == index);
            let one = predictor
                .zip(record)
                .and_then(|(predictor, record)| predictor.segment(plan, step, record));
            predicted = predicted.zip(one).map(|(sum, one)| sum + one);
        }
        let steps = (sum.steps > 0).then_some(sum.steps as f64)?;
        Some(Self {
            steps: sum.steps,
            rows: sum.rows / steps,
            past: sum.past / steps,
            seconds: sum.seconds / steps,
            predicted_seconds: predicted.map(|sum| sum / steps),
        })
    }

    /// Measured by predicted seconds, less 1; absent without a prediction.
    pub fn error_ratio(&self) -> Option<f64> {
        self.predicted_seconds.filter(|&predicted| predicted > 0.0).map(|p| self.seconds / p - 1.0)
    }
}

impl std::fmt::Display for PhaseTime {
    /// `decode step of 1 row 12.30 ms, predicted 11.80 ms (measured 104 % of it)`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { rows, seconds, full_rows, .. } = *self;
        let plural = |rows: f64| if rows == 1.0 { "row" } else { "rows" };
        let (phase, word) = (self.phase.name(), plural(rows));
        write!(f, "{phase} step of {} {word} {:.2} ms", rows.round(), seconds * 1e3)?;
        match self.predicted_seconds {
            None => Ok(()),
            Some(predicted) if self.at_own_rows || rows == full_rows as f64 => {
                let share = 100.0 * seconds / predicted;
                write!(f, ", predicted {:.2} ms (measured {share:.0} % of it)", predicted * 1e3)
            }
            Some(predicted) => {
                write!(f, ", predicted {:.2} ms for {full_rows} rows", predicted * 1e3)
            }
        }
    }
}

impl std::fmt::Display for Usage {
    /// `busy cpu0 83 %, gpu0 12 % · prefill step … · decode step …`, then a line per segment that was
    /// predicted.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let busy = self.busy.iter().map(|(name, share)| format!("{name} {:.0} %", share * 100.0));
        write!(f, "busy {}", busy.collect::<Vec<_>>().join(", "))?;
        self.phases.iter().try_for_each(|phase| write!(f, " · {phase}"))?;
        let most = self.segments.len().min(MOST_LINES);
        for SegmentTime { label, device, runs, seconds, predicted_seconds } in
            &self.segments[..most]
        {
            let (ms, predicted) = (seconds * 1e3, predicted_seconds * 1e3);
            let share = 100.0 * seconds / predicted_seconds;
            write!(
                f,
                "\n  {device:<6} {label}: {ms:.3} ms, predicted {predicted:.3} ms (measured \
                 {share:.0} % of it, {runs} runs)"
            )?;
        }
        match self.segments.len() - most {
            0 => Ok(()),
            more => write!(f, "\n  and {more} more segments"),
        }
    }
}
