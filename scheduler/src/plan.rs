//! A plan is a plain value: made by a pure function, printed, stored, compared, forced, replayed.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use trefoil_devices_api::{Bucket, DomainId, Phase};
use trefoil_graph::{LayerGraph, UnitId};
use trefoil_telemetry::Bytes;

pub use crate::split::{LinearSplit, Share};
use crate::{Pin, nearest};

/// Version of the plan's JSON form.
pub const PLAN_VERSION: u32 = 1;

/// Most steps under way at once: more would take memory for devices that few machines have.
pub(crate) const MOST_AT_ONCE: usize = 3;

/// Longest context believed: that of no known model, and small enough that sizes do not overflow.
const MOST_CONTEXT: usize = 1 << 24;

/// Which model a plan is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelRef {
    /// Fingerprint of the file.
    pub fingerprint: String,
    /// `general.architecture`.
    pub architecture: String,
    /// `general.name`.
    pub name: Option<String>,
}

/// A unit's place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UnitPlacement {
    /// Name of the unit.
    pub unit: String,
    /// Name of the device.
    pub device: String,
}

/// A tensor's move between domains, between two segments of a bucket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Transfer {
    /// Op that makes the tensor.
    pub tensor: String,
    /// Domain it is made in.
    #[schemars(with = "u16")]
    pub from: DomainId,
    /// Domain it is needed in.
    #[schemars(with = "u16")]
    pub to: DomainId,
    /// Bytes per step at most.
    #[schemars(with = "u64")]
    pub bytes: Bytes,
}

/// JSON form of [`Bucket`].
#[derive(JsonSchema)]
#[serde(rename = "Bucket")]
#[expect(dead_code, reason = "read by the schema only")]
struct BucketForm {
    /// `prefill` or `decode`.
    phase: PhaseForm,
    /// Fewest rows.
    min_tokens: usize,
    /// Most rows.
    max_tokens: usize,
    /// Most rows whose output is wanted, and most sequences.
    max_outputs: usize,
}

/// JSON form of a phase.
#[derive(JsonSchema)]
#[serde(rename = "Phase", rename_all = "lowercase")]
#[expect(dead_code, reason = "read by the schema only")]
pub(crate) enum PhaseForm {
    Prefill,
    Decode,
}

/// Placement in one bucket.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BucketPlan {
    /// The bucket.
    #[schemars(with = "BucketForm")]
    pub bucket: Bucket,
    /// Every unit, in the order in which they run.
    pub units: Vec<UnitPlacement>,
    /// Products that are split over devices; the device of their unit gets the whole result.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub splits: Vec<LinearSplit>,
    /// Units whose weights are not kept in the memory of their device: they lie in host memory, and a
    /// copy goes there shortly before each step that needs them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub streamed: Vec<String>,
    /// Moves between domains.
    pub transfers: Vec<Transfer>,
    /// Predicted seconds of a full step; absent without a profile.
    pub predicted_seconds: Option<f64>,
    /// Predicted joules of a full step; absent without a profile.
    pub predicted_joules: Option<f64>,
    /// Predicted costs of the runs of units; empty without a profile.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub segments: Vec<SegmentPrediction>,
}

/// Predicted cost of a run of units on one device in a full step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SegmentPrediction {
    /// First unit.
    pub first: String,
    /// Last unit.
    pub last: String,
    /// Name of the device.
    pub device: String,
    /// Seconds: its ops, without moves.
    pub seconds: f64,
    /// Joules of the whole machine in that time.
    pub joules: f64,
}

/// What a placement is predicted to do for one request.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Totals {
    /// Seconds to the first token: the whole prompt, and moves of KV pages after it.
    pub first_token_seconds: f64,
    /// Seconds per generated token.
    pub token_seconds: f64,
    /// Joules of the prompt.
    pub prompt_joules: f64,
    /// Joules per generated token.
    pub token_joules: f64,
}

