//! The largest elements of rows, found on the device: a recording that is replayed as long as rows and
//! result stay where they are.

use std::sync::Arc;

use trefoil_devices_api::{BufferRef, Candidate, DeviceError};
use trefoil_kernels_vulkan::{Largest, MOST_CANDIDATES, Place};
use trefoil_telemetry::{Bytes, Nanos};

use crate::memory::{Allocation, Kind};
use crate::recording::record;
use crate::stopwatch::Stopwatch;
use crate::transfer::Commands;
use crate::worker::{VulkanWorker, bad};

/// A recording with what it reaches.
pub(crate) struct LargestRecording {
    rows: u64,
    plan: Largest,
    commands: Commands,
    stopwatch: Option<Stopwatch>,
    result: Arc<Allocation>,
    _kept: [Arc<Allocation>; 2],
}

impl VulkanWorker {
    /// Finds the `count` largest elements of each of the rows in `from`, `width` elements each.
    pub(crate) fn largest(
        &mut self,
        from: &BufferRef,
        width: usize,
        count: usize,
        to: &BufferRef,
    ) -> Result<Option<Nanos>, DeviceError> {
        let row_bytes = width.max(1) * size_of::<f32>();
        let rows = from.range.len() / row_bytes;
        let result_bytes = rows * count * size_of::<Candidate>();
        let plan = Largest::new(rows, width, count)
            .filter(|_| rows * row_bytes == from.range.len() && to.range.len() == result_bytes);
        let plan = plan.ok_or_else(|| {
            let got =
                format!("{count} of {width}, {} bytes to {}", from.range.len(), to.range.len());
            bad("largest of rows", format!("whole rows, at most {MOST_CANDIDATES} of each"), got)
        })?;
        let source = self.allocation(&from.buffer)?;
        let address = source.address + from.range.start as u64;
        let known = self.state.largest.as_ref();
        if known.is_none_or(|known| known.rows != address || known.plan != plan) {
            self.state.largest = Some(self.record_largest(plan, source, address)?);
        }
        let recording = self.state.largest.as_ref().expect("made above");
        recording.commands.run()?;
        let mut target = to.buffer.write()?;
        recording.result.read(0, &mut target[to.range.clone()]);
        Ok(recording.stopwatch.as_ref().and_then(Stopwatch::took))
    }

    fn record_largest(
        &self,
        plan: Largest,
        source: Arc<Allocation>,
        rows: u64,
    ) -> Result<LargestRecording, DeviceError> {
        let context = &self.context;
        let bytes = plan.key_bytes();
        let reservation = self.memory.reserve(context.domain, Bytes(bytes), "scratch")?;
        let keys = Arc::new(self.transfers.local(bytes, Some(reservation))?);
        let result = Allocation::new(context, plan.result_bytes(), Kind::Download, None)?;
        let result = Arc::new(result);
        let commands = Commands::new(context)?;
        let stopwatch = Stopwatch::new(context)?;
        let address = |place: Place| {
            Ok(match place {
                Place::Slot(_) => keys.address,
                Place::Output(_) => result.address,
                _ => rows,
            })
        };
        let clocks = (None, stopwatch.as_ref());
        let dispatches = plan.dispatches();
        record(context, &self.pipelines, &commands, clocks, &dispatches, &address)?;
        Ok(LargestRecording { rows, plan, commands, stopwatch, result, _kept: [source, keys] })
    }
}
