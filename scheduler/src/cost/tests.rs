use trefoil_graph::shape::{ModelShape, uniform};
use trefoil_graph::{BlockType, LowerOptions, lower};

use super::*;
use crate::profile::shipped;

fn graph(shape: &str) -> LayerGraph {
    let shape = ModelShape::find(shape).expect("known");
    let file = shape.without_weights(uniform(BlockType::Q4_0)).expect("reserves");
    lower(&file, LowerOptions::default()).expect("lowers").1
}

fn step(profile: &Profile, graph: &LayerGraph, device: &str, step: &StepShape) -> Cost {
    let corrections = Corrections::default();
    let model = CostModel { profile, graph, corrections: &corrections };
    let device = profile.device(device).expect("has it");
    let units = (0..graph.units().len()).map(UnitId);
    units.map(|unit| model.unit(device, unit, step)).sum::<Result<Cost, _>>().expect("takes all")
}

#[test]
fn decode_is_bound_by_memory_and_prefill_by_arithmetic() {
    let profile = shipped("strix-halo").expect("ships");
    let graph = graph("llama-2-7b");
    let gpu = profile.device("gpu0").expect("has one");
    let decode = StepShape::decode(0);
    let seconds = step(&profile, &graph, "gpu0", &decode).seconds;
    let floor = graph.cost(&decode).weight_bytes / gpu.memory.bandwidth.get();
    assert!(seconds > floor && seconds < 1.25 * floor, "{seconds} over {floor}");
    let prefill = StepShape::prefill(512, 0);
    let seconds = step(&profile, &graph, "gpu0", &prefill).seconds;
    let floor = graph.cost(&prefill).weight_flops / gpu.compute.weights["q4_0"].get();
    assert!(seconds > floor && seconds < 1.3 * floor, "{seconds} over {floor}");
    let faster = profile.scaled("gpu0", 2.0, Scales::All);
    let twice = step(&faster, &graph, "gpu0", &prefill).seconds;
    assert!((seconds / twice - 2.0).abs() < 0.2, "{seconds} and {twice}");
}

#[test]
fn static_shapes_pay_for_padding() {
    let profile = shipped("krackan").expect("ships");
    let npu = profile.device("npu0").expect("has one");
    let padded = |tokens| CostModel::padded(npu, &StepShape::prefill(tokens, 0));
    assert_eq!(padded(600).0.tokens, 1024);
    assert_eq!(padded(512).0.tokens, 512);
    let (piece, pieces) = padded(6000);
    assert_eq!((piece.tokens, pieces), (4096, 2.0));
    let graph = graph("llama-3.2-1b");
    let seconds = |tokens| step(&profile, &graph, "npu0", &StepShape::prefill(tokens, 0)).seconds;
    assert_eq!(seconds(520), seconds(1000), "both are padded to 1024");
    assert!(seconds(512) < seconds(513));
}

#[test]
fn energy_counts_the_whole_machine() {
    let profile = shipped("strix-halo").expect("ships");
    let graph = graph("llama-3.2-1b");
    for device in ["cpu0", "gpu0", "npu0"] {
        let cost = step(&profile, &graph, device, &StepShape::decode(100));
        let busy = profile.device(device).expect("has it").power.busy.get();
        let watts = cost.joules / cost.seconds;
        let idle: f64 = profile.devices.iter().map(|d| d.power.idle.get()).sum();
        assert!(watts > busy && watts < busy + profile.base_power.get() + idle, "{watts}");
    }
}

#[test]
fn corrections_move_predictions_and_refusals_name_the_op() {
    let mut profile = shipped("strix-halo").expect("ships");
    let graph = graph("llama-3.2-1b");
    let mut corrections = Corrections::default();
    for _ in 0..200 {
        corrections.observe("gpu0", OpClass::Linear, 1.0, 2.0);
    }
    let before = step(&profile, &graph, "gpu0", &StepShape::decode(0)).seconds;
    let model = CostModel { profile: &profile, graph: &graph, corrections: &corrections };
    let gpu = profile.device("gpu0").expect("has one");
    let units = (0..graph.units().len()).map(UnitId);
    let after: f64 =
        units.map(|u| model.unit(gpu, u, &StepShape::decode(0)).expect("takes it").seconds).sum();
    assert!(after > 1.5 * before && after < 2.0 * before, "{before} to {after}");

    profile.devices[1].refuses.push("rope".to_owned());
    let model = CostModel { profile: &profile, graph: &graph, corrections: &corrections };
    let refused = model.unit(&profile.devices[1], UnitId(1), &StepShape::decode(0));
    assert_eq!(refused.expect_err("no rope").to_string(), "gpu0 does not take blk.0.rope_q (rope)");
}

#[test]
fn own_copies_have_their_own_size() {
    let profile = shipped("krackan").expect("ships");
    let graph = graph("qwen3-8b");
    let corrections = Corrections::default();
    let model = CostModel { profile: &profile, graph: &graph, corrections: &corrections };
    let total = |device: &str| -> u64 {
        let device = profile.device(device).expect("has it");
        (0..graph.units().len()).map(|u| model.weight_bytes(device, UnitId(u)).0).sum()
    };
    let billions = |bytes: u64| bytes as f64 / 1e9;
    assert!((billions(total("npu0")) - 5.57).abs() < 0.05, "{}", total("npu0"));
    assert!((billions(total("gpu0")) - 4.61).abs() < 0.05, "{}", total("gpu0"));
}
