//! Chunks of a prompt that overlap, held against the simulation.

use super::tests::{bucket, graph, request};
use super::*;
use crate::Pin;
use crate::profile::{Profile, shipped};
use crate::simulate::{SimulationRequest, simulate};

/// Two cards of one kind, each with memory of its own.
fn two_cards() -> Profile {
    let mut profile = shipped("desktop-radeon").expect("ships");
    let mut domain = profile.domains[1].clone();
    let mut gpu = profile.devices[1].clone();
    (domain.name, gpu.name) = ("vram1".to_owned(), "gpu1".to_owned());
    gpu.domain.clone_from(&domain.name);
    let model = profile.links[0].clone();
    for (from, to) in [("ram", "vram1"), ("vram1", "ram"), ("vram0", "vram1"), ("vram1", "vram0")] {
        let mut link = model.clone();
        (link.from, link.to) = (from.to_owned(), to.to_owned());
        profile.links.push(link);
    }
    profile.domains.push(domain);
    profile.devices.push(gpu);
    profile
}

fn first_token(plan: &Plan, request: &PlanRequest<'_>, pipelined: bool) -> f64 {
    let simulated = simulate(&SimulationRequest {
        plan,
        graph: request.graph,
        profile: request.profile,
        corrections: request.corrections,
        workload: request.workload,
        kv_element_bytes: 2,
        pipelined,
    });
    simulated.expect("can be").totals.first_token_seconds
}

#[test]
fn a_long_prompt_goes_over_two_cards_with_chunks_that_overlap() {
    let (graph, profile) = (graph("llama-3.1-8b"), two_cards());
    let buckets = [bucket(Phase::Prefill, 512), bucket(Phase::Decode, 1)];
    let mut request = request(&graph, &profile, &buckets, Goal::Latency);
    request.workload = Workload { prompt: 8192, generate: 16 };
    request.context = 8400;
    request.split_linears = false;
    let long = plan(&request).expect("fits").plan;
    let prediction = long.prediction.as_ref().expect("has a profile");
    let overlapped = prediction.overlapped.expect("two devices");
    assert_eq!(overlapped.steps_at_once, 2);
    assert!(
        long.reasons.iter().any(|reason| reason.contains("chunks overlapped")),
        "{:?}",
        long.reasons
    );
    let simulated = first_token(&long, &request, true);
    let error = overlapped.first_token_seconds / simulated - 1.0;
    assert!(
        error.abs() < 0.1,
        "estimated {}, simulated {simulated}",
        overlapped.first_token_seconds
    );
    assert!(simulated < 0.7 * first_token(&long, &request, false));
    // A single chunk has nothing to overlap with.
    request.workload.prompt = 400;
    let short = plan(&request).expect("fits").plan;
    assert_eq!(short.prediction.expect("has a profile").overlapped, None);
}

#[test]
fn estimates_of_pinned_placements_are_near_the_simulation() {
    let graph = graph("qwen3-1.7b");
    let buckets = [bucket(Phase::Prefill, 512), bucket(Phase::Decode, 1)];
    for (name, second) in [("strix-point", "npu0"), ("strix-halo", "npu0"), ("phoenix", "cpu0")] {
        let profile = shipped(name).expect("ships");
        for cut in ["prefill:blk.?.*=gpu0", "prefill:blk.1?.*=gpu0"] {
            let pins: Vec<Pin> =
                [cut.to_owned(), "prefill:embed=gpu0".to_owned(), format!("prefill:*={second}")]
                    .iter()
                    .map(|pin| pin.parse().expect("valid"))
                    .collect();
            let mut request = request(&graph, &profile, &buckets, Goal::Latency);
            request.workload = Workload { prompt: 4096, generate: 2 };
            request.pins = &pins;
            let planned = plan(&request).expect("fits").plan;
            let prediction = planned.prediction.as_ref().expect("has a profile");
            let got = prediction.overlapped.expect("two devices").first_token_seconds;
            let simulated = first_token(&planned, &request, true);
            let error = got / simulated - 1.0;
            println!("{name} {cut}: {got} estimated, {simulated} simulated, {error:.3}");
            assert!(error.abs() < 0.05, "{name} {cut}: {got} estimated, {simulated} simulated");
            assert!(got <= prediction.totals.first_token_seconds);
        }
    }
}
