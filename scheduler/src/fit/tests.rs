use std::collections::BTreeSet;

use trefoil_graph::ops::Op;
use trefoil_graph::shape::{ModelShape, uniform};
use trefoil_graph::{BlockType, LayerGraph, LowerOptions, NodeIndex, StepShape, UnitId, lower};

use super::*;
use crate::cost::{CostModel, OpClass, op_signature, unit_signature};
use crate::profile::{DeviceProfile, shipped};

fn graph() -> LayerGraph {
    let shape = ModelShape::find("llama-3.2-1b").expect("known");
    let file = shape.without_weights(uniform(BlockType::Q4_0)).expect("reserves");
    lower(&file, LowerOptions::default()).expect("lowers").1
}

/// One op of each sort.
fn nodes(graph: &LayerGraph) -> Vec<NodeIndex> {
    let mut seen = BTreeSet::new();
    let distinct = graph.nodes().filter(|&node| seen.insert(op_signature(graph, node)));
    distinct.filter(|&node| !matches!(graph.node(node).op, Op::KvWrite(_))).collect()
}

fn steps(rows: &[u64], pasts: &[u64]) -> Vec<StepShape> {
    let each = |&rows: &u64| {
        pasts
            .iter()
            .map(move |&past| StepShape { rows_out: rows, ..StepShape::prefill(rows, past) })
    };
    rows.iter().flat_map(each).collect()
}

/// Disturbances of a few percent, never below the undisturbed time.
fn noise(index: usize) -> f64 {
    1.0 + 0.02 * (index as f64 * 2.399).sin().abs()
}

/// What would be measured on a device that is exactly as a profile says, launched `count` at a time.
fn samples(model: &CostModel<'_>, device: &DeviceProfile, disturbed: bool) -> DeviceSamples {
    let graph = model.graph;
    let factor = |index| if disturbed { noise(index) } else { 1.0 };
    let (launch, handoff) = (device.launch.get(), device.handoff.get());
    let mut ops = Vec::new();
    for node in nodes(graph) {
        let pasts: &[u64] = match OpClass::of(&graph.node(node).op) {
            OpClass::Attention => &[0, 256, 2048],
            _ => &[0],
        };
        for step in steps(&[1, 2, 8, 32, 128, 512], pasts) {
            let small = OpClass::of(&graph.node(node).op) == OpClass::Elementwise;
            let count = if step.tokens == 1 || small { 8 } else { 2 };
            let each = model.op(device, node, &step).expect("takes it").seconds;
            ops.push(OpSample {
                part: Part::of(graph, node, &step),
                past: step.past as f64,
                count,
                seconds: (handoff + f64::from(count) * each) * factor(ops.len()),
                runs: 9,
            });
        }
    }
    let mut seen = BTreeSet::new();
    let mut units = Vec::new();
    for unit in (0..graph.units().len()).map(UnitId) {
        if !seen.insert(unit_signature(graph, unit)) {
            continue;
        }
        for step in steps(&[1, 32, 512], &[0]) {
            let each = model.unit(device, unit, &step).expect("takes it").seconds;
            let count = if step.tokens == 1 { 16 } else { 2 };
            let seconds = (handoff + f64::from(count) * each) * factor(units.len());
            units.push(UnitSample { count, seconds, ..UnitSample::of(graph, unit, &step) });
        }
    }
    let chain = |(index, ops): (usize, u32)| ChainSample {
        ops,
        // One of them is far off: another program was at work.
        seconds: (handoff + f64::from(ops) * launch)
            * if disturbed && index == 2 { 3.0 } else { 1.0 },
    };
    DeviceSamples {
        name: device.name.clone(),
        kind: device.kind,
        product: device.product.clone(),
        domain: device.domain.clone(),
        date: "2026-01-01".to_owned(),
        ops,
        units,
        chains: [1, 4, 8, 16, 32, 64].into_iter().enumerate().map(chain).collect(),
        layers: Vec::new(),
        outside: 0.0,
        read: None,
        watts: None,
        refuses: Vec::new(),
    }
}

