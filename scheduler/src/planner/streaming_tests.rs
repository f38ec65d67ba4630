//! Weights that are streamed to a card for a prompt.

use trefoil_devices_api::{Bucket, DomainId};

use super::tests::{bucket, graph, request, small_card};
use super::*;
use crate::Pin;

fn long_chunk() -> Vec<Bucket> {
    vec![bucket(Phase::Prefill, 512), bucket(Phase::Decode, 1)]
}

/// Units with streamed weights in the buckets of a phase.
fn streamed(plan: &Plan, phase: Phase) -> usize {
    let of_phase = plan.buckets.iter().filter(|bucket| bucket.bucket.phase == phase);
    of_phase.map(|bucket| bucket.streamed.len()).sum()
}

#[test]
fn a_long_prompt_is_read_on_a_small_card_with_streamed_weights_and_decode_is_not() {
    let (graph, buckets) = (graph("llama-3.1-8b"), long_chunk());
    for gigabytes in [2.0, 3.0, 4.0] {
        let profile = small_card(gigabytes);
        let mut request = request(&graph, &profile, &buckets, Goal::Latency);
        request.workload = Workload { prompt: 512, generate: 128 };
        let streaming = plan(&request).expect("fits with the host");
        request.stream_weights = false;
        let kept = plan(&request).expect("fits with the host");
        let totals =
            |planned: &Planned| planned.plan.prediction.as_ref().expect("has a profile").totals;
        let (with, without) = (totals(&streaming), totals(&kept));
        assert!(
            with.first_token_seconds < without.first_token_seconds / 2.0,
            "{gigabytes} GiB: {} s with streaming, {} s without",
            with.first_token_seconds,
            without.first_token_seconds
        );
        assert!(streamed(&streaming.plan, Phase::Prefill) > 10);
        assert_eq!(streamed(&streaming.plan, Phase::Decode), 0);
        assert_eq!(streamed(&kept.plan, Phase::Prefill), 0);
        let prediction = streaming.plan.prediction.as_ref().expect("has a profile");
        assert!(prediction.gap <= 0.01, "{gigabytes} GiB: gap {}", prediction.gap);
        assert!(streaming.plan.reasons.iter().any(|reason| reason.contains("streamed")));
        let alternatives = prediction.alternatives.iter();
        let named = alternatives.filter(|other| other.name.contains("with streamed weights"));
        assert!(gigabytes < 4.0 || named.count() > 0, "what streaming everything would do is told");
        // The buffers are counted, and the weights are not.
        let card = streaming.plan.memory.iter().find(|memory| memory.domain == DomainId(1));
        let card = card.expect("is used");
        assert!(card.streaming.0 > 0);
        let usable = (gigabytes * (1u64 << 30) as f64) as u64;
        assert!(card.weights.0 + card.kv.0 + card.streaming.0 <= usable, "{card:?}");
        let host = streaming.plan.memory.iter().find(|memory| memory.domain == DomainId::HOST);
        let kept_host = kept.plan.memory.iter().find(|memory| memory.domain == DomainId::HOST);
        assert!(host.expect("is used").weights >= kept_host.expect("is used").weights);
    }
}

#[test]
fn short_prompts_and_slow_links_are_not_worth_streaming() {
    let graph = graph("llama-3.1-8b");
    let profile = small_card(3.0);
    let buckets = [bucket(Phase::Prefill, 512), bucket(Phase::Decode, 1)];
    let mut short = request(&graph, &profile, &buckets, Goal::Latency);
    short.workload = Workload { prompt: 2, generate: 128 };
    assert_eq!(streamed(&plan(&short).expect("fits").plan, Phase::Prefill), 0);
    let mut slow = profile.clone();
    for link in &mut slow.links {
        link.bandwidth.scale(0.01);
    }
    let mut over = request(&graph, &slow, &buckets, Goal::Latency);
    over.workload = Workload { prompt: 512, generate: 128 };
    assert_eq!(streamed(&plan(&over).expect("fits").plan, Phase::Prefill), 0);
}

#[test]
fn one_device_for_both_phases_and_models_that_fit_stream_nothing() {
    let (graph, buckets) = (graph("llama-3.1-8b"), long_chunk());
    let profile = small_card(3.0);
    let mut joint = request(&graph, &profile, &buckets, Goal::Latency);
    joint.joint_phases = true;
    assert_eq!(streamed(&plan(&joint).expect("fits").plan, Phase::Prefill), 0);
    let large = small_card(16.0);
    let all = request(&graph, &large, &buckets, Goal::Latency);
    assert_eq!(streamed(&plan(&all).expect("fits").plan, Phase::Prefill), 0);
}

#[test]
fn a_pin_to_the_card_may_be_met_by_streaming() {
    let (graph, buckets) = (graph("llama-3.1-8b"), long_chunk());
    let profile = small_card(3.0);
    let pins: Vec<Pin> = vec!["prefill:blk.*=gpu0".parse().expect("valid")];
    let mut pinned = request(&graph, &profile, &buckets, Goal::Latency);
    pinned.pins = &pins;
    let planned = plan(&pinned).expect("streams").plan;
    assert!(streamed(&planned, Phase::Prefill) > 10);
    pinned.stream_weights = false;
    assert!(plan(&pinned).is_err(), "does not fit without");
}

#[test]
fn the_simulation_streams_beside_the_work_as_predicted() {
    use crate::simulate::{Activity, SimulationRequest, simulate};
    let (graph, buckets) = (graph("llama-3.1-8b"), long_chunk());
    let profile = small_card(3.0);
    let mut request = request(&graph, &profile, &buckets, Goal::Latency);
    request.workload = Workload { prompt: 512, generate: 4 };
    let planned = plan(&request).expect("streams").plan;
    let simulated = simulate(&SimulationRequest {
        plan: &planned,
        graph: &graph,
        profile: &profile,
        corrections: request.corrections,
        workload: request.workload,
        kv_element_bytes: 2,
        pipelined: false,
    })
    .expect("can be");
    let loads = simulated.spans.iter().filter(|span| span.activity == Activity::LoadWeights);
    let loads: Vec<_> = loads.collect();
    assert!(loads.len() > 10, "{}", loads.len());
    // Some copy while the card works.
    let beside = loads.iter().filter(|load| {
        let runs = simulated.spans.iter().filter(|span| span.activity == Activity::Run);
        runs.into_iter().any(|run| run.start < load.end && load.start < run.end)
    });
    assert!(beside.count() > loads.len() / 2);
    // The planner counts each unit's copy against its own work only: the simulation is no slower
    // than that by more than what sharing of memory costs, and not much faster.
    let predicted = planned.prediction.expect("has a profile").totals.first_token_seconds;
    let ratio = simulated.totals.first_token_seconds / predicted;
    assert!((0.6..1.15).contains(&ratio), "{ratio}");
}
