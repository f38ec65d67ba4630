//! How long each kernel takes, from the device's own clock.

use std::collections::BTreeMap;
use std::sync::Arc;

use ash::vk;
use trefoil_devices_api::DeviceError;
use trefoil_kernels_vulkan::Dispatch;

use crate::context::Context;

/// Does the environment ask for times and statistics of kernels (`TREFOIL_VULKAN_PROFILE`)?
pub(crate) fn wanted() -> bool {
    std::env::var_os("TREFOIL_VULKAN_PROFILE").is_some()
}

/// Time stamps of a recording: one at its begin, one after each dispatch.
pub(crate) struct Profile {
    context: Arc<Context>,
    pool: vk::QueryPool,
    names: Vec<String>,
}

impl std::fmt::Debug for Profile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Profile({} dispatches)", self.names.len())
    }
}

impl Profile {
    /// For a recording of `dispatches`, if the environment asks for it.
    pub(crate) fn wanted(
        context: &Arc<Context>,
        dispatches: &[Dispatch],
    ) -> Result<Option<Self>, DeviceError> {
        if !wanted() {
            return Ok(None);
        }
        let info = vk::QueryPoolCreateInfo::default()
            .query_type(vk::QueryType::TIMESTAMP)
            .query_count(dispatches.len() as u32 + 1);
        // SAFETY: `info` outlives the call.
        let pool = unsafe { context.raw.create_query_pool(&info, None) }
            .map_err(|result| context.error("vkCreateQueryPool", result))?;
        // Products of one type differ in size: constants and workgroups tell them apart.
        let names = dispatches.iter().map(|dispatch| {
            let kernel = &dispatch.kernel;
            format!("{} {:?} x {:?}", kernel.shader, kernel.constants, dispatch.groups)
        });
        let names = names.collect();
        Ok(Some(Self { context: context.clone(), pool, names }))
    }

    /// Records the first stamp.
    pub(crate) fn begin(&self, device: &ash::Device, buffer: vk::CommandBuffer) {
        let count = self.names.len() as u32 + 1;
        // SAFETY: recording is under way; the pool has `count` stamps.
        unsafe {
            device.cmd_reset_query_pool(buffer, self.pool, 0, count);
            device.cmd_write_timestamp(
                buffer,
                vk::PipelineStageFlags::BOTTOM_OF_PIPE,
                self.pool,
                0,
            );
        }
    }

    /// Records the stamp after dispatch `index`.
    pub(crate) fn mark(&self, device: &ash::Device, buffer: vk::CommandBuffer, index: usize) {
        let stage = vk::PipelineStageFlags::BOTTOM_OF_PIPE;
        // SAFETY: recording is under way; the pool has a stamp for every dispatch.
        unsafe { device.cmd_write_timestamp(buffer, stage, self.pool, index as u32 + 1) };
    }

    /// Logs what the last run took, by kernel, longest first.
    pub(crate) fn log(&self, label: &str) {
        let mut stamps = vec![0u64; self.names.len() + 1];
        let flags = vk::QueryResultFlags::TYPE_64 | vk::QueryResultFlags::WAIT;
        // SAFETY: the run is over, so every stamp is written.
        let read =
            unsafe { self.context.raw.get_query_pool_results(self.pool, 0, &mut stamps, flags) };
        if read.is_err() {
            return;
        }
        let tick = f64::from(self.context.adapter.timestamp_nanos) / 1000.0;
        let mut sums: BTreeMap<&str, (f64, usize)> = BTreeMap::new();
        for (name, pair) in self.names.iter().zip(stamps.windows(2)) {
            let sum = sums.entry(name).or_default();
            sum.0 += pair[1].saturating_sub(pair[0]) as f64 * tick;
            sum.1 += 1;
        }
        let mut sums: Vec<_> = sums.into_iter().collect();
        sums.sort_by(|a, b| b.1.0.total_cmp(&a.1.0));
        let total: f64 = sums.iter().map(|(_, (micros, _))| micros).sum();
        let parts: Vec<String> = sums
            .iter()
            .map(|(name, (micros, count))| {
                format!("{name}: {count} of {:.1}", micros / *count as f64)
            })
            .collect();
        tracing::info!("{label}: {total:.0} us: {}", parts.join("; "));
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        // SAFETY: no run is under way when a recording is dropped.
        unsafe { self.context.raw.destroy_query_pool(self.pool, None) };
    }
}
