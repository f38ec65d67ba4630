//! How long a recording takes, by the device's own clock.

use std::sync::Arc;

use ash::vk;
use trefoil_devices_api::DeviceError;
use trefoil_telemetry::Nanos;

use crate::context::Context;

/// Two time stamps: before the first dispatch of a recording and after its last.
pub(crate) struct Stopwatch {
    context: Arc<Context>,
    pool: vk::QueryPool,
}

impl Stopwatch {
    /// For one recording; `None` if the device's queue has no clock.
    pub(crate) fn new(context: &Arc<Context>) -> Result<Option<Self>, DeviceError> {
        if context.timestamp_bits == 0 {
            return Ok(None);
        }
        let info =
            vk::QueryPoolCreateInfo::default().query_type(vk::QueryType::TIMESTAMP).query_count(2);
        // SAFETY: `info` outlives the call.
        let pool = unsafe { context.raw.create_query_pool(&info, None) }
            .map_err(|result| context.error("vkCreateQueryPool", result))?;
        Ok(Some(Self { context: context.clone(), pool }))
    }

    /// Records the first stamp.
    pub(crate) fn begin(&self, device: &ash::Device, buffer: vk::CommandBuffer) {
        // SAFETY: recording is under way; the pool has two stamps.
        unsafe { device.cmd_reset_query_pool(buffer, self.pool, 0, 2) };
        self.stamp(device, buffer, vk::PipelineStageFlags::TOP_OF_PIPE, 0);
    }

    /// Records the second stamp.
    pub(crate) fn end(&self, device: &ash::Device, buffer: vk::CommandBuffer) {
        self.stamp(device, buffer, vk::PipelineStageFlags::BOTTOM_OF_PIPE, 1);
    }

    fn stamp(
        &self,
        device: &ash::Device,
        buffer: vk::CommandBuffer,
        stage: vk::PipelineStageFlags,
        number: u32,
    ) {
        // SAFETY: recording is under way; `number` is one of the pool's two; the queue has a clock.
        unsafe { device.cmd_write_timestamp(buffer, stage, self.pool, number) };
    }

    /// Time of the last run, which is over. `None` if the driver did not write it.
    pub(crate) fn took(&self) -> Option<Nanos> {
        let mut stamps = [0u64; 2];
        let flags = vk::QueryResultFlags::TYPE_64;
        // SAFETY: both stamps are of the pool, and the commands that write them have ended.
        unsafe { self.context.raw.get_query_pool_results(self.pool, 0, &mut stamps, flags) }
            .ok()?;
        // Counters may have fewer bits than the number, and begin again at 0.
        let bits = self.context.timestamp_bits.min(64);
        let ticks = stamps[1].wrapping_sub(stamps[0]) & (u64::MAX >> (64 - bits));
        let nanos = ticks as f64 * f64::from(self.context.adapter.timestamp_nanos);
        Some(Nanos(nanos as u64))
    }
}

impl Drop for Stopwatch {
    fn drop(&mut self) {
        // SAFETY: no run is under way when a recording is dropped.
        unsafe { self.context.raw.destroy_query_pool(self.pool, None) };
    }
}
