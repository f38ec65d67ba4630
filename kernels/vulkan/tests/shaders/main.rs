//! Shaders on whatever Vulkan device is here (Mesa's software driver, if nothing else), against the
//! reference. Where there is no driver at all, the tests say so and test nothing.

mod blocks;
mod experts;
mod gpu;
mod ops;
