//! The least that runs a shader: one device, one host-visible buffer with an address, one dispatch at
//! a time. All of Vulkan that these tests touch is here.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, OnceLock};

use ash::vk;

/// Bytes of the buffer that all tensors of a test lie in.
const MEMORY: usize = 64 << 20;
/// Bytes after each tensor: shaders may load a little past the end.
const PADDING: usize = 64;

/// An open device and its memory.
pub(crate) struct Gpu {
    device: ash::Device,
    queue: vk::Queue,
    commands: vk::CommandBuffer,
    pool: vk::CommandPool,
    address: u64,
    mapped: *mut u8,
    used: usize,
    /// Pipelines by shader and constants: compiling takes longer than all else here.
    pipelines: HashMap<(String, Vec<u32>), (vk::Pipeline, vk::PipelineLayout)>,
    /// The driver's library, which must outlive what was made with it.
    _library: (ash::Entry, ash::Instance),
}

// SAFETY: `mapped` points into device memory that is never unmapped; nothing here is bound to a thread.
unsafe impl Send for Gpu {}

/// The device with its memory empty, or `None` (said on the error output) where there is no driver.
/// One test at a time has it.
pub(crate) fn open() -> Option<MutexGuard<'static, Gpu>> {
    static GPU: OnceLock<Option<Mutex<Gpu>>> = OnceLock::new();
    let gpu = GPU.get_or_init(|| match Gpu::new() {
        Ok(gpu) => Some(Mutex::new(gpu)),
        Err(reason) => {
            let expected = std::env::var_os("TREFOIL_EXPECT_GPU").is_some();
            assert!(!expected, "TREFOIL_EXPECT_GPU is set and there is no Vulkan device: {reason}");
            eprintln!("no Vulkan device here, nothing tested: {reason}");
            None
        }
    });
    let mut gpu = gpu.as_ref()?.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    gpu.clear();
    Some(gpu)
}

impl Gpu {
    fn new() -> Result<Self, String> {
        // SAFETY: loading the system's Vulkan loader runs its initialisers, which is what it is for.
        let entry = unsafe { ash::Entry::load() }.map_err(|error| error.to_string())?;
        let text = |error: vk::Result| error.to_string();
        let application = vk::ApplicationInfo::default().api_version(vk::API_VERSION_1_2);
        let info = vk::InstanceCreateInfo::default().application_info(&application);
        // SAFETY: `info` is complete and what it points to lives until the call returns.
        let instance = unsafe { entry.create_instance(&info, None) }.map_err(text)?;
        // SAFETY: the instance was just made; it is not used from elsewhere.
        let devices = unsafe { instance.enumerate_physical_devices() }.map_err(text)?;
        let physical = *devices.first().ok_or("the loader lists no device")?;
        // SAFETY: `physical` came from this instance.
        let properties = unsafe { instance.get_physical_device_properties(physical) };
        eprintln!("device: {:?}", properties.device_name_as_c_str().unwrap_or(c"?"));
        // SAFETY: as above.
        let families = unsafe { instance.get_physical_device_queue_family_properties(physical) };
        let family = families
            .iter()
            .position(|family| family.queue_flags.contains(vk::QueueFlags::COMPUTE))
            .ok_or("no queue for computing")? as u32;

        let queues = [vk::DeviceQueueCreateInfo::default()
            .queue_family_index(family)
            .queue_priorities(&[1.0])];
        let features = vk::PhysicalDeviceFeatures::default().shader_int64(true);
        let mut features11 =
            vk::PhysicalDeviceVulkan11Features::default().storage_buffer16_bit_access(true);
        let mut features12 = vk::PhysicalDeviceVulkan12Features::default()
            .buffer_device_address(true)
            .storage_buffer8_bit_access(true);
        let info = vk::DeviceCreateInfo::default()
            .queue_create_infos(&queues)
            .enabled_features(&features)
            .push_next(&mut features11)
            .push_next(&mut features12);
        // SAFETY: `info` is complete; a feature that is missing makes the call fail.
        let device = unsafe { instance.create_device(physical, &info, None) }.map_err(text)?;
        // SAFETY: one queue of this family was asked for.
        let queue = unsafe { device.get_device_queue(family, 0) };
        let info = vk::CommandPoolCreateInfo::default().queue_family_index(family);
        // SAFETY: the family is one of the device's.
        let pool = unsafe { device.create_command_pool(&info, None) }.map_err(text)?;
        let info =
            vk::CommandBufferAllocateInfo::default().command_pool(pool).command_buffer_count(1);
        // SAFETY: the pool was just made and is used from here only.
        let commands = unsafe { device.allocate_command_buffers(&info) }.map_err(text)?[0];

        // SAFETY: `physical` came from this instance.
        let memory = unsafe { instance.get_physical_device_memory_properties(physical) };
        let (address, mapped) = allocate(&device, &memory)?;
        let _library = (entry, instance);
        Ok(Self {
            device,
            queue,
            commands,
            pool,
            address,
            mapped,
            used: 0,
            pipelines: HashMap::new(),
            _library,
        })
    }

