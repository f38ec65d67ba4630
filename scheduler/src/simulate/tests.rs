use trefoil_devices_api::Bucket;
use trefoil_graph::shape::{ModelShape, uniform};
use trefoil_graph::{BlockType, LowerOptions, lower};

use super::*;
use crate::Pin;
use crate::plan::ModelRef;
use crate::planner::{Goal, PlanRequest, plan};
use crate::profile::{shipped, shipped_names};

fn graph(shape: &str) -> LayerGraph {
    let shape = ModelShape::find(shape).expect("known");
    let file = shape.without_weights(uniform(BlockType::Q4_K)).expect("reserves");
    lower(&file, LowerOptions::default()).expect("lowers").1
}

fn buckets(chunk: usize) -> [Bucket; 2] {
    [(Phase::Prefill, chunk), (Phase::Decode, 1)].map(|(phase, max_tokens)| Bucket {
        phase,
        min_tokens: 1,
        max_tokens,
        max_outputs: 1,
    })
}

/// A plan, and what happens when it is run for `workload`.
struct Run<'a> {
    graph: &'a LayerGraph,
    profile: Profile,
    chunk: usize,
    workload: Workload,
    pins: Vec<Pin>,
}

impl Run<'_> {
    fn plan(&self, goal: Goal) -> Plan {
        let model =
            ModelRef { fingerprint: "none".into(), architecture: "test".into(), name: None };
        let (corrections, buckets) = (Corrections::default(), buckets(self.chunk));
        let mut request =
            PlanRequest::new(model, self.graph, &self.profile, &corrections, &buckets);
        request.goal = goal;
        request.workload = self.workload;
        request.pins = &self.pins;
        plan(&request).expect("plans").plan
    }

    fn simulate(&self, plan: &Plan, pipelined: bool) -> Simulation {
        self.try_simulate(plan, pipelined).expect("can be simulated")
    }

    fn try_simulate(&self, plan: &Plan, pipelined: bool) -> Result<Simulation, SimulationError> {
        simulate(&SimulationRequest {
            plan,
            graph: self.graph,
            profile: &self.profile,
            corrections: &Corrections::default(),
            workload: self.workload,
            kv_element_bytes: 2,
            pipelined,
        })
    }
}

fn within(got: f64, want: f64, share: f64) {
    assert!((got / want - 1.0).abs() <= share, "{got}, expected {want} within {share}");
}

/// Nothing runs twice at once, and every span has its time.
fn check(simulation: &Simulation) {
    for (index, runs) in (0..16).flat_map(|index| [(index, true), (index, false)]) {
        let own = simulation
            .spans
            .iter()
            .filter(|span| span.on == index && (span.activity == Activity::Run) == runs);
        let mut own: Vec<_> = own.collect();
        own.sort_by(|a, b| a.start.total_cmp(&b.start));
        for pair in own.windows(2) {
            assert!(pair[1].start >= pair[0].end - 1e-12, "{pair:?}");
        }
        for span in own {
            assert!(span.end - span.start >= span.lone * (1.0 - 1e-9), "{span:?}");
        }
    }
}

#[test]
fn one_step_after_another_is_what_plans_predict() {
    let graph = graph("qwen3-1.7b");
    for name in shipped_names() {
        for goal in [Goal::Latency, Goal::Energy] {
            let workload = Workload { prompt: 2048, generate: 64 };
            let profile = shipped(name).expect("ships");
            let run = Run { graph: &graph, profile, chunk: 512, workload, pins: Vec::new() };
            let plan = run.plan(goal);
            let predicted = plan.prediction.as_ref().expect("has a profile").totals;
            let simulation = run.simulate(&plan, false);
            check(&simulation);
            let got = simulation.totals;
            // What is left: predictions take the middle of the request for all its steps.
            within(got.first_token_seconds, predicted.first_token_seconds, 0.02);
            within(got.token_seconds, predicted.token_seconds, 0.02);
            within(got.prompt_joules, predicted.prompt_joules, 0.02);
            within(got.token_joules, predicted.token_joules, 0.02);
            assert_eq!(simulation.chunks, 4);
            let slowed: f64 = simulation.devices.iter().map(|device| device.slowed).sum();
            assert!(slowed < 1e-9, "{name}: nothing runs beside anything else");
        }
    }
}

