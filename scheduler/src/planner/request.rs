//! What is planned, and what cannot be.

use std::collections::BTreeMap;

use trefoil_devices_api::{Bucket, Phase};
use trefoil_graph::LayerGraph;
use trefoil_telemetry::Bytes;

use super::{Goal, Weights, Workload};
use crate::cost::Corrections;
use crate::partition::{Limits, MAX_BUDGETS, MAX_DEVICES, MAX_DOMAINS, MAX_MODES, PartitionError};
use crate::place::{PlaceError, check_pin};
use crate::plan::{ModelRef, PlanError};
use crate::profile::Profile;
use crate::{Pin, nearest};

/// What is to be planned.
#[derive(Clone, Debug)]
pub struct PlanRequest<'a> {
    /// The model.
    pub model: ModelRef,
    /// Its graph.
    pub graph: &'a LayerGraph,
    /// The machine.
    pub profile: &'a Profile,
    /// What measurements say of its predictions.
    pub corrections: &'a Corrections,
    /// Name of the policy, for the plan.
    pub policy: String,
    /// What counts.
    pub goal: Goal,
    /// Weights of a balanced goal.
    pub weights: Weights,
    /// The request that is planned for.
    pub workload: Workload,
    /// Buckets to place.
    pub buckets: &'a [Bucket],
    /// Tokens of context to keep KV pages for.
    pub context: usize,
    /// Bytes of one stored key or value element.
    pub kv_element_bytes: usize,
    /// Devices that may be used; all if absent.
    pub devices: Option<Vec<String>>,
    /// Pins; the first match wins.
    pub pins: &'a [Pin],
    /// Is a pin that its device cannot take ignored (and reported) instead of an error?
    pub relax_pins: bool,
    /// Does a unit run on one device in both phases?
    pub joint_phases: bool,
    /// Shorter prompts are not read by an NPU, except where a pin says so.
    pub min_npu_prompt_tokens: u64,
    /// May KV pages move between domains after the prompt?
    pub move_kv: bool,
    /// May weights be streamed to a device for every step of a prompt, where its memory does not hold
    /// them?
    pub stream_weights: bool,
    /// May a product be split over two devices, where that gains more than `simple_within`?
    pub split_linears: bool,
    /// Most bytes of domains, by name, for models in all.
    pub memory_limits: BTreeMap<String, Bytes>,
    /// Bytes of each domain that are kept free.
    pub reserve: Bytes,
    /// A single device, or a plain split, is preferred if its cost is within this share of the best.
    pub simple_within: f64,
    /// How far to go for a proof.
    pub limits: Limits,
}

impl<'a> PlanRequest<'a> {
    /// A request with defaults: balanced, all devices, no pins.
    pub fn new(
        model: ModelRef,
        graph: &'a LayerGraph,
        profile: &'a Profile,
        corrections: &'a Corrections,
        buckets: &'a [Bucket],
    ) -> Self {
        Self {
            model,
            graph,
            profile,
            corrections,
            policy: Goal::default().name().to_owned(),
            goal: Goal::default(),
            weights: Weights::default(),
            workload: Workload::default(),
            buckets,
            context: 8192,
            kv_element_bytes: 2,
            devices: None,
            pins: &[],
            relax_pins: false,
            joint_phases: false,
            min_npu_prompt_tokens: 0,
            move_kv: true,
            stream_weights: true,
            split_linears: true,
            memory_limits: BTreeMap::new(),
            reserve: Bytes(0),
            simple_within: 0.01,
            limits: Limits::default(),
        }
    }

    pub(super) fn allows(&self, device: &str) -> bool {
        self.devices.as_ref().is_none_or(|names| names.iter().any(|name| name == device))
    }
}

/// A request that cannot be planned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlannerError {
    /// A device that is not there.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A pin that matches nothing.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// A pin to a device that cannot take the unit.
    #[error(
        "pin {pattern:?} = {device}: {unit} cannot run there: {why}; take the pin away or let \
         pins be relaxed"
    )]
    Pin {
        /// The pattern.
        pattern: String,
        /// The device.
        device: String,
        /// The unit.
        unit: String,
        /// Why.
        why: String,
    },
    /// A memory limit of a domain that is not there.
    #[error(
        "memory limit of {got:?}: expected one of {known}{}",
        near.as_ref().map(|name| format!("; did you mean {name:?}?")).unwrap_or_default()
    )]
    Domain {
        /// What was named.
        got: String,
        /// All domains.
        known: String,
        /// The most similar one.
        near: Option<String>,
    },
    /// No bucket for a phase.
    #[error("expected buckets of prefill and of decode, got none of {phase}")]
    NoBucket {
        /// The phase.
        phase: &'static str,
    },
    /// More than the partitioner's sets hold.
    #[error("expected at most {most} {what}, got {got}; leave some out")]
    TooMany {
        /// What of.
        what: &'static str,
        /// Most.
        most: usize,
        /// How many there are.
        got: usize,
    },
    /// No placement.
    #[error(transparent)]
    Partition(#[from] PartitionError),
}

pub(super) fn check(request: &PlanRequest<'_>) -> Result<(), PlannerError> {
    let profile = request.profile;
    let copies = profile.devices.iter().filter(|device| device.weight_copy.is_some()).count();
    for (what, got, most) in [
        ("devices of a profile", profile.devices.len(), MAX_DEVICES),
        ("domains of a profile", profile.domains.len(), MAX_DOMAINS),
        ("domains and devices with own copies", profile.domains.len() + copies, MAX_BUDGETS),
        ("buckets", request.buckets.len(), MAX_MODES),
    ] {
        if got > most {
            return Err(PlannerError::TooMany { what, most, got });
        }
    }
    let names: Vec<&str> = request.profile.devices.iter().map(|d| d.name.as_str()).collect();
    let allowed: Vec<&str> = names.iter().copied().filter(|name| request.allows(name)).collect();
    for name in request.devices.iter().flatten() {
        if !names.contains(&name.as_str()) {
            return Err(PlanError::unknown_device(name, &names).into());
        }
    }
    if allowed.is_empty() {
        return Err(PlaceError::NoDevice.into());
    }
    for pin in request.pins {
        if !allowed.contains(&pin.device.as_str()) {
            return Err(PlanError::unknown_device(&pin.device, &allowed).into());
        }
        check_pin(pin, request.graph)?;
    }
    let domains: Vec<&str> = request.profile.domains.iter().map(|d| d.name.as_str()).collect();
    for got in request.memory_limits.keys() {
        if !domains.contains(&got.as_str()) {
            return Err(PlannerError::Domain {
                got: got.clone(),
                known: domains.join(", "),
                near: nearest(got, domains.iter().copied()).map(str::to_owned),
            });
        }
    }
    for phase in [Phase::Prefill, Phase::Decode] {
        if !request.buckets.iter().any(|bucket| bucket.phase == phase) {
            return Err(PlannerError::NoBucket { phase: phase.name() });
        }
    }
    Ok(())
}
