//! A physical device: who it is, what it can do, what it lacks.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::sync::Arc;

use ash::vk;
use trefoil_telemetry::Bytes;

use crate::instance::Instance;
use crate::profile;

/// Sort of physical device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AdapterKind {
    /// A card with memory of its own.
    Discrete,
    /// Part of the processor, sharing its memory.
    Integrated,
    /// A share of a card in a virtual machine.
    Virtual,
    /// A program that plays a GPU (llvmpipe, SwiftShader).
    Software,
    /// Something else.
    Other,
}

/// Shape of a cooperative matrix product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Matrices {
    /// Rows of the result.
    pub m: u32,
    /// Columns of the result.
    pub n: u32,
    /// Length of the sums.
    pub k: u32,
}

/// One physical device.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Adapter {
    #[serde(skip)]
    pub(crate) instance: Arc<Instance>,
    #[serde(skip)]
    pub(crate) physical: vk::PhysicalDevice,
    /// What its maker calls it.
    pub name: String,
    /// Sort of device.
    pub kind: AdapterKind,
    /// Stable identity, 32 hexadecimal digits.
    pub uuid: String,
    /// `0000:c4:00.0`, where the driver tells.
    pub pci: Option<String>,
    /// Name and version of the driver.
    pub driver: String,
    /// Version of Vulkan, `1.3.230`.
    pub api: String,
    /// Bytes of the largest heap of its own.
    pub memory: Bytes,
    /// Threads of a subgroup: usual, least, most.
    pub subgroup: (u32, u32, u32),
    /// Bytes that a workgroup can share.
    pub shared_bytes: u32,
    /// Most threads of a workgroup.
    pub max_threads: u32,
    /// Shapes of products of halves with sums in f32 over a subgroup.
    pub matrices: Vec<Matrices>,
    /// Are sums of four products of bytes one instruction?
    pub integer_dot: bool,
    /// Can memory of the host be imported, and on which boundary?
    pub host_import: Option<u64>,
    /// Does the driver tell how much memory is left?
    pub memory_budget: bool,
    /// Largest allocation and buffer, in bytes.
    pub max_buffer: u64,
    /// Features that kernels need and that are missing here.
    pub missing: Vec<&'static str>,
    #[serde(skip)]
    pub(crate) max_groups: [u32; 3],
    #[serde(skip)]
    pub(crate) statistics: bool,
    #[serde(skip)]
    pub(crate) timestamp_nanos: f32,
    #[serde(skip)]
    pub(crate) dot_product: bool,
    #[serde(skip)]
    pub(crate) required_subgroup: bool,
    #[serde(skip)]
    pub(crate) float16: bool,
    #[serde(skip)]
    pub(crate) memory_model: bool,
}

impl Adapter {
    /// What matters of it, in a line.
    pub fn summary(&self) -> String {
        let kind = format!("{:?}", self.kind).to_lowercase();
        let mut parts = vec![kind, self.memory.to_string()];
        if self.shares_memory() {
            parts.push("shared with the host".to_owned());
        }
        parts.push(format!("subgroups of {}", self.subgroup.0));
        if let Some(Matrices { m, n, k }) = self.matrices.first() {
            parts.push(format!("matrices of {m}x{n}x{k}"));
        }
        if self.integer_dot {
            parts.push("integer dot products".to_owned());
        }
        parts.push(format!("Vulkan {}, {}", self.api, self.driver));
        parts.extend(self.pci.as_ref().map(|pci| format!("PCI {pci}")));
        if !self.missing.is_empty() {
            parts.push(format!("lacks {}", self.missing.join(", ")));
        }
        parts.join(", ")
    }

    /// Does it share the host's memory, such that tensors and weights need no copy?
    pub fn shares_memory(&self) -> bool {
        let shared = matches!(self.kind, AdapterKind::Integrated | AdapterKind::Software);
        shared && self.host_import.is_some()
    }
}

fn text(bytes: Result<&CStr, impl Sized>) -> String {
    bytes.map(|text| text.to_string_lossy().into_owned()).unwrap_or_default()
}

fn version(v: u32) -> String {
    let (major, minor) = (vk::api_version_major(v), vk::api_version_minor(v));
    format!("{major}.{minor}.{}", vk::api_version_patch(v))
}

/// Names of the extensions that a physical device has.
fn extensions(instance: &Instance, physical: vk::PhysicalDevice) -> BTreeSet<CString> {
    // SAFETY: `physical` belongs to the instance, which is alive.
    let list = unsafe { instance.raw.enumerate_device_extension_properties(physical) };
    let list = list.unwrap_or_default();
    list.iter().filter_map(|e| e.extension_name_as_c_str().ok().map(CStr::to_owned)).collect()
}