fn measured(profile: &Profile, graph: &LayerGraph, disturbed: bool) -> Measurements {
    let corrections = Corrections::default();
    let model = CostModel { profile, graph, corrections: &corrections };
    let domains = profile.domains.iter().map(|domain| DomainFacts {
        name: domain.name.clone(),
        bytes: domain.size.0.0,
        usable: domain.usable.get(),
    });
    let links = profile.links.iter().flat_map(|link| {
        [4e3, 256e3, 4e6, 32e6].map(|bytes| LinkSample {
            from: link.from.clone(),
            to: link.to.clone(),
            bytes,
            seconds: link.latency.get() + bytes / link.bandwidth.get(),
        })
    });
    let devices = profile.devices.iter().map(|device| samples(&model, device, disturbed));
    Measurements {
        domains: domains.collect(),
        devices: devices.collect(),
        links: links.collect(),
        pairs: vec![PairSample {
            devices: ["cpu0".to_owned(), "gpu0".to_owned()],
            keep: [0.8, 1.2],
            date: "2026-01-01".to_owned(),
        }],
    }
}

#[test]
fn the_numbers_of_a_known_machine_come_back() {
    let (graph, truth) = (graph(), shipped("desktop-radeon").expect("ships"));
    let fitted = fit(&measured(&truth, &graph, false)).expect("enough").profile;
    let near = |what: &str, got: f64, want: f64, share: f64| {
        assert!((got / want - 1.0).abs() <= share, "{what}: {got:e}, not {want:e}");
    };
    for want in &truth.devices {
        let got = fitted.device(&want.name).expect("was measured");
        let name = |what: &str| format!("{} {what}", want.name);
        near(&name("launch"), got.launch.get(), want.launch.get(), 1e-6);
        near(&name("handoff"), got.handoff.get(), want.handoff.get(), 1e-6);
        near(&name("stream"), got.memory.bandwidth.get(), want.memory.bandwidth.get(), 0.01);
        let rate = |device: &DeviceProfile| device.compute.weight_rate_at(BlockType::Q4_0, 512.0);
        near(&name("rate at many rows"), rate(got), rate(want), 0.01);
        assert!(got.memory.source.contains("2026-01-01"), "{}", got.memory.source);
    }
    for (got, want) in fitted.links.iter().zip(&truth.links) {
        let want =
            truth.links.iter().find(|l| (&l.from, &l.to) == (&got.from, &got.to)).unwrap_or(want);
        near("link", got.bandwidth.get(), want.bandwidth.get(), 1e-6);
        near("latency", got.latency.get(), want.latency.get(), 1e-3);
    }
    assert_eq!((fitted.keeps("cpu0", "gpu0"), fitted.keeps("gpu0", "cpu0")), (0.8, 1.0));
}

#[test]
fn shapes_that_were_not_measured_are_predicted_within_a_tenth() {
    let (graph, truth) = (graph(), shipped("desktop-radeon").expect("ships"));
    let none = Corrections::default();
    let real = CostModel { profile: &truth, graph: &graph, corrections: &none };
    let Fitted { profile, corrections } = fit(&measured(&truth, &graph, true)).expect("enough");
    let model = CostModel { profile: &profile, graph: &graph, corrections: &corrections };
    let (mut near, mut all, mut worst) = (0, 0, 0.0f64);
    for want in &truth.devices {
        let got = profile.device(&want.name).expect("was measured");
        for node in nodes(&graph) {
            for step in steps(&[1, 5, 48, 200, 400], &[100, 1000]) {
                let real = real.op(want, node, &step).expect("takes it").seconds;
                let error = model.op(got, node, &step).expect("takes it").seconds / real - 1.0;
                worst = worst.max(error.abs());
                near += usize::from(error.abs() <= 0.1);
                all += 1;
            }
        }
        for step in steps(&[1, 5, 200], &[0]) {
            for unit in [UnitId(1), UnitId(2), UnitId(graph.units().len() - 1)] {
                let real = real.unit(want, unit, &step).expect("takes it").seconds;
                let error = model.unit(got, unit, &step).expect("takes it").seconds / real - 1.0;
                assert!(error.abs() < 0.1, "{} {unit:?} {step:?}: {error}", want.name);
            }
        }
    }
    assert!(near * 100 >= all * 95, "{near} of {all}, worst {worst}");
    assert!(worst < 0.35, "{worst}");
    // And deterministic.
    let again = fit(&measured(&truth, &graph, true)).expect("enough");
    assert_eq!(again, Fitted { profile, corrections });
}

