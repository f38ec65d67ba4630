//! What a device reaches on work made for it: one large product of stored halves, with one row (which
//! is bound by reading) and with many (which is bound by arithmetic).

use std::sync::Arc;

use trefoil_devices_api::{
    AllocRequest, Bucket, Device, Job, KvPages, Phase, Point, Points, Purpose, RunArgs, Submission,
    Timeline, Work,
};
use trefoil_graph::ops::{Embed, Linear};
use trefoil_graph::{BlockType, GraphBuilder, StepInputs, Storage, UnitId, UnitKind, Weight};

use super::peaks::{Peak, Peaks};
use super::stats::seconds;

/// Sizes of the work: large against caches on a real GPU, small on a program that plays one.
struct Sizes {
    outputs: usize,
    inputs: usize,
    rows: usize,
}

/// Reads and products a second of a device.
pub(super) fn measure(device: &dyn Device) -> Peaks {
    let sizes = if device.info().only_when_named {
        Sizes { outputs: 2048, inputs: 1024, rows: 64 }
    } else {
        Sizes { outputs: 16_384, inputs: 8192, rows: 4096 }
    };
    let elements = (sizes.outputs * sizes.inputs) as f64;
    let read = rate(device, &sizes, 1, elements * 2.0);
    let arithmetic = rate(device, &sizes, sizes.rows, elements * 2.0 * sizes.rows as f64);
    Peaks { read, arithmetic }
}

/// `amount` by the best time of a product with `rows` rows.
fn rate(device: &dyn Device, sizes: &Sizes, rows: usize, amount: f64) -> Peak {
    time(device, sizes, rows)
        .map_or_else(|error| Peak::Unknown(error.to_string()), |t| Peak::Measured(amount / t))
}

fn time(
    device: &dyn Device,
    sizes: &Sizes,
    rows: usize,
) -> Result<f64, Box<dyn std::error::Error>> {
    let (outputs, inputs) = (sizes.outputs, sizes.inputs);
    let mut graph = GraphBuilder::default();
    graph.begin_unit(UnitKind::Embed, None);
    let table = Weight::from_f32("x", 1, inputs, &vec![0.0; inputs]);
    let x = graph.push("x", Embed { table, scale: 1.0, positions: None, types: None }, &[])?;
    graph.begin_unit(UnitKind::Head, None);
    // Small numbers that differ, as halves: their values do not matter, that they are not zero may.
    let bytes: Vec<u8> =
        (0..outputs * inputs).flat_map(|i| (0x2000 + (i as u16 % 0x0800)).to_le_bytes()).collect();
    let storage = Arc::new(Storage::Owned(bytes));
    let weight = Weight::new("w", BlockType::F16, outputs, inputs, storage, 0)
        .ok_or("the bytes were made for this shape")?;
    let y = graph.push("y", Linear { weight, bias: None }, &[x])?;
    let graph = Arc::new(graph.finish(y));
    let phase = if rows == 1 { Phase::Decode } else { Phase::Prefill };
    let bucket = Bucket { phase, min_tokens: 1, max_tokens: rows, max_outputs: 1 };
    let segment = graph.segment(&[UnitId(1)]);
    let program = device.compile(&graph, &segment, bucket, &Job::default())?;
    let domain = device.domains()[0].id;
    let mut buffers = Vec::new();
    for node in [x, y] {
        let bytes = bucket.tensor_bytes(&graph, node);
        let purpose = Purpose::Activations;
        buffers.push(device.alloc(AllocRequest { domain, bytes, purpose })?.whole());
    }
    let args = Arc::new(RunArgs { buffers, kv: KvPages::default() });
    let mut step = StepInputs { page_tokens: 16, ..StepInputs::default() };
    let pages: Vec<u32> = (0..rows.div_ceil(16) as u32).collect();
    step.push_sequence(&vec![0; rows], 0, &pages, false, [0]);
    let step = Arc::new(step);
    let timeline: Arc<Timeline> = Arc::default();
    // Several runs in one go, so that waiting for the last one weighs little.
    const TOGETHER: u64 = 8;
    let mut reached = 0;
    let mut failure = None;
    let taken = seconds(std::time::Duration::from_millis(300), 5, || {
        for _ in 0..TOGETHER {
            reached += 1;
            let point = Point { timeline: timeline.clone(), value: reached };
            let submission = Submission {
                waits: Points::new(),
                signals: Points::from_iter([point]),
                work: Work::Run {
                    program: program.clone(),
                    args: args.clone(),
                    step: step.clone(),
                },
                label: "peak".into(),
            };
            if let Err(error) = device.submit(0, submission) {
                failure = Some(error.to_string());
                return;
            }
        }
        if let Err(error) = timeline.wait(reached) {
            failure = Some(error.to_string());
        }
    });
    let mut runs = Vec::new();
    device.drain(&mut runs);
    if let Some(error) = failure {
        return Err(error.into());
    }
    // The device's own clock, where it has one, leaves out the way there and back.
    let own = runs.iter().filter_map(|run| run.device_time);
    let own = own.map(|time| time.seconds()).filter(|&seconds| seconds > 0.0);
    Ok(own.reduce(f64::min).unwrap_or(taken.best / TOGETHER as f64))
}
