//! A plan run on simulated devices: every step of one request as tasks in virtual time.
//!
//! What the plan's prediction leaves out is in it: every step has its own length of the KV cache, the
//! last chunk of a prompt its own size, devices that work at the same time slow each other, and copies
//! wait for links. With `pipelined`, chunks of a prompt overlap: a segment starts as soon as what it
//! reads is there, the chunk before has passed it (its keys and values are read) and its device is
//! free. That asks for room for the tensors of several chunks, which is not counted.

mod events;
mod tasks;

use serde_json::json;
use trefoil_devices_api::Phase;
use trefoil_telemetry::{Bytes, ChromeTrace};

use crate::Plan;
use crate::cost::{Corrections, Refused};
use crate::plan::Totals;
use crate::planner::Workload;
use crate::profile::Profile;
use events::Resource;
use trefoil_graph::LayerGraph;

/// Most tasks of a simulation: runs of units and copies in all steps of the request.
pub const MOST_TASKS: usize = 200_000;

/// What is to be simulated.
#[derive(Clone, Copy, Debug)]
pub struct SimulationRequest<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// Graph of its model.
    pub graph: &'a LayerGraph,
    /// The machine.
    pub profile: &'a Profile,
    /// What measurements say of its predictions.
    pub corrections: &'a Corrections,
    /// The request.
    pub workload: Workload,
    /// Bytes of one stored key or value element.
    pub kv_element_bytes: usize,
    /// May chunks of the prompt overlap?
    pub pipelined: bool,
}

/// A plan that cannot be simulated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SimulationError {
    /// A plan with no bucket for a phase.
    #[error("simulation: the plan has no bucket for {phase}")]
    Phase {
        /// The phase.
        phase: &'static str,
    },
    /// A unit of the plan that is not the model's.
    #[error("simulation: the plan has {got} units, the model {expected}")]
    Units {
        /// Units of the model.
        expected: usize,
        /// Units of the plan.
        got: usize,
    },
    /// A device that the profile has not.
    #[error("simulation: the profile {profile} has no device {got:?}; it has {known}")]
    Device {
        /// The profile.
        profile: String,
        /// What the plan says.
        got: String,
        /// What there is.
        known: String,
    },
    /// A device that does not take an op.
    #[error("simulation: {0}")]
    Refused(#[from] Refused),
    /// A copy where there is no link.
    #[error("simulation: no link from {from} to {to}")]
    Link {
        /// Source domain.
        from: String,
        /// Target domain.
        to: String,
    },
    /// Too much to keep.
    #[error(
        "simulation: expected a request of at most {most} runs and copies, got more; ask for fewer tokens"
    )]
    TooLong {
        /// Most of them.
        most: usize,
    },
}

/// What a span is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Activity {
    /// A device runs a segment.
    Run,
    /// A link copies a tensor.
    Copy,
    /// A link copies weights that are streamed.
    LoadWeights,
    /// A link moves KV pages after the prompt.
    MoveKv,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// Index of the device, or of the link.
    pub on: usize,
    /// What it did; a device for [`Activity::Run`], else a link.
    pub activity: Activity,
    /// Units or tensor.
    pub name: String,
    /// The phase.
    pub phase: Phase,
    /// Which step of the phase, from 0.
    pub step: usize,
    /// Seconds from the beginning of the request.
    pub start: f64,
    /// Seconds from the beginning of the request.
    pub end: f64,
    /// Seconds that it would have taken with nothing beside it.
    pub lone: f64,
}

/// What a device or link did in all.
#[derive(Clone, Debug, PartialEq)]
pub struct Busy {
    /// `gpu0`, `ram -> vram0`.
    pub name: String,
    /// Seconds in prefill and in decode.
    pub seconds: [f64; 2],
    /// Spans.
    pub count: usize,
    /// Seconds of them that others cost it.
    pub slowed: f64,
}

