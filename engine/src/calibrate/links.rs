//! Copies between memories, and devices that work at the same time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use trefoil_devices_api::{
    AllocRequest, Buffer, BufferRef, Device, DomainId, Point, Points, Purpose, Submission,
    Timeline, Work,
};
use trefoil_graph::StepInputs;
use trefoil_scheduler::fit::{LinkSample, median};

use super::segment::Ready;
use crate::self_test::CaseError;

/// Sizes of copies.
const SIZES: [usize; 4] = [4 << 10, 256 << 10, 4 << 20, 32 << 20];
/// Runs of each.
const RUNS: usize = 7;

/// Times of copies between a device's own memory and the host's, both ways; none if it has none.
pub(super) fn measure(device: &Arc<dyn Device>) -> Result<Vec<LinkSample>, CaseError> {
    let domain = device.domains()[0].id;
    let mut samples = Vec::new();
    if domain == DomainId::HOST {
        return Ok(samples);
    }
    for bytes in SIZES {
        let own = device.alloc(AllocRequest { domain, bytes, purpose: Purpose::Activations })?;
        let host = Buffer::host(bytes);
        // Pages that were never written are not there.
        host.write()?.fill(1);
        for (from, to) in [(&host, &own), (&own, &host)] {
            let mut times = Vec::new();
            for run in 0..=RUNS {
                let seconds = copy(device, from.whole(), to.whole())?;
                if run > 0 {
                    times.push(seconds);
                }
            }
            samples.push(LinkSample {
                from: from.domain.to_string(),
                to: to.domain.to_string(),
                bytes: bytes as f64,
                seconds: median(&mut times).expect("there were runs"),
            });
        }
    }
    device.drain(&mut Vec::new());
    Ok(samples)
}

fn copy(device: &Arc<dyn Device>, from: BufferRef, to: BufferRef) -> Result<f64, CaseError> {
    let timeline: Arc<Timeline> = Arc::default();
    let signals = Points::from_iter([Point { timeline: timeline.clone(), value: 1 }]);
    let work = Work::Copy { from, to };
    let label = "calibration of a link".into();
    let start = Instant::now();
    device.submit(0, Submission { waits: Points::new(), signals, work, label })?;
    timeline.wait(1).map_err(CaseError::Failed)?;
    Ok(start.elapsed().as_secs_f64())
}

/// What each of two devices keeps of its speed on a step while the other is busy with it too.
pub(super) fn together(
    pair: [&mut Ready; 2],
    inputs: &Arc<StepInputs>,
    time: Duration,
) -> Result<[f64; 2], CaseError> {
    let [a, b] = pair;
    let mut alone = [Vec::new(), Vec::new()];
    let begin = Instant::now();
    while begin.elapsed() < time || alone[0].len() < 5 {
        alone[0].push(a.run(inputs)?.wall);
        alone[1].push(b.run(inputs)?.wall);
    }
    let stop = AtomicBool::new(false);
    let busy = |ready: &mut Ready| -> Result<Vec<f64>, CaseError> {
        let mut times = Vec::new();
        while !stop.load(Ordering::Relaxed) || times.is_empty() {
            times.push(ready.run(inputs)?.wall);
        }
        Ok(times)
    };
    let both = std::thread::scope(|scope| {
        let other = scope.spawn(|| busy(b));
        let timer = scope.spawn(|| {
            std::thread::sleep(time);
            stop.store(true, Ordering::Relaxed);
        });
        let own = busy(a);
        let other = other.join();
        // It only sleeps.
        let _ = timer.join();
        (own, other)
    });
    let (own, other) = both;
    let other = other.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    let mut both = [own?, other?];
    let mut keep = [1.0; 2];
    for ((alone, both), keep) in alone.iter_mut().zip(&mut both).zip(&mut keep) {
        if let (Some(alone), Some(both)) = (median(alone), median(both)) {
            *keep = (alone / both).clamp(0.05, 1.0);
        }
    }
    Ok(keep)
}
