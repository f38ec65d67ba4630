//! A logical device: the driver's functions, one queue, and what every call's answer means.

use std::ffi::CStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ash::vk;
use parking_lot::Mutex;
use trefoil_devices_api::{DeviceError, DomainId, LostReason};
use trefoil_telemetry::Bytes;

use crate::adapter::Adapter;

/// An opened device. Everything made from it holds it.
pub(crate) struct Context {
    pub(crate) raw: ash::Device,
    pub(crate) adapter: Adapter,
    pub(crate) family: u32,
    /// Bits of the queue's time stamps; 0 if it has no clock.
    pub(crate) timestamp_bits: u32,
    pub(crate) memory: vk::PhysicalDeviceMemoryProperties,
    pub(crate) host_import: Option<ash::ext::external_memory_host::Device>,
    /// Where what the device allocates is counted.
    pub(crate) domain: DomainId,
    queue: Mutex<vk::Queue>,
    /// A second queue of the family for copies beside the work of the first, where it has one.
    beside: Option<Mutex<vk::Queue>>,
    /// Did the driver say that the device is lost? It stays so.
    lost: AtomicBool,
    /// Once true, the driver is taken to say that the device is lost.
    fault: Option<Arc<AtomicBool>>,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Context({})", self.adapter.name)
    }
}

impl Context {
    /// Opens the adapter's compute queue. The adapter lacks nothing (the caller checked).
    pub(crate) fn open(
        adapter: Adapter,
        domain: DomainId,
        fault: Option<Arc<AtomicBool>>,
    ) -> Result<Arc<Self>, DeviceError> {
        let instance = &adapter.instance.raw;
        // SAFETY: the physical device belongs to the instance, which the adapter keeps alive.
        let families =
            unsafe { instance.get_physical_device_queue_family_properties(adapter.physical) };
        let compute = |family: &vk::QueueFamilyProperties| {
            family.queue_flags.contains(vk::QueueFlags::COMPUTE)
        };
        let family = families.iter().position(compute).ok_or(DeviceError::BadRequest {
            what: adapter.name.clone(),
            expected: "a queue that computes".to_owned(),
            got: "none".to_owned(),
        })? as u32;
        let timestamp_bits = families[family as usize].timestamp_valid_bits;
        let priorities = [1.0; 2];
        let count = (families[family as usize].queue_count as usize).clamp(1, priorities.len());
        let queues = [vk::DeviceQueueCreateInfo::default()
            .queue_family_index(family)
            .queue_priorities(&priorities[..count])];
        let mut names: Vec<*const i8> = Vec::new();
        let mut name = |name: &CStr| names.push(name.as_ptr());
        if adapter.host_import.is_some() {
            name(ash::ext::external_memory_host::NAME);
        }
        if adapter.memory_budget {
            name(ash::ext::memory_budget::NAME);
        }
        let core13 = adapter.api.as_str() >= "1.3";
        if adapter.required_subgroup && !core13 {
            name(ash::ext::subgroup_size_control::NAME);
        }
        if adapter.dot_product && !core13 {
            name(ash::khr::shader_integer_dot_product::NAME);
        }
        if adapter.statistics {
            name(ash::khr::pipeline_executable_properties::NAME);
        }
        let matrices = !adapter.matrices.is_empty();
        if matrices {
            name(ash::khr::cooperative_matrix::NAME);
        }
        let on = vk::PhysicalDeviceFeatures::default().shader_int64(true);
        let mut storage16 =
            vk::PhysicalDevice16BitStorageFeatures::default().storage_buffer16_bit_access(true);
        let mut v12 = vk::PhysicalDeviceVulkan12Features::default()
            .storage_buffer8_bit_access(true)
            .buffer_device_address(true)
            .timeline_semaphore(true)
            .shader_float16(adapter.float16)
            .vulkan_memory_model(adapter.memory_model)
            .vulkan_memory_model_device_scope(adapter.memory_model);
        let mut sizes = vk::PhysicalDeviceSubgroupSizeControlFeatures::default()
            .subgroup_size_control(true)
            .compute_full_subgroups(true);
        let mut coop =
            vk::PhysicalDeviceCooperativeMatrixFeaturesKHR::default().cooperative_matrix(true);
        let mut dot = vk::PhysicalDeviceShaderIntegerDotProductFeatures::default()
            .shader_integer_dot_product(true);
        let mut statistics = vk::PhysicalDevicePipelineExecutablePropertiesFeaturesKHR::default()
            .pipeline_executable_info(true);
        let mut info = vk::DeviceCreateInfo::default()
            .queue_create_infos(&queues)
            .enabled_extension_names(&names)
            .enabled_features(&on)
            .push_next(&mut storage16)
            .push_next(&mut v12);
        if adapter.required_subgroup {
            info = info.push_next(&mut sizes);
        }
        if matrices {
            info = info.push_next(&mut coop);
        }
        if adapter.dot_product {
            info = info.push_next(&mut dot);
        }
        if adapter.statistics {
            info = info.push_next(&mut statistics);
        }
        // SAFETY: `info` and all it points to outlive the call; features and extensions were found
        // on the adapter.
        let raw = unsafe { instance.create_device(adapter.physical, &info, None) }
            .map_err(|result| driver_error("vkCreateDevice", result, domain))?;
        // SAFETY: the family was asked for with at least one queue.
        let queue = unsafe { raw.get_device_queue(family, 0) };
        // SAFETY: with two of them, here.
        let beside = (count > 1).then(|| unsafe { raw.get_device_queue(family, 1) });
        // SAFETY: the physical device belongs to the instance.
        let memory = unsafe { instance.get_physical_device_memory_properties(adapter.physical) };
        let host_import = adapter
            .host_import
            .map(|_| ash::ext::external_memory_host::Device::new(instance, &raw));
        let (queue, beside) = (Mutex::new(queue), beside.map(Mutex::new));
        let lost = AtomicBool::new(false);
        Ok(Arc::new(Self {
            raw,
            adapter,
            family,
            timestamp_bits,
            memory,
            host_import,
            domain,
            queue,
            beside,
            lost,
            fault,
        }))
    }

