//! Plans for a machine by its profile: what `trefoil plan --profile` adds.

use std::path::Path;

use trefoil_devices_api::Bucket;
use trefoil_engine::model::{Lowered, ModelOptions};
use trefoil_scheduler::cost::Corrections;
use trefoil_scheduler::planner::{
    Goal, PlanRequest, Planned, PlannerError, Workload, plan as make,
};
use trefoil_scheduler::policy::Resolved;
use trefoil_scheduler::profile::{Profile, shipped};
use trefoil_scheduler::{BucketPlan, PlaceError, Prediction, Totals};

use crate::cli::{GoalForm, PlanArgs};
use crate::commands::common;
use crate::exit::{Failure, Status};

/// A profile by its name or file.
pub(crate) fn profile(name: &str) -> Result<Profile, Failure> {
    let path = Path::new(name);
    let profile = if path.extension().is_some_and(|extension| extension == "toml") {
        Profile::parse(name, &common::read_text(path, Status::Usage)?)
    } else {
        shipped(name)
    };
    profile.map_err(|error| Failure::new(Status::Usage, error))
}

/// Plans a model on a machine.
pub(crate) fn plan(
    lowered: &Lowered,
    profile: &Profile,
    args: &PlanArgs,
    options: &ModelOptions,
    policy: &Resolved,
) -> Result<Planned, Failure> {
    let (buckets, corrections) = (lowered.buckets(options), Corrections::default());
    let request = request(lowered, (profile, &corrections), args, (options, &buckets), policy)?;
    make(&request).map_err(refused)
}

/// What is asked of the planner: the policy's values, with flags over them.
pub(crate) fn request<'a>(
    lowered: &'a Lowered,
    (profile, corrections): (&'a Profile, &'a Corrections),
    args: &'a PlanArgs,
    (options, buckets): (&ModelOptions, &'a [Bucket]),
    policy: &'a Resolved,
) -> Result<PlanRequest<'a>, Failure> {
    let model = lowered.model_ref();
    let mut request = PlanRequest::new(model, &lowered.graph, profile, corrections, buckets);
    policy.apply(&mut request)?;
    if let Some(objective) = args.objective {
        request.goal = match objective {
            GoalForm::Latency => Goal::Latency,
            GoalForm::Throughput => Goal::Throughput,
            GoalForm::Energy => Goal::Energy,
            GoalForm::Balanced => Goal::Balanced,
        };
        if args.placement.policy.is_none() {
            request.policy = request.goal.name().to_owned();
        }
    }
    request.workload = Workload { prompt: args.prompt as u64, generate: args.generate as u64 };
    request.context = lowered.context(options);
    request.kv_element_bytes = options.kv_type.bytes();
    let rules = &args.placement.settings.devices;
    let names: Vec<&str> = profile.devices.iter().map(|device| device.name.as_str()).collect();
    if let Some(devices) = args.placement.device.as_deref().map(common::list) {
        for device in &devices {
            if let Some(why) = rules.refusal(device).filter(|_| names.contains(&device.as_str())) {
                let error = format!("device {device:?} cannot be used: {why}");
                return Err(Failure::new(Status::Device, error));
            }
        }
        request.devices = Some(devices);
    } else if let Some(devices) = &mut request.devices {
        devices.retain(|device| rules.refusal(device).is_none());
    }
    if !args.placement.pins.is_empty() {
        request.pins = &args.placement.pins;
    }
    Ok(request)
}

/// A request that cannot be met, with its exit code.
pub(crate) fn refused(error: PlannerError) -> Failure {
    let status = match error {
        PlannerError::Partition(_) | PlannerError::Place(PlaceError::NoDevice) => Status::Device,
        _ => Status::Usage,
    };
    Failure::new(status, error)
}

/// Layers next to each other of which the same is said; or units outside of layers.
struct Group {
    first: String,
    last: String,
    /// Kind of each unit, and what is said of it.
    units: Vec<(String, String)>,
}

impl Group {
    fn range(&self) -> String {
        let Self { first, last, .. } = self;
        if first == last { first.clone() } else { format!("{first} .. {last}") }
    }