#[test]
fn a_short_last_chunk_is_predicted_within_a_tenth_where_rows_are_padded() {
    let graph = graph("qwen3-0.6b");
    let profile = shipped("strix-point").expect("ships");
    let pins = vec!["*=npu0".parse().expect("valid")];
    for (prompt, share) in [(1100, 0.1), (1536, 0.02), (1900, 0.1)] {
        let (profile, pins) = (profile.clone(), pins.clone());
        let workload = Workload { prompt, generate: 2 };
        let run = Run { graph: &graph, profile, chunk: 512, workload, pins };
        let plan = run.plan(Goal::Latency);
        let predicted = plan.prediction.as_ref().expect("has a profile").totals;
        let got = run.simulate(&plan, false).totals;
        within(got.first_token_seconds, predicted.first_token_seconds, share);
    }
}

#[test]
fn chunks_overlap_where_a_prompt_goes_over_two_devices() {
    let graph = graph("qwen3-1.7b");
    let pins = ["prefill:blk.?.*=gpu0", "prefill:embed=gpu0", "prefill:*=npu0"];
    let run = Run {
        graph: &graph,
        profile: shipped("strix-point").expect("ships"),
        chunk: 512,
        workload: Workload { prompt: 4096, generate: 4 },
        pins: pins.map(|pin| pin.parse().expect("valid")).to_vec(),
    };
    let plan = run.plan(Goal::Latency);
    let (apart, together) = (run.simulate(&plan, false), run.simulate(&plan, true));
    check(&together);
    assert!(
        together.seconds[0] < apart.seconds[0] * 0.9,
        "{} {}",
        together.seconds[0],
        apart.seconds[0]
    );
    // No device can do its own work faster than alone.
    for (a, b) in apart.devices.iter().zip(&together.devices) {
        assert_eq!(a.count, b.count);
        assert!(b.seconds[0] >= a.seconds[0] * (1.0 - 1e-9), "{}: slowed, not hurried", a.name);
    }
    let busiest = together.devices.iter().map(|device| device.seconds[0]).fold(0.0, f64::max);
    assert!(together.seconds[0] >= busiest);
    assert!(together.devices[1].slowed > 0.0 && together.devices[2].slowed > 0.0);
    // A chunk's keys are there before the next one reads them.
    let of = |step: usize, name: &str| {
        let mut spans = together.spans.iter();
        spans.find(|span| span.step == step && span.name.starts_with(name)).expect("ran")
    };
    for step in 1..8 {
        assert!(of(step, "embed").start >= of(step - 1, "embed").end);
        assert!(of(step, "blk.10").start >= of(step - 1, "blk.10").end);
        assert!(of(step, "blk.10").start >= of(step, "embed").end);
    }
    // Decode begins when the prompt is read, and not before.
    let first = together.spans.iter().find(|span| span.phase == Phase::Decode).expect("decodes");
    assert!(first.start >= together.seconds[0] - 1e-12);
    within(apart.totals.token_seconds, together.totals.token_seconds, 1e-9);
}