    /// Functions that tell what the driver made of a kernel, if somebody wants to know.
    pub(crate) fn statistics(&self) -> Option<ash::khr::pipeline_executable_properties::Device> {
        self.adapter.statistics.then(|| {
            let instance = &self.adapter.instance.raw;
            ash::khr::pipeline_executable_properties::Device::new(instance, &self.raw)
        })
    }

    /// The error behind a driver's answer.
    pub(crate) fn error(&self, call: &'static str, result: vk::Result) -> DeviceError {
        if result == vk::Result::ERROR_DEVICE_LOST {
            self.lost.store(true, Ordering::Relaxed);
        }
        driver_error(call, result, self.domain)
    }

    /// An error once the driver said that the device is lost: nothing runs on it any more.
    pub(crate) fn check(&self) -> Result<(), DeviceError> {
        if self.lost.load(Ordering::Relaxed) {
            return Err(DeviceError::Lost { reason: LostReason::Driver, epoch: 0 });
        }
        Ok(())
    }

    /// Runs a command buffer and waits until it is done.
    pub(crate) fn run(
        &self,
        commands: vk::CommandBuffer,
        fence: vk::Fence,
    ) -> Result<(), DeviceError> {
        self.begin(commands, fence, false)?;
        self.wait(fence)
    }

    /// Gives a command buffer to the queue, or to the one beside it where there is one. The caller
    /// waits for the fence before it touches either again.
    pub(crate) fn begin(
        &self,
        commands: vk::CommandBuffer,
        fence: vk::Fence,
        beside: bool,
    ) -> Result<(), DeviceError> {
        let buffers = [commands];
        let submit = [vk::SubmitInfo::default().command_buffers(&buffers)];
        {
            let second = self.beside.as_ref().filter(|_| beside);
            let queue = second.unwrap_or(&self.queue).lock();
            let faulty = self.fault.as_ref().is_some_and(|fault| fault.load(Ordering::Relaxed));
            let submitted = if faulty {
                Err(vk::Result::ERROR_DEVICE_LOST)
            } else {
                // SAFETY: the queue is locked; the commands were recorded for this device and touch
                // memory that their recording keeps alive; the fence is not in use.
                unsafe { self.raw.queue_submit(*queue, &submit, fence) }
            };
            submitted.map_err(|result| self.error("vkQueueSubmit", result))
        }
    }

    /// Waits for a fence that was given with commands, and resets it.
    pub(crate) fn wait(&self, fence: vk::Fence) -> Result<(), DeviceError> {
        // SAFETY: the fence belongs to this device.
        let waited = unsafe { self.raw.wait_for_fences(&[fence], true, u64::MAX) };
        waited.map_err(|result| self.error("vkWaitForFences", result))?;
        // SAFETY: the fence is signalled and nobody waits for it.
        unsafe { self.raw.reset_fences(&[fence]) }
            .map_err(|result| self.error("vkResetFences", result))
    }

    /// Bytes of the device's own memory: (budget for this program, in use by it).
    pub(crate) fn budget(&self) -> Option<(Bytes, Bytes)> {
        if !self.adapter.memory_budget {
            return None;
        }
        let mut budget = vk::PhysicalDeviceMemoryBudgetPropertiesEXT::default();
        let mut properties = vk::PhysicalDeviceMemoryProperties2::default().push_next(&mut budget);
        // SAFETY: the physical device belongs to the instance and has the extension.
        unsafe {
            self.adapter
                .instance
                .raw
                .get_physical_device_memory_properties2(self.adapter.physical, &mut properties);
        }
        let heaps = self.memory.memory_heaps_as_slice().iter().enumerate();
        let own = heaps.filter(|(_, heap)| heap.flags.contains(vk::MemoryHeapFlags::DEVICE_LOCAL));
        let largest = own.max_by_key(|(_, heap)| heap.size)?.0;
        Some((Bytes(budget.heap_budget[largest]), Bytes(budget.heap_usage[largest])))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: whatever was made from the device holds the context, so nothing of it lives; a
        // lost device may be destroyed as well.
        unsafe {
            let _ = self.raw.device_wait_idle();
            self.raw.destroy_device(None);
        }
    }
}

/// What a driver's answer means.
pub(crate) fn driver_error(
    call: &'static str,
    result: vk::Result,
    domain: DomainId,
) -> DeviceError {
    match result {
        vk::Result::ERROR_DEVICE_LOST => DeviceError::Lost { reason: LostReason::Driver, epoch: 0 },
        vk::Result::ERROR_OUT_OF_DEVICE_MEMORY | vk::Result::ERROR_OUT_OF_HOST_MEMORY => {
            DeviceError::OutOfMemory {
                domain,
                need: Bytes(0),
                have: Bytes(0),
                holders: format!("other programs, says the driver ({call})"),
            }
        }
        other => {
            DeviceError::Driver { call, code: i64::from(other.as_raw()), text: other.to_string() }
        }
    }
}
