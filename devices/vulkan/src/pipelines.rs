//! Compiled kernels, and the driver's cache of them on disk.

use std::collections::HashMap;
use std::ffi::CStr;
use std::path::PathBuf;
use std::sync::Arc;

use ash::vk;
use parking_lot::Mutex;
use trefoil_devices_api::DeviceError;
use trefoil_kernels_vulkan::{Kernel, shader};

use crate::context::Context;

/// Bytes of push constants that every device has.
pub(crate) const PUSH_BYTES: u32 = 128;

/// All pipelines of a device, made when first asked for.
pub(crate) struct Pipelines {
    context: Arc<Context>,
    /// The one layout: push constants and nothing else.
    pub(crate) layout: vk::PipelineLayout,
    cache: vk::PipelineCache,
    file: Option<PathBuf>,
    made: Mutex<HashMap<Kernel, vk::Pipeline>>,
    statistics: Option<ash::khr::pipeline_executable_properties::Device>,
}

impl std::fmt::Debug for Pipelines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pipelines({})", self.made.lock().len())
    }
}

impl Pipelines {
    /// With the driver's cache kept in `folder`, under a name that changes with device, driver and
    /// kernels.
    pub(crate) fn new(
        context: &Arc<Context>,
        folder: Option<PathBuf>,
    ) -> Result<Self, DeviceError> {
        let adapter = &context.adapter;
        let file = folder.map(|folder| {
            let key = format!("1 {} {} {}", adapter.uuid, adapter.driver, crate::KERNEL_SET);
            let hash = blake3::hash(key.as_bytes()).to_hex();
            folder.join(format!("pipelines-{}.bin", &hash[..16]))
        });
        let kept = file.as_ref().and_then(|file| std::fs::read(file).ok()).unwrap_or_default();
        let info = vk::PipelineCacheCreateInfo::default().initial_data(&kept);
        // SAFETY: the data outlives the call; a driver checks it and ignores what it does not know.
        let cache = unsafe { context.raw.create_pipeline_cache(&info, None) }
            .map_err(|result| context.error("vkCreatePipelineCache", result))?;
        let ranges = [vk::PushConstantRange::default()
            .stage_flags(vk::ShaderStageFlags::COMPUTE)
            .size(PUSH_BYTES)];
        let info = vk::PipelineLayoutCreateInfo::default().push_constant_ranges(&ranges);
        // SAFETY: `info` and what it points to outlive the call.
        let layout = unsafe { context.raw.create_pipeline_layout(&info, None) };
        let layout = match layout {
            Ok(layout) => layout,
            Err(result) => {
                // SAFETY: made above, used by nothing.
                unsafe { context.raw.destroy_pipeline_cache(cache, None) };
                return Err(context.error("vkCreatePipelineLayout", result));
            }
        };
        let statistics = context.statistics();
        Ok(Self {
            context: context.clone(),
            layout,
            cache,
            file,
            made: Mutex::default(),
            statistics,
        })
    }

    /// The pipeline of a kernel.
    pub(crate) fn get(&self, kernel: &Kernel) -> Result<vk::Pipeline, DeviceError> {
        let mut made = self.made.lock();
        if let Some(&pipeline) = made.get(kernel) {
            return Ok(pipeline);
        }
        let pipeline = self.make(kernel)?;
        made.insert(kernel.clone(), pipeline);
        Ok(pipeline)
    }