/// A placement that was not chosen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Alternative {
    /// What it is: `gpu0 alone`.
    pub name: String,
    /// Its cost under the objective; absent if it cannot be done.
    pub score: Option<f64>,
    /// What it would do; absent if it cannot be done.
    pub totals: Option<Totals>,
    /// Why it was not chosen.
    pub why: String,
}

/// A prompt whose chunks are on several devices at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Overlapped {
    /// Chunks under way at once.
    pub steps_at_once: usize,
    /// Seconds to the first token, as an estimate.
    pub first_token_seconds: f64,
    /// Cost under the objective with that.
    pub score: f64,
}

/// What the plan is predicted to do, and how it was chosen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Prediction {
    /// Tokens of the prompt that was planned for.
    pub prompt_tokens: u64,
    /// Tokens generated after it.
    pub generated_tokens: u64,
    /// What the plan does for such a request.
    pub totals: Totals,
    /// What chunks of the prompt that are under way at once make of it; absent where none are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlapped: Option<Overlapped>,
    /// Its cost under the objective, steps one after another.
    pub score: f64,
    /// No placement has a lower one.
    pub lower_bound: f64,
    /// Share of the score that could be saved at most.
    pub gap: f64,
    /// Other placements, the best first.
    pub alternatives: Vec<Alternative>,
}

/// Memory that a plan needs in a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DomainMemory {
    /// The domain.
    #[schemars(with = "u16")]
    pub domain: DomainId,
    /// Weights; shared memory counted once.
    #[schemars(with = "u64")]
    pub weights: Bytes,
    /// KV pages at the planned context.
    #[schemars(with = "u64")]
    pub kv: Bytes,
    /// Tensors between segments, of all steps that are under way at once.
    #[schemars(with = "u64")]
    pub activations: Bytes,
    /// Buffers that weights are streamed through.
    #[serde(default, skip_serializing_if = "is_nothing")]
    #[schemars(with = "u64")]
    pub streaming: Bytes,
}

fn is_nothing(bytes: &Bytes) -> bool {
    bytes.0 == 0
}

/// A pin, and what it did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PinReport {
    /// The pin.
    pub pin: Pin,
    /// Units that it placed.
    pub placed: usize,
}

/// Which unit runs where, per bucket.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Version of this form.
    pub version: u32,
    /// The model.
    pub model: ModelRef,
    /// Profile that the predictions come from.
    pub profile: Option<String>,
    /// Policy that chose.
    pub policy: String,
    /// Tokens that the KV pages are planned for.
    pub context: usize,
    /// Placement per bucket.
    pub buckets: Vec<BucketPlan>,
    /// Domain of each KV layer; where `kv_decode` is there too: while the prompt is read.
    #[schemars(with = "Vec<u16>")]
    pub kv: Vec<DomainId>,
    /// Domain of each KV layer in decode, where pages move after the prompt. Both domains have room
    /// for all pages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<u16>>")]
    pub kv_decode: Option<Vec<DomainId>>,
    /// Memory per domain.
    pub memory: Vec<DomainMemory>,
    /// Pins and how they were met.
    pub pins: Vec<PinReport>,
    /// What it is predicted to do; absent without a profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prediction: Option<Prediction>,
    /// Why it is as it is, in words.
    pub reasons: Vec<String>,
}

/// A run of units on one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentPlan {
    /// The device.
    pub device: String,
    /// Its units, ascending.
    pub units: Vec<UnitId>,
}

