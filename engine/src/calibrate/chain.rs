//! Tiny ops one after the other: what a launch costs, and what a submission and the wait for it do.

use std::sync::Arc;

use trefoil_devices_api::{Bucket, Device, Phase};
use trefoil_graph::ops::{Activation, Embed, Nonlinearity};
use trefoil_graph::{GraphBuilder, LayerGraph, ShapeError, UnitId, UnitKind, Weight};
use trefoil_scheduler::fit::{ChainSample, median};

use super::segment::{KvNeed, Ready, step};
use crate::self_test::CaseError;

const WIDTH: usize = 64;
/// Runs of each chain, after those for warming up.
const RUNS: usize = 31;
const WARM: usize = 10;

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

/// Times of chains of so many ops, and of the way to the device and back, in seconds.
pub(super) type Launches = (Vec<ChainSample>, f64);

/// Times of chains of so many ops on all devices, one after the other; by device.
pub(super) fn measure(
    devices: &[Arc<dyn Device>],
    lengths: &[usize],
) -> Result<Vec<Launches>, CaseError> {
    let bucket = Bucket { phase: Phase::Decode, min_tokens: 1, max_tokens: 1, max_outputs: 1 };
    let step = Arc::new(step(1, 0, 1, 1));
    let need = KvNeed { tokens: 1, half: true };
    let mut launches = Vec::with_capacity(devices.len());
    for device in devices {
        let (mut samples, mut outside) = (Vec::new(), Vec::new());
        for &length in lengths {
            let graph = Arc::new(graph(length).expect("shapes of one width fit"));
            let segment = graph.segment(&[UnitId(1)]);
            let mut ready = Ready::new(device, &graph, &[segment], bucket, need)?;
            let mut work = Vec::with_capacity(RUNS);
            for run in 0..RUNS + WARM {
                let took = ready.run(&step)?;
                if run >= WARM {
                    work.push(took.work);
                    outside.push(took.wall - took.work);
                }
            }
            let ops = u32::try_from(length).unwrap_or(u32::MAX);
            let seconds = median(&mut work).expect("there were runs");
            samples.push(ChainSample { ops, seconds });
        }
        launches.push((samples, median(&mut outside).unwrap_or(0.0).max(0.0)));
    }
    Ok(launches)
}
