//! Products that two devices compute together.

use super::tests::{bucket, graph, request};
use super::*;
use crate::cost::Corrections;
use crate::profile::{Profile, shipped};
use crate::simulate::{SimulationRequest, simulate};

/// Two cards of one kind that read the same memory, which has `factor` times the bandwidth of one's.
fn twins(factor: f64) -> Profile {
    let mut profile = shipped("desktop-radeon").expect("ships");
    let mut other = profile.devices[1].clone();
    other.name = "gpu1".to_owned();
    profile.devices.push(other);
    profile.domains[1].bandwidth.scale(factor);
    profile
}

fn splits(plan: &Plan, phase: Phase) -> Vec<&crate::LinearSplit> {
    let of_phase = plan.buckets.iter().filter(|bucket| bucket.bucket.phase == phase);
    of_phase.flat_map(|bucket| &bucket.splits).collect()
}

#[test]
fn twins_share_the_large_products_of_a_prompt_by_halves() {
    let (graph, profile) = (graph("llama-3.1-8b"), twins(2.0));
    let buckets = [bucket(Phase::Prefill, 2048), bucket(Phase::Decode, 1)];
    let mut request = request(&graph, &profile, &buckets, Goal::Latency);
    let shared = plan(&request).expect("fits").plan;
    request.split_linears = false;
    let whole = plan(&request).expect("fits").plan;
    let down = splits(&shared, Phase::Prefill);
    let down = down.iter().find(|split| split.op == "blk.3.ffn_down").expect("is split");
    let rows: Vec<usize> = down.shares.iter().map(|share| share.rows).collect();
    assert_eq!(rows.iter().sum::<usize>(), 4096);
    assert!(rows.iter().all(|&rows| (1900..2200).contains(&rows)), "{rows:?}");
    let total = |plan: &Plan| plan.prediction.as_ref().expect("has a profile").totals;
    let ratio = total(&shared).first_token_seconds / total(&whole).first_token_seconds;
    assert!((0.5..0.75).contains(&ratio), "{ratio}");
    assert!(shared.reasons.iter().any(|reason| reason.contains("split over two devices")));
    assert!(splits(&whole, Phase::Prefill).is_empty());
    // Both read one memory: the weights are there once.
    assert_eq!(shared.memory[1].weights, whole.memory[1].weights);
    assert!(shared.memory[1].activations > whole.memory[1].activations, "parts are counted");
    shared.check("none", &graph, &["cpu0", "gpu0", "gpu1"]).expect("can be run");
    // The simulation takes splits as the planner does.
    let simulated = |plan: &Plan| {
        simulate(&SimulationRequest {
            plan,
            graph: &graph,
            profile: &profile,
            corrections: request.corrections,
            workload: request.workload,
            kv_element_bytes: 2,
            pipelined: false,
        })
        .expect("can be")
    };
    let simulated = simulated(&shared).totals.first_token_seconds;
    assert!((simulated / total(&shared).first_token_seconds - 1.0).abs() < 0.1, "{simulated}");
}

#[test]
fn a_product_is_not_split_where_both_wait_for_the_same_memory() {
    let (graph, profile) = (graph("llama-3.1-8b"), twins(1.0));
    let buckets = [bucket(Phase::Prefill, 512), bucket(Phase::Decode, 1)];
    let planned = plan(&request(&graph, &profile, &buckets, Goal::Latency)).expect("fits").plan;
    // One row a step: the DRAM is what limits it, and it is one.
    assert!(splits(&planned, Phase::Decode).is_empty(), "{:?}", splits(&planned, Phase::Decode));
}

#[test]
fn pins_are_kept_whole_and_small_gains_are_told_and_not_taken() {
    let (graph, profile) = (graph("llama-3.1-8b"), twins(2.0));
    let buckets = [bucket(Phase::Prefill, 2048), bucket(Phase::Decode, 1)];
    let pins = vec!["blk.3.ffn=gpu0".parse().expect("valid")];
    let mut pinned = request(&graph, &profile, &buckets, Goal::Latency);
    pinned.pins = &pins;
    let planned = plan(&pinned).expect("fits").plan;
    let ops: Vec<&str> =
        splits(&planned, Phase::Prefill).iter().map(|split| split.op.as_str()).collect();
    assert!(ops.contains(&"blk.4.ffn_down") && !ops.contains(&"blk.3.ffn_down"), "{ops:?}");
    let mut reluctant = request(&graph, &profile, &buckets, Goal::Latency);
    reluctant.simple_within = 0.9;
    let planned = plan(&reluctant).expect("fits").plan;
    assert!(splits(&planned, Phase::Prefill).is_empty());
    let told = planned.prediction.expect("has a profile").alternatives;
    let told = told.iter().find(|other| other.name.contains("split over two devices"));
    assert!(told.expect("listed").why.contains("too little"));
}

#[test]
fn a_split_is_balanced_and_never_better_than_both_devices_without_any_cost() {
    use crate::split_cost::SplitWork;
    let (graph, profile) = (graph("llama-3.1-8b"), twins(2.0));
    let corrections = Corrections::default();
    let model =
        crate::cost::CostModel { profile: &profile, graph: &graph, corrections: &corrections };
    let step = trefoil_graph::StepShape::prefill(512, 0);
    let node = graph.nodes().find(|&node| graph.node(node).name == "blk.0.ffn_up").expect("has it");
    let [a, b] = [1, 2].map(|index| &profile.devices[index]);
    let work = SplitWork { model, node, home: a, step: &step };
    let seconds = |part: f64| {
        let cost = work.cost(&[(a, part), (b, 1.0 - part)]).expect("taken").expect("linked");
        cost.seconds
    };
    let alone = work.alone(a).expect("taken");
    assert!(seconds(0.5) > alone / 2.0);
    assert!(seconds(0.5) < alone);
    for part in [0.1, 0.3, 0.7, 0.9] {
        assert!(seconds(part) > seconds(0.5), "{part}");
    }
}