/// A plan that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// Not JSON of this form.
    #[error("plan: {0}")]
    Json(#[from] serde_json::Error),
    /// Of another version.
    #[error("plan: expected version {PLAN_VERSION}, got {got}; make it again with `trefoil plan`")]
    Version {
        /// What came.
        got: u32,
    },
    /// For another model.
    #[error("plan: expected model {expected}, got {got}; make it again for this model")]
    Model {
        /// Fingerprint of the loaded model.
        expected: String,
        /// Fingerprint in the plan.
        got: String,
    },
    /// The units are not the model's.
    #[error("plan: bucket {bucket}: expected unit {expected}, got {got}")]
    Units {
        /// Index of the bucket.
        bucket: usize,
        /// What the model has there.
        expected: String,
        /// What the plan says.
        got: String,
    },
    /// A split that cannot be done.
    #[error("plan: bucket {bucket}: split of {op:?}: expected {expected}, got {got}")]
    Split {
        /// Index of the bucket.
        bucket: usize,
        /// The op that the plan names.
        op: String,
        /// What would be right.
        expected: String,
        /// What the plan says.
        got: String,
    },
    /// Weights that cannot be streamed.
    #[error("plan: bucket {bucket}: streamed {unit:?}: expected {expected}, got {got}")]
    Streamed {
        /// Index of the bucket.
        bucket: usize,
        /// The unit that the plan names.
        unit: String,
        /// What would be right.
        expected: String,
        /// What the plan says.
        got: String,
    },
    /// A device that is not here.
    #[error("plan: device {got:?} is not here; here are: {known}{}", did_you_mean(.near))]
    Device {
        /// What the plan says.
        got: String,
        /// All devices.
        known: String,
        /// The most similar one.
        near: Option<String>,
    },
    /// A size that cannot be meant.
    #[error("plan: {what}: expected {expected}, got {got}")]
    Size {
        /// Which.
        what: String,
        /// What would be right.
        expected: String,
        /// What the plan says.
        got: usize,
    },
    /// No buckets for a phase.
    #[error("plan: no bucket for {phase}")]
    Phase {
        /// The phase.
        phase: &'static str,
    },
}

fn did_you_mean(near: &Option<String>) -> String {
    near.as_ref().map(|name| format!("; did you mean {name}?")).unwrap_or_default()
}

impl PlanError {
    /// A device that is not among `known`.
    pub fn unknown_device(got: &str, known: &[&str]) -> Self {
        Self::Device {
            got: got.to_owned(),
            known: known.join(", "),
            near: nearest(got, known.iter().copied()).map(str::to_owned),
        }
    }
}

impl BucketPlan {
    /// Units next to each other on one device, as segments.
    pub fn segments(&self) -> Vec<SegmentPlan> {
        let mut segments: Vec<SegmentPlan> = Vec::new();
        for (index, placement) in self.units.iter().enumerate() {
            match segments.last_mut() {
                Some(last) if last.device == placement.device => last.units.push(UnitId(index)),
                _ => segments.push(SegmentPlan {
                    device: placement.device.clone(),
                    units: vec![UnitId(index)],
                }),
            }
        }
        segments
    }

    /// Steps of the bucket that are under way at once: while a prompt's chunk is on one device, the
    /// next may be on another. Each has tensors of its own. 1 where there is nothing to gain.
    pub fn steps_at_once(&self) -> usize {
        match self.bucket.phase {
            Phase::Prefill => self.units_per_device().len().clamp(1, MOST_AT_ONCE),
            Phase::Decode => 1,
        }
    }

    /// Names of all devices that have something to do, ascending.
    pub fn devices(&self) -> BTreeSet<&str> {
        let units = self.units.iter().map(|unit| unit.device.as_str());
        let shares = self.splits.iter().flat_map(|split| &split.shares);
        units.chain(shares.map(|share| share.device.as_str())).collect()
    }

    /// Number of units per device.
    pub fn units_per_device(&self) -> BTreeMap<&str, usize> {
        let mut counts = BTreeMap::new();
        for placement in &self.units {
            *counts.entry(placement.device.as_str()).or_default() += 1;
        }
        counts
    }
}

