//! A solution as a plan.

use trefoil_graph::UnitId;

use trefoil_devices_api::{DomainId, Phase};

use super::explain::Judge;
use super::objective::Prices;
use super::splits::Splits;
use super::{Placed, PlanRequest};
use crate::cost::Cost;
use crate::memory::{Residence, memory, transfers};
use crate::partition::Solution;
use crate::plan::{
    Alternative, BucketPlan, Overlapped, PLAN_VERSION, PinReport, Plan, Prediction,
    SegmentPrediction, UnitPlacement,
};
use crate::profile::Profile;

/// The plan of a solution.
pub(super) fn describe(
    request: &PlanRequest<'_>,
    judge: &Judge<'_, '_>,
    prices: &Prices,
    solution: &Solution,
    (devices, splits): (&[Placed], &Splits),
    alternatives: Vec<Alternative>,
    (simpler, pipelined): (Option<String>, Option<String>),
) -> Plan {
    let tables = judge.tables;
    let profile = request.profile;
    let residences: Vec<Residence<'_>> = tables
        .devices
        .iter()
        .zip(&judge.instance.devices)
        .map(|(device, node)| Residence {
            device: &device.name,
            domain: Profile::domain_id(node.domain),
            reads: node.addresses.iter().map(|&domain| Profile::domain_id(domain)).collect(),
            copy: device.weight_copy.as_ref().map(|copy| copy.bytes_per_weight.get()),
        })
        .collect();
    let buckets: Vec<BucketPlan> = request
        .buckets
        .iter()
        .enumerate()
        .map(|(mode, &bucket)| {
            let Placed { devices, streamed } = &devices[mode];
            let units = judge.instance.units.iter().zip(devices).map(|(unit, &device)| {
                let device = judge.instance.devices[device].name.clone();
                UnitPlacement { unit: unit.clone(), device }
            });
            let names = judge.instance.units.iter().zip(streamed);
            let names = names.filter(|(_, streamed)| **streamed).map(|(unit, _)| unit.clone());
            let step = judge.step(mode, devices, streamed).expect("the solution keeps the rules");
            let mut plan = BucketPlan {
                bucket,
                units: units.collect(),
                splits: splits.buckets.get(mode).map_or_else(Vec::new, |b| b.splits.clone()),
                streamed: names.collect(),
                transfers: Vec::new(),
                predicted_seconds: Some(step.seconds - splits.saved(mode).seconds),
                predicted_joules: Some(step.joules - splits.saved(mode).joules),
                segments: Vec::new(),
            };
            plan.transfers = transfers(request.graph, &residences, &plan);
            plan.segments = segments(judge, mode, &plan, splits);
            plan
        })
        .collect();
    let homes = solution.assignment.homes.iter().enumerate();
    let kv: Vec<[DomainId; 2]> = homes
        .filter_map(|(unit, &home)| judge.instance.homes[unit][home].kv)
        .map(|kv| kv.map(Profile::domain_id))
        .collect();
    let [first, later] = [0, 1].map(|phase| kv.iter().map(|kv| kv[phase]).collect::<Vec<_>>());
    let per_element = request.context * request.kv_element_bytes;
    let pins = request.pins.iter().map(|pin| {
        let held = |bucket: &BucketPlan| {
            let units = bucket.units.iter().enumerate();
            units
                .filter(|(unit, at)| {
                    at.device == pin.device
                        && pin.holds(request.graph, UnitId(*unit), bucket.bucket.phase)
                })
                .count()
        };
        PinReport { pin: pin.clone(), placed: buckets.iter().map(held).sum() }
    });
    let totals = judge.totals(&solution.assignment).expect("the solution keeps the rules");
    let totals = judge.with_splits(totals, splits);
    let score = solution.cost - splits.gain;
    let phases = [first.clone(), later.clone()];
    let memory = memory(request.graph, &residences, &buckets, &phases, per_element);
    Plan {
        version: PLAN_VERSION,
        model: request.model.clone(),
        profile: Some(profile.name.clone()),
        policy: request.policy.clone(),
        context: request.context,
        reasons: judge
            .reasons(request, solution, splits, &alternatives, simpler)
            .into_iter()
            .chain(pipelined)
            .collect(),
        prediction: Some(Prediction {
            prompt_tokens: request.workload.prompt,
            generated_tokens: request.workload.generate,
            totals,
            overlapped: judge.overlap(&solution.assignment).map(|overlap| Overlapped {
                steps_at_once: overlap.steps_at_once,
                first_token_seconds: totals.first_token_seconds - overlap.saved.seconds,
                score: score - prices.of(Phase::Prefill, overlap.saved),
            }),
            score,
            lower_bound: solution.lower_bound.min(score),
            gap: solution.gap(),
            alternatives,
        }),
        pins: pins.collect(),
        kv_decode: (first != later).then_some(later),
        kv: first,
        memory,
        buckets,
    }
}

fn segments(
    judge: &Judge<'_, '_>,
    mode: usize,
    plan: &BucketPlan,
    splits: &Splits,
) -> Vec<SegmentPrediction> {
    let segments = plan.segments().into_iter().map(|segment| {
        let device = judge.instance.devices.iter().position(|d| d.name == segment.device);
        let device = device.expect("named by the plan");
        let costs = segment.units.iter().map(|unit| {
            let cost = judge.tables.run[mode][unit.0][device].as_ref();
            *cost.expect("the solution keeps the rules")
        });
        let cost: Cost = costs.sum();
        let saved: Cost = segment.units.iter().map(|&unit| splits.saved_by(mode, unit)).sum();
        let name = |unit: Option<&UnitId>| plan.units[unit.expect("not empty").0].unit.clone();
        SegmentPrediction {
            first: name(segment.units.first()),
            last: name(segment.units.last()),
            device: segment.device,
            seconds: cost.seconds - saved.seconds,
            joules: cost.joules - saved.joules,
        }
    });
    segments.collect()
}
