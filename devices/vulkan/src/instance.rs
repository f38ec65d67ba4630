//! The Vulkan loader and an instance of it.

use std::ffi::{CStr, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ash::vk;

use crate::adapter::{Adapter, describe};

/// Why Vulkan cannot be used at all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InstanceError {
    /// No loader library.
    #[error(
        "no Vulkan loader: {0}; install the graphics driver's Vulkan package (Debian: libvulkan1 \
         and mesa-vulkan-drivers)"
    )]
    NoLoader(String),
    /// The loader is too old.
    #[error("expected a Vulkan loader of version 1.2 or later, got {major}.{minor}")]
    OldLoader {
        /// Major version.
        major: u32,
        /// Minor version.
        minor: u32,
    },
    /// No driver, or none that shows a device.
    #[error(
        "no Vulkan driver shows a device; install the graphics driver's Vulkan package (Debian: \
         mesa-vulkan-drivers) and see that this user may open /dev/dri"
    )]
    NoDriver,
    /// The loader refused.
    #[error("vkCreateInstance: {0}")]
    Refused(vk::Result),
}

/// Name of the layer that checks the use of the API.
const VALIDATION: &CStr = c"VK_LAYER_KHRONOS_validation";

/// The loader, opened.
pub struct Instance {
    pub(crate) raw: ash::Instance,
    messages: Box<AtomicU64>,
    messenger: Option<(ash::ext::debug_utils::Instance, vk::DebugUtilsMessengerEXT)>,
    // Dropped last: the functions above live in it.
    entry: ash::Entry,
}

impl std::fmt::Debug for Instance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Instance(validated: {})", self.messenger.is_some())
    }
}

impl Instance {
    /// Opens the loader. With `validate` the validation layer is used if it is installed; its
    /// messages go to the log and are counted.
    pub fn open(validate: bool) -> Result<Arc<Self>, InstanceError> {
        // SAFETY: loading the system's Vulkan loader runs its initialisers, which every Vulkan
        // program relies on.
        let entry = unsafe { ash::Entry::load() }
            .map_err(|error| InstanceError::NoLoader(error.to_string()))?;
        // SAFETY: the entry's functions are loaded; the call has no preconditions.
        let version = unsafe { entry.try_enumerate_instance_version() }
            .map_err(InstanceError::Refused)?
            .unwrap_or(vk::API_VERSION_1_0);
        if version < vk::API_VERSION_1_2 {
            let (major, minor) = (vk::api_version_major(version), vk::api_version_minor(version));
            return Err(InstanceError::OldLoader { major, minor });
        }
        // SAFETY: as above.
        let layers = unsafe { entry.enumerate_instance_layer_properties() }.unwrap_or_default();
        let installed = layers.iter().any(|layer| layer.layer_name_as_c_str() == Ok(VALIDATION));
        if validate && !installed {
            tracing::warn!("the Vulkan validation layer is not installed");
        }
        let validate = validate && installed;
        let application = vk::ApplicationInfo::default()
            .application_name(c"trefoil")
            .api_version(vk::API_VERSION_1_3.min(version));
        let layer_names = [VALIDATION.as_ptr()];
        let extension_names = [ash::ext::debug_utils::NAME.as_ptr()];
        let count = usize::from(validate);
        let info = vk::InstanceCreateInfo::default()
            .application_info(&application)
            .enabled_layer_names(&layer_names[..count])
            .enabled_extension_names(&extension_names[..count]);
        // SAFETY: `info` and all it points to outlive the call; the layer and its extension are
        // installed when they are named.
        let raw = unsafe { entry.create_instance(&info, None) }.map_err(|result| match result {
            vk::Result::ERROR_INCOMPATIBLE_DRIVER => InstanceError::NoDriver,
            other => InstanceError::Refused(other),
        })?;
        let messages = Box::new(AtomicU64::new(0));
        let messenger = validate.then(|| listen(&entry, &raw, &messages)).flatten();
        Ok(Arc::new(Self { raw, messages, messenger, entry }))
    }

    pub(crate) fn entry(&self) -> &ash::Entry {
        &self.entry
    }

    /// Messages of the validation layer so far; `None` if it is not at work.
    pub fn validation_messages(&self) -> Option<u64> {
        self.messenger.is_some().then(|| self.messages.load(Ordering::Relaxed))
    }

    /// All physical devices, in the order of the driver.
    pub fn adapters(self: &Arc<Self>) -> Vec<Adapter> {
        // SAFETY: the instance is alive.
        let found = unsafe { self.raw.enumerate_physical_devices() };
        let found = found.unwrap_or_else(|error| {
            tracing::warn!("vkEnumeratePhysicalDevices: {error}");
            Vec::new()
        });
        found.into_iter().map(|physical| describe(self, physical)).collect()
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if let Some((functions, messenger)) = self.messenger.take() {
            // SAFETY: the messenger was made by these functions and is destroyed once.
            unsafe { functions.destroy_debug_utils_messenger(messenger, None) };
        }
        // SAFETY: whatever was made from the instance holds it in an `Arc`, so nothing of it lives.
        unsafe { self.raw.destroy_instance(None) };
    }
}

fn listen(
    entry: &ash::Entry,
    raw: &ash::Instance,
    messages: &AtomicU64,
) -> Option<(ash::ext::debug_utils::Instance, vk::DebugUtilsMessengerEXT)> {
    let functions = ash::ext::debug_utils::Instance::new(entry, raw);
    let info = vk::DebugUtilsMessengerCreateInfoEXT::default()
        .message_severity(
            vk::DebugUtilsMessageSeverityFlagsEXT::WARNING
                | vk::DebugUtilsMessageSeverityFlagsEXT::ERROR,
        )
        .message_type(
            vk::DebugUtilsMessageTypeFlagsEXT::VALIDATION
                | vk::DebugUtilsMessageTypeFlagsEXT::PERFORMANCE,
        )
        .pfn_user_callback(Some(on_message))
        .user_data(std::ptr::from_ref(messages).cast_mut().cast());
    // SAFETY: the callback and the counter (boxed in the instance, dropped after the messenger)
    // outlive the messenger.
    let messenger = unsafe { functions.create_debug_utils_messenger(&info, None) }.ok()?;
    Some((functions, messenger))
}

/// Called by the validation layer.
unsafe extern "system" fn on_message(
    severity: vk::DebugUtilsMessageSeverityFlagsEXT,
    _: vk::DebugUtilsMessageTypeFlagsEXT,
    data: *const vk::DebugUtilsMessengerCallbackDataEXT<'_>,
    counter: *mut c_void,
) -> vk::Bool32 {
    // SAFETY: `counter` is the pointer to the instance's counter that was given at creation.
    let counter = unsafe { &*counter.cast_const().cast::<AtomicU64>() };
    counter.fetch_add(1, Ordering::Relaxed);
    // SAFETY: the layer passes valid data with a text that ends in zero, or null.
    let text = unsafe { data.as_ref().map(|data| data.message_as_c_str()) };
    let serious = severity.contains(vk::DebugUtilsMessageSeverityFlagsEXT::ERROR);
    tracing::warn!(
        "validation ({}): {:?}",
        if serious { "error" } else { "warning" },
        text.flatten()
    );
    vk::FALSE
}