impl Plan {
    /// Reads a plan's JSON form.
    pub fn from_json(text: &str) -> Result<Self, PlanError> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let Version { version } = serde_json::from_str(text)?;
        if version != PLAN_VERSION {
            return Err(PlanError::Version { got: version });
        }
        Ok(serde_json::from_str(text)?)
    }

    /// JSON schema of the plan's JSON form.
    pub fn schema() -> serde_json::Value {
        schemars::schema_for!(Self).to_value()
    }

    /// The plan's JSON form.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a plan is plain data")
    }

    /// Checks a plan against the model and the devices that it is to run on.
    pub fn check(
        &self,
        fingerprint: &str,
        graph: &LayerGraph,
        devices: &[&str],
    ) -> Result<(), PlanError> {
        if self.version != PLAN_VERSION {
            return Err(PlanError::Version { got: self.version });
        }
        if self.model.fingerprint != fingerprint {
            return Err(PlanError::Model {
                expected: fingerprint.to_owned(),
                got: self.model.fingerprint.clone(),
            });
        }
        for (index, bucket) in self.buckets.iter().enumerate() {
            let count = graph.units().len().max(bucket.units.len());
            for at in 0..count {
                let expected = graph.units().get(at).map(trefoil_graph::Unit::name);
                let got = bucket.units.get(at);
                if expected.as_deref() != got.map(|placement| placement.unit.as_str()) {
                    return Err(PlanError::Units {
                        bucket: index,
                        expected: expected.unwrap_or_else(|| "no more".to_owned()),
                        got: got.map_or("none".to_owned(), |placement| placement.unit.clone()),
                    });
                }
                let device = &got.expect("checked above").device;
                if !devices.contains(&device.as_str()) {
                    return Err(PlanError::unknown_device(device, devices));
                }
            }
        }
        self.check_sizes(graph)?;
        self.check_splits(graph, devices)?;
        self.check_streamed(graph)?;
        for phase in [Phase::Prefill, Phase::Decode] {
            if !self.buckets.iter().any(|bucket| bucket.bucket.phase == phase) {
                return Err(PlanError::Phase { phase: phase.name() });
            }
        }
        Ok(())
    }

    /// Checks that streamed weights are those of units, named once, that no split cuts.
    fn check_streamed(&self, graph: &LayerGraph) -> Result<(), PlanError> {
        for (index, bucket) in self.buckets.iter().enumerate() {
            for (number, name) in bucket.streamed.iter().enumerate() {
                let wrong = |expected: &str, got: &str| {
                    let (expected, got) = (expected.to_owned(), got.to_owned());
                    Err(PlanError::Streamed { bucket: index, unit: name.clone(), expected, got })
                };
                let Some(unit) = graph.units().iter().find(|unit| unit.name() == *name) else {
                    return wrong("a unit of the model", "none of that name");
                };
                if bucket.streamed[..number].contains(name) {
                    return wrong("each unit once", "it twice");
                }
                let split = bucket
                    .splits
                    .iter()
                    .find(|split| unit.nodes.iter().any(|&node| graph.node(node).name == split.op));
                if let Some(split) = split {
                    return wrong("a unit that is not split", &format!("a split of {}", split.op));
                }
            }
        }
        Ok(())
    }

    /// Checks the sizes that memory is taken by.
    fn check_sizes(&self, graph: &LayerGraph) -> Result<(), PlanError> {
        let within = |what: &str, got: usize, least: usize, most: usize| {
            if (least..=most).contains(&got) {
                return Ok(());
            }
            let expected =
                if least == most { most.to_string() } else { format!("{least} to {most}") };
            Err(PlanError::Size { what: what.to_owned(), expected, got })
        };
        within("context", self.context, 1, MOST_CONTEXT)?;
        for kv in [Some(&self.kv), self.kv_decode.as_ref()].into_iter().flatten() {
            within("number of KV layers", kv.len(), graph.kv().len(), graph.kv().len())?;
        }
        for (index, BucketPlan { bucket, .. }) in self.buckets.iter().enumerate() {
            let what = format!("bucket {index}: max_tokens");
            within(&what, bucket.max_tokens, 1, self.context)?;
            let what = format!("bucket {index}: max_outputs");
            within(&what, bucket.max_outputs, 1, bucket.max_tokens)?;
        }
        Ok(())
    }
}