    fn make(&self, kernel: &Kernel) -> Result<vk::Pipeline, DeviceError> {
        let device = &self.context.raw;
        let words = shader(&kernel.shader).ok_or_else(|| DeviceError::BadRequest {
            what: "kernel".to_owned(),
            expected: "a shader of this program".to_owned(),
            got: kernel.shader.clone(),
        })?;
        let info = vk::ShaderModuleCreateInfo::default().code(&words);
        // SAFETY: the words are SPIR-V that the build made, and outlive the call.
        let module = unsafe { device.create_shader_module(&info, None) }
            .map_err(|result| self.context.error("vkCreateShaderModule", result))?;
        let entries: Vec<vk::SpecializationMapEntry> = (0..kernel.constants.len() as u32)
            .map(|id| vk::SpecializationMapEntry { constant_id: id, offset: id * 4, size: 4 })
            .collect();
        let bytes: &[u8] = bytemuck::cast_slice(&kernel.constants);
        let constants = vk::SpecializationInfo::default().map_entries(&entries).data(bytes);
        let main: &CStr = c"main";
        let mut stage = vk::PipelineShaderStageCreateInfo::default()
            .stage(vk::ShaderStageFlags::COMPUTE)
            .module(module)
            .name(main)
            .specialization_info(&constants);
        let mut size = vk::PipelineShaderStageRequiredSubgroupSizeCreateInfo::default()
            .required_subgroup_size(self.context.adapter.subgroup.0);
        if self.context.adapter.required_subgroup {
            stage = stage.push_next(&mut size);
        }
        let flags = if self.statistics.is_some() {
            vk::PipelineCreateFlags::CAPTURE_STATISTICS_KHR
        } else {
            vk::PipelineCreateFlags::empty()
        };
        let info = [vk::ComputePipelineCreateInfo::default()
            .flags(flags)
            .stage(stage)
            .layout(self.layout)];
        // SAFETY: module, layout and all that `info` points to outlive the call.
        let result = unsafe { device.create_compute_pipelines(self.cache, &info, None) };
        // SAFETY: the pipeline, if made, does not need the module any more.
        unsafe { device.destroy_shader_module(module, None) };
        match result {
            Ok(pipelines) => {
                self.log_statistics(kernel, pipelines[0]);
                Ok(pipelines[0])
            }
            Err((_, result)) => {
                tracing::warn!("kernel {} {:?}: {result}", kernel.shader, kernel.constants);
                Err(self.context.error("vkCreateComputePipelines", result))
            }
        }
    }

    /// Logs registers, memory and the like of a kernel, where the driver tells.
    fn log_statistics(&self, kernel: &Kernel, pipeline: vk::Pipeline) {
        let Some(functions) = &self.statistics else { return };
        let info = vk::PipelineExecutableInfoKHR::default().pipeline(pipeline);
        // SAFETY: the pipeline was made for statistics, and has one executable: its only stage.
        let list = unsafe { functions.get_pipeline_executable_statistics(&info) };
        let values: Vec<String> = list
            .unwrap_or_default()
            .iter()
            .map(|statistic| {
                let name = statistic.name_as_c_str().unwrap_or_default().to_string_lossy();
                // SAFETY: the format says which member is set; all are eight bytes wide or less.
                let value = unsafe { statistic.value.u64 };
                format!("{name} {value}")
            })
            .collect();
        let (shader, constants) = (&kernel.shader, &kernel.constants);
        tracing::info!("kernel {shader} {constants:?}: {}", values.join(", "));
    }

    /// Keeps the driver's cache for the next start. Failing to is no fault: it is only slower then.
    fn save(&self) {
        let Some(file) = &self.file else { return };
        // SAFETY: the cache belongs to this device.
        let Ok(data) = (unsafe { self.context.raw.get_pipeline_cache_data(self.cache) }) else {
            return;
        };
        let temporary = file.with_extension(format!("{}.tmp", std::process::id()));
        let folder = file.parent().map_or(Ok(()), std::fs::create_dir_all);
        let written = folder.and_then(|()| std::fs::write(&temporary, data));
        if let Err(error) = written.and_then(|()| std::fs::rename(&temporary, file)) {
            tracing::debug!("pipeline cache {}: {error}", file.display());
        }
    }
}

impl Drop for Pipelines {
    fn drop(&mut self) {
        if !self.made.lock().is_empty() {
            self.save();
        }
        // SAFETY: all work is done before the device's parts are dropped; each handle is destroyed
        // once.
        unsafe {
            for (_, pipeline) in self.made.lock().drain() {
                self.context.raw.destroy_pipeline(pipeline, None);
            }
            self.context.raw.destroy_pipeline_layout(self.layout, None);
            self.context.raw.destroy_pipeline_cache(self.cache, None);
        }
    }
}
