//! GPUs through Vulkan.