    /// Gives all room back.
    pub(crate) fn clear(&mut self) {
        self.used = 0;
    }

    /// Room for `bytes` zero bytes; its address, on a 256-byte boundary.
    pub(crate) fn space(&mut self, bytes: usize) -> u64 {
        let at = self.used;
        self.used = (at + bytes + PADDING).next_multiple_of(256);
        assert!(self.used <= MEMORY, "a test needs more than {MEMORY} bytes");
        // SAFETY: the range is inside the mapped memory; the device is idle between dispatches.
        unsafe { self.mapped.add(at).write_bytes(0, bytes) };
        self.address + at as u64
    }

    /// A copy of `values`; its address.
    pub(crate) fn put<T: bytemuck::NoUninit>(&mut self, values: &[T]) -> u64 {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let address = self.space(bytes.len());
        let at = (address - self.address) as usize;
        // SAFETY: `space` made room for the bytes there; source and target are different memory.
        unsafe { self.mapped.add(at).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        address
    }

    /// `count` values at an address of `space` or `put`.
    pub(crate) fn read<T: bytemuck::AnyBitPattern>(&self, address: u64, count: usize) -> Vec<T> {
        let at = (address - self.address) as usize;
        let bytes = count * size_of::<T>();
        assert!(at + bytes <= self.used, "reading past what was allotted");
        // SAFETY: inside the mapped memory; coherent, and the device is idle between dispatches.
        let bytes = unsafe { std::slice::from_raw_parts(self.mapped.add(at), bytes) };
        bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
    }

    /// Runs a shader to its end: specialisation constants from number 0 on, push constants, groups.
    pub(crate) fn run(&mut self, shader: &str, constants: &[u32], push: &[u8], groups: [u32; 3]) {
        let key = (shader.to_owned(), constants.to_vec());
        if !self.pipelines.contains_key(&key) {
            let made = self.compile(shader, constants, push.len() as u32);
            let made = made.unwrap_or_else(|error| panic!("{shader}: {error}"));
            self.pipelines.insert(key.clone(), made);
        }
        let (pipeline, layout) = self.pipelines[&key];
        self.dispatch(pipeline, layout, push, groups)
            .unwrap_or_else(|error| panic!("{shader}: {error}"));
    }

    fn compile(
        &self,
        shader: &str,
        constants: &[u32],
        push_bytes: u32,
    ) -> Result<(vk::Pipeline, vk::PipelineLayout), vk::Result> {
        let code = trefoil_kernels_vulkan::shader(shader)
            .unwrap_or_else(|| panic!("there is a shader {shader}"));
        let device = &self.device;
        let info = vk::ShaderModuleCreateInfo::default().code(&code);
        // SAFETY: the words are a module that glslang made for this version of Vulkan.
        let module = unsafe { device.create_shader_module(&info, None) }?;
        let ranges = [vk::PushConstantRange::default()
            .stage_flags(vk::ShaderStageFlags::COMPUTE)
            .size(push_bytes)];
        let info = vk::PipelineLayoutCreateInfo::default().push_constant_ranges(&ranges);
        // SAFETY: `info` is complete; push constants are within the 128 bytes every device has.
        let layout = unsafe { device.create_pipeline_layout(&info, None) }?;
        let entries: Vec<vk::SpecializationMapEntry> = (0..constants.len() as u32)
            .map(|id| vk::SpecializationMapEntry { constant_id: id, offset: id * 4, size: 4 })
            .collect();
        let constants = vk::SpecializationInfo::default()
            .map_entries(&entries)
            .data(bytemuck::cast_slice(constants));
        let stage = vk::PipelineShaderStageCreateInfo::default()
            .stage(vk::ShaderStageFlags::COMPUTE)
            .module(module)
            .name(c"main")
            .specialization_info(&constants);
        let info = [vk::ComputePipelineCreateInfo::default().stage(stage).layout(layout)];
        let cache = vk::PipelineCache::null();
        // SAFETY: module and layout are of this device; the constants are 32 bits each.
        let made = unsafe { device.create_compute_pipelines(cache, &info, None) };
        // SAFETY: a module is not needed once its pipeline is made.
        unsafe { device.destroy_shader_module(module, None) };
        Ok((made.map_err(|(_, error)| error)?[0], layout))
    }

    fn dispatch(
        &mut self,
        pipeline: vk::Pipeline,
        layout: vk::PipelineLayout,
        push: &[u8],
        groups: [u32; 3],
    ) -> Result<(), vk::Result> {
        let (device, commands) = (&self.device, self.commands);
        let barrier = [vk::MemoryBarrier::default()
            .src_access_mask(vk::AccessFlags::SHADER_WRITE)
            .dst_access_mask(vk::AccessFlags::HOST_READ)];
        let submits = [vk::SubmitInfo::default().command_buffers(std::slice::from_ref(&commands))];
        // SAFETY: nothing recorded from the pool is running, for each dispatch is waited for; so
        // `commands` is in its initial state. All handles are of this device, addresses in the push
        // constants are of `self`'s memory by the tests' care, and the queue is this thread's.
        unsafe {
            device.reset_command_pool(self.pool, vk::CommandPoolResetFlags::empty())?;
            device.begin_command_buffer(commands, &vk::CommandBufferBeginInfo::default())?;
            device.cmd_bind_pipeline(commands, vk::PipelineBindPoint::COMPUTE, pipeline);
            device.cmd_push_constants(commands, layout, vk::ShaderStageFlags::COMPUTE, 0, push);
            device.cmd_dispatch(commands, groups[0], groups[1], groups[2]);
            device.cmd_pipeline_barrier(
                commands,
                vk::PipelineStageFlags::COMPUTE_SHADER,
                vk::PipelineStageFlags::HOST,
                vk::DependencyFlags::empty(),
                &barrier,
                &[],
                &[],
            );
            device.end_command_buffer(commands)?;
            device.queue_submit(self.queue, &submits, vk::Fence::null())?;
            device.queue_wait_idle(self.queue)
        }
    }
}

/// A mapped buffer of `MEMORY` bytes: its device address and its pointer.
fn allocate(
    device: &ash::Device,
    memory: &vk::PhysicalDeviceMemoryProperties,
) -> Result<(u64, *mut u8), String> {
    let text = |error: vk::Result| error.to_string();
    let info = vk::BufferCreateInfo::default()
        .size(MEMORY as u64)
        .usage(vk::BufferUsageFlags::STORAGE_BUFFER | vk::BufferUsageFlags::SHADER_DEVICE_ADDRESS);
    // SAFETY: `info` is complete and the feature for addresses is on.
    let buffer = unsafe { device.create_buffer(&info, None) }.map_err(text)?;
    // SAFETY: the buffer was just made.
    let needs = unsafe { device.get_buffer_memory_requirements(buffer) };
    let wanted = vk::MemoryPropertyFlags::HOST_VISIBLE | vk::MemoryPropertyFlags::HOST_COHERENT;
    let index = memory
        .memory_types_as_slice()
        .iter()
        .enumerate()
        .position(|(i, kind)| {
            needs.memory_type_bits >> i & 1 == 1 && kind.property_flags.contains(wanted)
        })
        .ok_or("no host-visible memory")? as u32;
    let mut flags =
        vk::MemoryAllocateFlagsInfo::default().flags(vk::MemoryAllocateFlags::DEVICE_ADDRESS);
    let info = vk::MemoryAllocateInfo::default()
        .allocation_size(needs.size)
        .memory_type_index(index)
        .push_next(&mut flags);
    // SAFETY: size and type are what the buffer needs.
    let memory = unsafe { device.allocate_memory(&info, None) }.map_err(text)?;
    // SAFETY: neither is bound yet; the memory is of the type and size that the buffer needs.
    unsafe { device.bind_buffer_memory(buffer, memory, 0) }.map_err(text)?;
    let info = vk::BufferDeviceAddressInfo::default().buffer(buffer);
    // SAFETY: the buffer is bound and was made for having an address.
    let address = unsafe { device.get_buffer_device_address(&info) };
    let flags = vk::MemoryMapFlags::empty();
    // SAFETY: the memory is host-visible and not mapped yet.
    let mapped = unsafe { device.map_memory(memory, 0, vk::WHOLE_SIZE, flags) }.map_err(text)?;
    Ok((address, mapped.cast()))
}

/// Push constants, appended in the order and with the alignment of std430.
#[derive(Default)]
pub(crate) struct Push(pub Vec<u8>);

impl Push {
    /// Addresses, which come first in every shader.
    pub(crate) fn new(addresses: &[u64]) -> Self {
        Self(addresses.iter().flat_map(|address| address.to_le_bytes()).collect())
    }

    /// A word.
    pub(crate) fn word(mut self, value: usize) -> Self {
        self.0.extend(u32::try_from(value).expect("fits in a word").to_le_bytes());
        self
    }

    /// A number.
    pub(crate) fn number(mut self, value: f32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }
}