#[test]
fn copies_and_moves_of_pages_take_their_links() {
    let graph = graph("qwen3-0.6b");
    let pins = ["prefill:*=gpu0", "decode:*=cpu0"].map(|pin| pin.parse().expect("valid")).to_vec();
    let workload = Workload { prompt: 1000, generate: 3 };
    let profile = shipped("desktop-radeon").expect("ships");
    let run = Run { graph: &graph, profile, chunk: 300, workload, pins };
    let plan = run.plan(Goal::Latency);
    assert!(plan.kv_decode.is_some());
    for pipelined in [false, true] {
        let simulation = run.simulate(&plan, pipelined);
        check(&simulation);
        assert_eq!(simulation.chunks, 4);
        let moves = simulation.spans.iter().filter(|span| span.activity == Activity::MoveKv);
        assert_eq!(moves.count(), 28);
        let copies = simulation.spans.iter().filter(|span| span.activity == Activity::Copy);
        assert_eq!(copies.count(), 4, "results of the chunks, from the card");
        let link =
            simulation.links.iter().find(|link| link.name == "vram0 -> ram").expect("has one");
        assert_eq!(link.count, 32);
        // 28 layers x 2 x 8 heads x 128 x 2 bytes a token, at the link's speed.
        let bytes = 28.0 * 2.0 * 8.0 * 128.0 * 2.0 * 1000.0;
        let of =
            |from: &str| run.profile.links.iter().find(move |l| l.from == from).expect("has one");
        let least = bytes / of("vram0").bandwidth.get();
        let moved = simulation.spans.iter().filter(|span| span.activity == Activity::MoveKv);
        let moved: f64 = moved.map(|span| span.end - span.start).sum();
        assert!(moved >= least && moved < least + 28.0 * of("vram0").latency.get() + 0.1 * least);
    }
    let totals = run.simulate(&plan, false).totals;
    let predicted = plan.prediction.as_ref().expect("has a profile").totals;
    // The last chunk is a third of a full one, and takes a little more than a third of its time.
    within(totals.first_token_seconds, predicted.first_token_seconds, 0.04);
}

#[test]
fn a_trace_has_a_track_for_all_that_worked() {
    let graph = graph("qwen3-0.6b");
    let workload = Workload { prompt: 600, generate: 2 };
    let profile = shipped("strix-halo").expect("ships");
    let run = Run { graph: &graph, profile, chunk: 512, workload, pins: Vec::new() };
    let simulation = run.simulate(&run.plan(Goal::Latency), true);
    let trace = simulation.trace("simulated");
    assert_eq!(trace.len(), simulation.spans.len());
    let mut bytes = Vec::new();
    trace.write(&mut bytes).expect("memory takes all");
    let document: serde_json::Value = serde_json::from_slice(&bytes).expect("JSON");
    let events = document["traceEvents"].as_array().expect("a list");
    let spans = events.iter().filter(|event| event["ph"] == "X");
    let ends = spans.map(|e| e["ts"].as_f64().expect("a number") + e["dur"].as_f64().expect("one"));
    let total = simulation.seconds.iter().sum::<f64>();
    within(ends.fold(0.0, f64::max) / 1e6, total, 1e-6);
}

#[test]
fn what_cannot_be_simulated_is_said() {
    let graph = graph("qwen3-0.6b");
    let workload = Workload { prompt: 600, generate: 2 };
    let profile = shipped("strix-halo").expect("ships");
    let mut run = Run { graph: &graph, profile, chunk: 512, workload, pins: Vec::new() };
    let plan = run.plan(Goal::Latency);
    let mut other = plan.clone();
    other.buckets[1].units[0].device = "gpu7".to_owned();
    let got = run.try_simulate(&other, true).expect_err("no such device").to_string();
    assert!(got.contains("gpu7") && got.contains("gpu0"), "{got}");
    let mut short = plan.clone();
    short.buckets[0].units.pop();
    assert!(matches!(run.try_simulate(&short, true), Err(SimulationError::Units { .. })));
    let mut half = plan.clone();
    half.buckets.pop();
    assert!(matches!(run.try_simulate(&half, true), Err(SimulationError::Phase { .. })));
    run.workload.generate = 2_000_000;
    assert!(matches!(run.try_simulate(&plan, true), Err(SimulationError::TooLong { .. })));
}