    fn describe(&self) -> String {
        let device = &self.units[0].1;
        if self.units.iter().all(|(_, other)| other == device) {
            return format!("  {device:<6} {}", self.range());
        }
        format!("  split  {}: {}", self.range(), parts(self.units.iter()))
    }
}

fn parts<'a>(units: impl Iterator<Item = &'a (String, String)>) -> String {
    let parts: Vec<String> = units.map(|(kind, what)| format!("{kind} {what}")).collect();
    parts.join(", ")
}

/// Groups layers of whose units the same is said.
fn groups(units: impl Iterator<Item = (String, String)>) -> Vec<Group> {
    let mut layers: Vec<Group> = Vec::new();
    for (name, what) in units {
        let (layer, kind) = name.rsplit_once('.').unwrap_or((&name, ""));
        let unit = (kind.to_owned(), what);
        match layers.last_mut() {
            Some(group) if group.first == layer => group.units.push(unit),
            _ => layers.push(Group {
                first: layer.to_owned(),
                last: layer.to_owned(),
                units: vec![unit],
            }),
        }
    }
    let mut merged: Vec<Group> = Vec::new();
    for group in layers {
        match merged.last_mut() {
            Some(before) if before.units == group.units => before.last = group.last,
            _ => merged.push(group),
        }
    }
    merged
}

/// One line per group of layers that are placed alike, and per unit outside of layers.
pub(crate) fn layers(bucket: &BucketPlan) -> Vec<String> {
    let units = bucket.units.iter().map(|placed| (placed.unit.clone(), placed.device.clone()));
    groups(units).iter().map(Group::describe).collect()
}

/// One line per group of layers whose placement differs, from `before` to `after`.
pub(super) fn moved(before: &BucketPlan, after: &BucketPlan) -> Vec<String> {
    let units = before.units.iter().zip(&after.units).map(|(a, b)| {
        let what = match (&a.device, &b.device) {
            (a, b) if a == b => String::new(),
            (a, b) => format!("{a} -> {b}"),
        };
        (a.unit.clone(), what)
    });
    let changed = groups(units).into_iter().filter_map(|group| {
        let moved = group.units.iter().filter(|(_, what)| !what.is_empty());
        let (_, what) = moved.clone().next()?;
        Some(if group.units.iter().all(|(_, other)| other == what) {
            format!("{what}: {}", group.range())
        } else {
            format!("{}: {}", group.range(), parts(moved))
        })
    });
    changed.collect()
}

/// What a placement does, in one line.
pub(super) fn totals(totals: &Totals) -> String {
    format!(
        "{:>8.0} ms to the first token, {:>7.1} tokens/s, {:>6.2} J/token, {:>7.1} J prompt",
        totals.first_token_seconds * 1e3,
        1.0 / totals.token_seconds,
        totals.token_joules,
        totals.prompt_joules
    )
}

/// What the plan does, and what was rejected.
pub(crate) fn prediction(prediction: &Prediction) -> Vec<String> {
    let mut lines = vec![
        format!(
            "\npredicted for a prompt of {} tokens and {} generated",
            prediction.prompt_tokens, prediction.generated_tokens
        ),
        format!("  {}", totals(&prediction.totals)),
        format!(
            "  score {:.4}, lower bound {:.4}, gap {:.2} %",
            prediction.score,
            prediction.lower_bound,
            prediction.gap * 100.0
        ),
        "alternatives".to_owned(),
    ];
    if let Some(overlapped) = &prediction.overlapped {
        let first = overlapped.first_token_seconds * 1e3;
        let chunks = overlapped.steps_at_once;
        let line =
            format!("  {first:.0} ms to the first token with {chunks} chunks under way at once");
        lines.insert(2, line);
    }
    let most = prediction.alternatives.iter().map(|other| other.name.len()).max().unwrap_or(0);
    for other in &prediction.alternatives {
        let figures = other.totals.as_ref().map(totals).unwrap_or_default();
        lines.push(format!("  {:<most$}  {figures}  {}", other.name, other.why));
    }
    lines
}
