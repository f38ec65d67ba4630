//! GPUs: which of those that Vulkan shows are opened, and how.

use std::sync::Arc;

use trefoil_devices_api::{Device, DeviceError, DomainId};
use trefoil_devices_vulkan::{
    Adapter, AdapterKind, Instance, InstanceError, Tuning, VulkanOptions,
};
use trefoil_telemetry::Clock;

use super::{BackendOptions, Backends, Gpus};
use crate::self_test::Arithmetic;

/// Name under which it is said why there is no Vulkan at all.
pub(super) const VULKAN: &str = "vulkan";

/// Adds the GPUs that the options ask for.
pub(super) fn find(
    found: &mut Backends,
    options: &BackendOptions,
    judge: &dyn Device,
    clock: &Arc<dyn Clock>,
) {
    let instance = match Instance::open(options.validate) {
        Ok(instance) => instance,
        Err(error) => return found.refuse(VULKAN, error.to_string()),
    };
    let adapters = instance.adapters();
    if adapters.is_empty() {
        found.refuse(VULKAN, InstanceError::NoDriver.to_string());
    }
    found.adapters = named(adapters);
    found.vulkan = Some(instance);
    // The host's domain is number 0; each GPU may have one of its own.
    for (number, (name, adapter)) in (1..).zip(found.adapters.clone()) {
        if let Some(why) = not_wanted(&name, &adapter, options) {
            found.refuse(&name, format!("{}: {why}", adapter.name));
            continue;
        }
        let domain = DomainId(number);
        let made = open(found, &name, domain, adapter, options, clock);
        let arithmetic = if options.exact { Arithmetic::Gpu } else { Arithmetic::GpuHalves };
        found.offer(&name, made, judge, arithmetic);
    }
}

/// Names of GPUs: cards first, then parts of processors, programs last; else in the driver's order.
fn named(mut adapters: Vec<Adapter>) -> Vec<(String, Adapter)> {
    adapters.sort_by_key(|adapter| match adapter.kind {
        AdapterKind::Discrete => 0,
        AdapterKind::Integrated => 1,
        AdapterKind::Virtual | AdapterKind::Other => 2,
        AdapterKind::Software => 3,
    });
    let numbered = adapters.into_iter().enumerate();
    numbered.map(|(index, adapter)| (format!("gpu{index}"), adapter)).collect()
}

/// Why a GPU is left alone, if it is.
fn not_wanted(name: &str, adapter: &Adapter, options: &BackendOptions) -> Option<&'static str> {
    if options.named.iter().any(|wanted| wanted == name) {
        return None;
    }
    if adapter.kind == AdapterKind::Software {
        return Some("a program that plays a GPU: used only when named");
    }
    (options.gpus == Gpus::Named).then_some("not named")
}

fn open(
    found: &Backends,
    name: &str,
    domain: DomainId,
    mut adapter: Adapter,
    options: &BackendOptions,
    clock: &Arc<dyn Clock>,
) -> Result<Arc<dyn Device>, DeviceError> {
    if options.own_memory {
        adapter.host_import = None;
    }
    let own = VulkanOptions {
        name: name.to_owned(),
        domain,
        exact: options.exact,
        cache: options.cache.clone(),
        memory_limit: options.gpu_memory,
        tuning: tuning(),
        max_part: options.max_part,
        keep_awake: options.keep_awake,
        fault: options.fault.clone(),
    };
    trefoil_devices_vulkan::device(adapter, own, found.memory.clone(), clock.clone())
}

/// Sizes of Vulkan workgroups: `TREFOIL_VULKAN_TUNING`, eleven or fewer numbers, for measuring what is
/// fastest on a device; those that are missing are the usual ones.
fn tuning() -> Tuning {
    let mut tuning = Tuning::default();
    let text = std::env::var("TREFOIL_VULKAN_TUNING").unwrap_or_default();
    let [a, b, c, d, e] = &mut tuning.coop_tile;
    let dot = [
        &mut tuning.dot_rows,
        &mut tuning.dot_groups,
        &mut tuning.dot_threads,
        &mut tuning.dot_workgroup,
    ];
    let coop = [a, b, c, d, e, &mut tuning.coop_groups, &mut tuning.unpack_rows];
    let fields = dot.into_iter().chain(coop);
    for (field, value) in fields.zip(text.split(',')) {
        if let Ok(value) = value.trim().parse() {
            *field = value;
        }
    }
    tuning
}
