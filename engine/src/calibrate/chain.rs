//! Tiny ops one after the other: what a launch costs, and what a submission and the wait for it do.

use std::sync::Arc;

use trefoil_devices_api::{Bucket, Device, Phase};
use trefoil_graph::ops::{Activation, Embed, Nonlinearity};
use trefoil_graph::{GraphBuilder, LayerGraph, ShapeError, UnitId, UnitKind, Weight};
use trefoil_scheduler::fit::{ChainSample, least_disturbed};

use super::segment::{KvNeed, Ready, step};
use crate::self_test::CaseError;

const WIDTH: usize = 64;
/// Runs of each chain.
const RUNS: usize = 31;

fn graph(ops: usize) -> Result<LayerGraph, ShapeError> {
    let mut graph = GraphBuilder::default();
    graph.begin_unit(UnitKind::Embed, None);
    let table = Weight::from_f32("table", 1, WIDTH, &[0.5; WIDTH]);
    let mut last =
        graph.push("x", Embed { table, scale: 1.0, positions: None, types: None }, &[])?;
    graph.begin_unit(UnitKind::Head, None);
    for op in 0..ops {
        let function = Nonlinearity::Silu;
        last = graph.push(format!("op{op}"), Activation { function }, &[last])?;
    }
    Ok(graph.finish(last))
}

/// Times of chains of so many ops on all devices, in turns; by device.
pub(super) fn measure(
    devices: &[Arc<dyn Device>],
    lengths: &[usize],
) -> Result<Vec<Vec<ChainSample>>, CaseError> {
    let bucket = Bucket { phase: Phase::Decode, min_tokens: 1, max_tokens: 1, max_outputs: 1 };
    let step = Arc::new(step(1, 0, 1, 1));
    let need = KvNeed { tokens: 1, half: true };
    let mut ready = Vec::new();
    for (index, device) in devices.iter().enumerate() {
        for &length in lengths {
            let graph = Arc::new(graph(length).expect("shapes of one width fit"));
            let segment = graph.segment(&[UnitId(1)]);
            ready.push((index, length, Ready::new(device, &graph, &segment, bucket, need)?));
        }
    }
    let mut times = vec![Vec::with_capacity(RUNS); ready.len()];
    for run in 0..=RUNS {
        for ((_, _, ready), times) in ready.iter_mut().zip(&mut times) {
            let seconds = ready.run(&step)?;
            // The first is for warming up.
            if run > 0 {
                times.push(seconds);
            }
        }
    }
    let mut samples = vec![Vec::new(); devices.len()];
    for ((index, length, _), times) in ready.iter().zip(&mut times) {
        let ops = u32::try_from(*length).unwrap_or(u32::MAX);
        let seconds = least_disturbed(times).expect("there were runs");
        samples[*index].push(ChainSample { ops, seconds });
    }
    Ok(samples)
}