#[test]
fn a_device_that_differs_from_every_roofline_is_learned_by_its_ops() {
    let (graph, truth) = (graph(), shipped("desktop-radeon").expect("ships"));
    let mut measured = measured(&truth, &graph, false);
    // Units whose ops share their launches and caches: a third faster than the sum of their parts.
    for (device, truth) in measured.devices.iter_mut().zip(&truth.devices) {
        let handoff = truth.handoff.get();
        for unit in &mut device.units {
            unit.seconds = handoff + 0.66 * (unit.seconds - handoff);
        }
    }
    let Fitted { profile, corrections } = fit(&measured).expect("enough");
    let model = CostModel { profile: &profile, graph: &graph, corrections: &corrections };
    let gpu = profile.device("gpu0").expect("was measured");
    let step = StepShape::prefill(512, 0);
    let unit = UnitId(1);
    let parts = graph.unit(unit).nodes.iter().map(|&node| model.op(gpu, node, &step));
    let parts: f64 = parts.map(|cost| cost.expect("takes it").seconds).sum();
    let whole = model.unit(gpu, unit, &step).expect("takes it").seconds;
    assert!((whole / parts - 0.66).abs() < 0.02, "{whole} of {parts}");
}

#[test]
fn units_beside_each_other_cost_what_whole_layers_took() {
    let (graph, truth) = (graph(), shipped("desktop-radeon").expect("ships"));
    let mut measured = measured(&truth, &graph, false);
    let plain = fit(&measured).expect("enough");
    let gpu = truth.device("gpu0").expect("ships");
    // The four units of a layer, three layers in a program: a fifth faster than one after another.
    let layer: Vec<UnitId> = (1..5).map(UnitId).collect();
    let sum = |fitted: &Fitted, tokens: u64| {
        let Fitted { profile, corrections } = fitted;
        let model = CostModel { profile, graph: &graph, corrections };
        let device = profile.device("gpu0").expect("was measured");
        let step = StepShape::prefill(tokens, 0);
        let of = |&unit: &UnitId| model.unit(device, unit, &step).expect("takes it").seconds;
        layer.iter().map(of).sum::<f64>()
    };
    let samples = [1, 64, 512].map(|tokens| {
        let step = StepShape::prefill(tokens, 0);
        let unit = |&unit: &UnitId| UnitSample { count: 3, ..UnitSample::of(&graph, unit, &step) };
        let seconds = gpu.handoff.get() + 0.8 * 3.0 * sum(&plain, tokens);
        let units = layer.iter().map(unit).collect();
        LayerSample { units, tokens: tokens as f64, past: 0.0, seconds }
    });
    let of_gpu = measured.devices.iter_mut().find(|device| device.name == "gpu0");
    of_gpu.expect("was measured").layers.extend(samples);
    let fitted = fit(&measured).expect("enough");
    for tokens in [1, 64, 200, 512] {
        let share = sum(&fitted, tokens) / sum(&plain, tokens);
        assert!((share - 0.8).abs() < 1e-6, "{tokens} rows: {share}");
    }
}

#[test]
fn measurements_of_no_use_are_refused_by_name() {
    let (graph, truth) = (graph(), shipped("desktop-radeon").expect("ships"));
    let good = measured(&truth, &graph, false);
    let mut none = good.clone();
    none.devices[0].ops.retain(|op| op.part.class != OpClass::Linear);
    let error = fit(&none).expect_err("no products").to_string();
    assert!(error.contains(&none.devices[0].name) && error.contains("products"), "{error}");
    for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let mut wrong = good.clone();
        wrong.devices[1].ops[3].seconds = bad;
        let error = fit(&wrong).expect_err("no time").to_string();
        assert!(error.contains("above 0"), "{error}");
    }
    let mut apart = good.clone();
    apart.links.clear();
    let error = fit(&apart).expect_err("no links").to_string();
    assert!(error.contains("expected measured times"), "{error}");
    let mut unknown = good;
    unknown.devices[0].domain = "nowhere".to_owned();
    assert!(matches!(fit(&unknown), Err(FitError::Profile(_))));
}

#[test]
fn newer_samples_take_the_place_of_older_ones_of_the_same_shape() {
    let (graph, truth) = (graph(), shipped("desktop-radeon").expect("ships"));
    let mut known = measured(&truth, &graph, false).devices.remove(0);
    let (ops, first) = (known.ops.len(), known.ops[0].clone());
    let mut newer = known.clone();
    newer.ops.truncate(1);
    newer.ops[0].seconds *= 2.0;
    newer.chains.clear();
    known.merge(newer);
    assert_eq!(known.ops.len(), ops);
    assert!(!known.chains.is_empty(), "the older ones stay where there are no newer ones");
    let same = known.ops.iter().find(|op| op.part == first.part && op.past == first.past);
    assert_eq!(same.expect("is there").seconds, first.seconds * 2.0);
}