impl Busy {
    /// Seconds in all.
    pub fn total(&self) -> f64 {
        self.seconds.iter().sum()
    }
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub struct Simulation {
    /// In the order in which they were asked for.
    pub spans: Vec<Span>,
    /// By device of the profile.
    pub devices: Vec<Busy>,
    /// By link of the profile.
    pub links: Vec<Busy>,
    /// Seconds of prefill and of decode.
    pub seconds: [f64; 2],
    /// The same in the terms of plans.
    pub totals: Totals,
    /// Steps of the prompt.
    pub chunks: usize,
}

/// Runs the plan.
pub fn simulate(request: &SimulationRequest<'_>) -> Result<Simulation, SimulationError> {
    let listed = tasks::list(request)?;
    let ran = events::run(request.profile, &listed.tasks);
    let profile = request.profile;
    let spans = listed.tasks.iter().zip(&listed.labels).zip(&ran).map(|((task, label), ran)| {
        let on = match task.resource {
            Resource::Device(index) | Resource::Link(index) => index,
        };
        Span {
            on,
            activity: label.activity,
            name: listed.names[label.name].clone(),
            phase: label.phase,
            step: label.step,
            start: ran.start,
            end: ran.end,
            lone: task.fixed + task.work,
        }
    });
    let spans: Vec<Span> = spans.collect();
    let end_of = |phase: Phase| {
        let ends = spans.iter().filter(|span| span.phase == phase).map(|span| span.end);
        ends.fold(0.0, f64::max)
    };
    let prompt = end_of(Phase::Prefill);
    let decode = (end_of(Phase::Decode) - prompt).max(0.0);
    let busy = |name: String, runs: bool, index: usize| {
        let mut busy = Busy { name, seconds: [0.0; 2], count: 0, slowed: 0.0 };
        let own = |span: &&Span| span.on == index && (span.activity == Activity::Run) == runs;
        for span in spans.iter().filter(own) {
            let took = span.end - span.start;
            busy.seconds[usize::from(span.phase == Phase::Decode)] += took;
            busy.count += 1;
            busy.slowed += (took - span.lone).max(0.0);
        }
        busy
    };
    let devices = profile.devices.iter().enumerate();
    let devices = devices.map(|(index, device)| busy(device.name.clone(), true, index)).collect();
    let links = profile.links.iter().enumerate();
    let links = links.map(|(i, link)| busy(format!("{} -> {}", link.from, link.to), false, i));
    let links = links.collect();
    // The whole machine waits all the time; a device at work draws more.
    let idle: f64 = profile.devices.iter().map(|device| device.power.idle.get()).sum();
    let waiting = profile.base_power.get() + idle;
    let joules = |phase: Phase, seconds: f64| {
        let runs = listed.tasks.iter().zip(&listed.labels).zip(&ran);
        let more = runs.filter(|((_, label), _)| label.phase == phase).map(|((task, _), ran)| {
            let Resource::Device(device) = task.resource else { return 0.0 };
            let power = &profile.devices[device].power;
            ran.working * (power.busy.get() - power.idle.get()).max(0.0) + task.joules
        });
        seconds * waiting + more.sum::<f64>()
    };
    let generated = request.workload.generate.max(1) as f64;
    Ok(Simulation {
        seconds: [prompt, decode],
        totals: Totals {
            first_token_seconds: prompt,
            token_seconds: decode / generated,
            prompt_joules: joules(Phase::Prefill, prompt),
            token_joules: joules(Phase::Decode, decode) / generated,
        },
        chunks: listed.chunks,
        spans,
        devices,
        links,
    })
}

impl Simulation {
    /// The simulation as a trace: a track per device and per link that did something.
    pub fn trace(&self, about: &str) -> ChromeTrace {
        let mut trace = ChromeTrace::new();
        trace.group(about);
        let mut track = |busy: &Busy| (busy.count > 0).then(|| trace.track(&busy.name));
        let devices: Vec<_> = self.devices.iter().map(&mut track).collect();
        let links: Vec<_> = self.links.iter().map(&mut track).collect();
        for span in &self.spans {
            let tracks = if span.activity == Activity::Run { &devices } else { &links };
            let Some(track) = tracks[span.on] else { continue };
            let took = span.end - span.start;
            let slowed = if span.lone > 0.0 { took / span.lone } else { 1.0 };
            let args = json!({"step": span.step, "slowed": (slowed * 1000.0).round() / 1000.0});
            trace.span(track, &span.name, span.phase.name(), span.start, took, args);
        }
        trace
    }
}

/// Bytes of a tensor or of pages as names show them.
fn shown(bytes: f64) -> Bytes {
    Bytes(bytes.max(0.0) as u64)
}

#[cfg(test)]
mod tests;