/// Reads everything that is known of a physical device.
pub(crate) fn describe(instance: &Arc<Instance>, physical: vk::PhysicalDevice) -> Adapter {
    let extensions = extensions(instance, physical);
    let has = |name: &CStr| extensions.contains(name);
    let mut id = vk::PhysicalDeviceIDProperties::default();
    let mut driver = vk::PhysicalDeviceDriverProperties::default();
    let mut subgroup = vk::PhysicalDeviceSubgroupProperties::default();
    let mut sizes = vk::PhysicalDeviceSubgroupSizeControlProperties::default();
    let mut maintenance3 = vk::PhysicalDeviceMaintenance3Properties::default();
    let mut maintenance4 = vk::PhysicalDeviceMaintenance4Properties::default();
    let mut dot = vk::PhysicalDeviceShaderIntegerDotProductProperties::default();
    let mut host = vk::PhysicalDeviceExternalMemoryHostPropertiesEXT::default();
    let mut pci = vk::PhysicalDevicePCIBusInfoPropertiesEXT::default();
    let mut properties = vk::PhysicalDeviceProperties2::default()
        .push_next(&mut id)
        .push_next(&mut driver)
        .push_next(&mut subgroup)
        .push_next(&mut maintenance3);
    // SAFETY: `physical` belongs to the instance.
    let api = unsafe { instance.raw.get_physical_device_properties(physical) }.api_version;
    let core13 = api >= vk::API_VERSION_1_3;
    if core13 || has(ash::ext::subgroup_size_control::NAME) {
        properties = properties.push_next(&mut sizes);
    }
    if core13 || has(ash::khr::maintenance4::NAME) {
        properties = properties.push_next(&mut maintenance4);
    }
    if core13 || has(ash::khr::shader_integer_dot_product::NAME) {
        properties = properties.push_next(&mut dot);
    }
    if has(ash::ext::external_memory_host::NAME) {
        properties = properties.push_next(&mut host);
    }
    if has(ash::ext::pci_bus_info::NAME) {
        properties = properties.push_next(&mut pci);
    }
    // SAFETY: every structure in the chain is known to the device: core in 1.2, or its extension is
    // there.
    unsafe { instance.raw.get_physical_device_properties2(physical, &mut properties) };
    let base = properties.properties;

    let mut storage16 = vk::PhysicalDevice16BitStorageFeatures::default();
    let mut v12 = vk::PhysicalDeviceVulkan12Features::default();
    let mut size_control = vk::PhysicalDeviceSubgroupSizeControlFeatures::default();
    let mut coop = vk::PhysicalDeviceCooperativeMatrixFeaturesKHR::default();
    let has_coop = has(ash::khr::cooperative_matrix::NAME);
    let mut features =
        vk::PhysicalDeviceFeatures2::default().push_next(&mut storage16).push_next(&mut v12);
    if core13 || has(ash::ext::subgroup_size_control::NAME) {
        features = features.push_next(&mut size_control);
    }
    let mut dot_feature = vk::PhysicalDeviceShaderIntegerDotProductFeatures::default();
    if core13 || has(ash::khr::shader_integer_dot_product::NAME) {
        features = features.push_next(&mut dot_feature);
    }
    if has_coop {
        features = features.push_next(&mut coop);
    }
    // SAFETY: as above.
    unsafe { instance.raw.get_physical_device_features2(physical, &mut features) };
    let int64 = features.features.shader_int64 == vk::TRUE;
    let subgroups = |operations: vk::SubgroupFeatureFlags| {
        subgroup.supported_operations.contains(operations)
            && subgroup.supported_stages.contains(vk::ShaderStageFlags::COMPUTE)
    };
    let arithmetic = subgroups(vk::SubgroupFeatureFlags::ARITHMETIC);
    let shuffle = subgroups(vk::SubgroupFeatureFlags::SHUFFLE);
    let needs = [
        (api >= vk::API_VERSION_1_2, "Vulkan 1.2"),
        (int64, "shaderInt64"),
        (storage16.storage_buffer16_bit_access == vk::TRUE, "storageBuffer16BitAccess"),
        (v12.storage_buffer8_bit_access == vk::TRUE, "storageBuffer8BitAccess"),
        (v12.buffer_device_address == vk::TRUE, "bufferDeviceAddress"),
        (v12.timeline_semaphore == vk::TRUE, "timelineSemaphore"),
        (arithmetic, "subgroup arithmetic"),
        (shuffle, "subgroup shuffles"),
    ];
    let missing = needs.into_iter().filter_map(|(there, name)| (!there).then_some(name)).collect();
    let float16 = v12.shader_float16 == vk::TRUE;
    let memory_model =
        v12.vulkan_memory_model == vk::TRUE && v12.vulkan_memory_model_device_scope == vk::TRUE;
    let matrices = if has_coop && coop.cooperative_matrix == vk::TRUE && float16 && memory_model {
        matrix_shapes(instance, physical)
    } else {
        Vec::new()
    };
    // SAFETY: `physical` belongs to the instance.
    let heaps = unsafe { instance.raw.get_physical_device_memory_properties(physical) };
    let own = heaps.memory_heaps_as_slice().iter();
    let own = own.filter(|heap| heap.flags.contains(vk::MemoryHeapFlags::DEVICE_LOCAL));
    let required_subgroup = size_control.subgroup_size_control == vk::TRUE
        && size_control.compute_full_subgroups == vk::TRUE
        && sizes.required_subgroup_size_stages.contains(vk::ShaderStageFlags::COMPUTE);
    let usual = subgroup.subgroup_size;
    let max_buffer = match maintenance4.max_buffer_size {
        0 => maintenance3.max_memory_allocation_size,
        most => most.min(maintenance3.max_memory_allocation_size),
    };
    Adapter {
        instance: instance.clone(),
        physical,
        name: text(base.device_name_as_c_str()),
        kind: match base.device_type {
            vk::PhysicalDeviceType::DISCRETE_GPU => AdapterKind::Discrete,
            vk::PhysicalDeviceType::INTEGRATED_GPU => AdapterKind::Integrated,
            vk::PhysicalDeviceType::VIRTUAL_GPU => AdapterKind::Virtual,
            vk::PhysicalDeviceType::CPU => AdapterKind::Software,
            _ => AdapterKind::Other,
        },
        uuid: id.device_uuid.iter().map(|byte| format!("{byte:02x}")).collect(),
        pci: has(ash::ext::pci_bus_info::NAME).then(|| {
            let (domain, bus) = (pci.pci_domain, pci.pci_bus);
            format!("{domain:04x}:{bus:02x}:{:02x}.{}", pci.pci_device, pci.pci_function)
        }),
        driver: format!(
            "{} {}",
            text(driver.driver_name_as_c_str()),
            text(driver.driver_info_as_c_str())
        ),
        api: version(api),
        memory: Bytes(own.map(|heap| heap.size).max().unwrap_or(0)),
        subgroup: match sizes.min_subgroup_size {
            0 => (usual, usual, usual),
            least => (usual, least, sizes.max_subgroup_size),
        },
        shared_bytes: base.limits.max_compute_shared_memory_size,
        max_threads: base
            .limits
            .max_compute_work_group_invocations
            .min(base.limits.max_compute_work_group_size[0]),
        matrices,
        integer_dot: dot.integer_dot_product4x8_bit_packed_signed_accelerated == vk::TRUE,
        host_import: has(ash::ext::external_memory_host::NAME)
            .then_some(host.min_imported_host_pointer_alignment),
        memory_budget: has(ash::ext::memory_budget::NAME),
        max_buffer,
        missing,
        dot_product: dot_feature.shader_integer_dot_product == vk::TRUE,
        statistics: has(ash::khr::pipeline_executable_properties::NAME) && profile::wanted(),
        timestamp_nanos: base.limits.timestamp_period,
        max_groups: base.limits.max_compute_work_group_count,
        required_subgroup,
        float16,
        memory_model,
    }
}

/// Shapes of cooperative products of halves with sums in f32, over a subgroup.
fn matrix_shapes(instance: &Instance, physical: vk::PhysicalDevice) -> Vec<Matrices> {
    let functions = ash::khr::cooperative_matrix::Instance::new(instance.entry(), &instance.raw);
    // SAFETY: `physical` belongs to the instance and has the extension.
    let list = unsafe { functions.get_physical_device_cooperative_matrix_properties(physical) };
    let (half, float) = (vk::ComponentTypeKHR::FLOAT16, vk::ComponentTypeKHR::FLOAT32);
    let right = |p: &vk::CooperativeMatrixPropertiesKHR<'_>| {
        (p.a_type, p.b_type, p.c_type, p.result_type) == (half, half, float, float)
            && p.scope == vk::ScopeKHR::SUBGROUP
    };
    let list = list.unwrap_or_default().into_iter().filter(right);
    list.map(|p| Matrices { m: p.m_size, n: p.n_size, k: p.k_size }).collect()
}
