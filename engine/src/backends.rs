//! The one place that names backends.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use trefoil_devices_api::{Device, DeviceError, DomainId, MemoryManager};
use trefoil_devices_vulkan::{Adapter, AdapterKind, Tuning, VulkanOptions};
use trefoil_scheduler::DeviceFacts;

use crate::self_test::{Arithmetic, self_test};
use trefoil_telemetry::{Bytes, Clock, SystemClock, host_memory};

/// Devices of this machine, best first, and the budgets of its memory.
#[derive(Debug, Clone)]
pub struct Backends {
    /// Devices that may be used.
    pub devices: Vec<Arc<dyn Device>>,
    /// Devices that are here and may not be used.
    pub refused: Vec<Refused>,
    /// Budgets.
    pub memory: MemoryManager,
    /// What Vulkan's drivers show, by name, whether it may be used or not.
    pub adapters: Vec<(String, Adapter)>,
    vulkan: Option<Arc<trefoil_devices_vulkan::Instance>>,
}

/// A device that did not come up.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Refused {
    /// Its name.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// Which GPUs to open. Opening one takes time and memory, so it is done when there is a use for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Gpus {
    /// Those that are named: `gpu0`.
    #[default]
    Named,
    /// All that are no programs playing a GPU, and those that are named.
    All,
}

/// How the devices are set up.
#[derive(Clone, Debug, Default)]
pub struct BackendOptions {
    /// Threads of the CPU device; 0 for one per physical core.
    pub threads: usize,
    /// Exact f32 arithmetic instead of 8-bit activations on the CPU and halves on GPUs.
    pub exact: bool,
    /// Which GPUs to open.
    pub gpus: Gpus,
    /// Devices that the user named, in whatever way.
    pub named: Vec<String>,
    /// Most bytes of a GPU's own memory to use.
    pub gpu_memory: Option<Bytes>,
    /// Check the use of Vulkan with its validation layer, and count what it says.
    pub validate: bool,
    /// Folder for what is made once and kept: compiled kernels.
    pub cache: Option<PathBuf>,
    /// Treat GPUs that share the host's memory as cards with memory of their own (for tests of copies).
    pub own_memory: bool,
    /// Largest piece of a weight in one GPU buffer (for tests of splitting).
    pub max_part: Option<u64>,
    /// Once true, GPUs end every submission as lost ones do (for tests of what follows).
    pub fault: Option<Arc<AtomicBool>>,
}

/// Name under which it is said why there is no Vulkan at all.
const VULKAN: &str = "vulkan";
/// Share of the machine's memory that buffers may take (weights are mapped files and not counted).
const HOST_SHARE: f64 = 0.8;
/// Budget where the system does not tell its size.
const UNKNOWN_HOST: Bytes = Bytes(4 << 30);

impl Backends {
    /// Finds the devices of this machine.
    pub fn detect(options: BackendOptions) -> Self {
        let memory = MemoryManager::default();
        let total = host_memory().total;
        let budget = total.map_or(UNKNOWN_HOST, |t| Bytes((t.0 as f64 * HOST_SHARE) as u64));
        memory.set_budget(DomainId::HOST, budget);
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
        let mut devices = Vec::new();
        let mut refused = Vec::new();
        let judge = trefoil_devices_ref::device(memory.clone(), clock.clone());
        let arithmetic = if options.exact { Arithmetic::Exact } else { Arithmetic::Rounded };
        let made = trefoil_devices_cpu::device(
            options.threads,
            options.exact,
            memory.clone(),
            clock.clone(),
        );
        match tested(made, judge.as_ref(), arithmetic) {
            Ok(device) => devices.push(device),
            Err(reason) => refused.push(Refused { name: "cpu0".to_owned(), reason }),
        }
        let mut vulkan = None;
        let mut adapters = Vec::new();
        if options.gpus == Gpus::All || options.named.iter().any(|name| name.starts_with("gpu")) {
            match trefoil_devices_vulkan::Instance::open(options.validate) {
                Ok(instance) => {
                    if instance.adapters().is_empty() {
                        let reason = trefoil_devices_vulkan::InstanceError::NoDriver.to_string();
                        refused.push(Refused { name: "vulkan".to_owned(), reason });
                    }
                    for (name, mut adapter) in gpu_names(instance.adapters()) {
                        adapters.push((name.clone(), adapter.clone()));
                        let software = adapter.kind == AdapterKind::Software;
                        let named = options.named.contains(&name);
                        if !named && (software || options.gpus == Gpus::Named) {
                            let reason = if software {
                                "a program that plays a GPU: used only when named"
                            } else {
                                "not named"
                            };
                            refused.push(Refused {
                                name,
                                reason: format!("{}: {reason}", adapter.name),
                            });
                            continue;
                        }
                        let arithmetic =
                            if options.exact { Arithmetic::Gpu } else { Arithmetic::GpuHalves };
                        let number = devices.len() as u16;
                        if options.own_memory {
                            adapter.host_import = None;
                        }
                        let own = VulkanOptions {
                            name: name.clone(),
                            domain: DomainId(number),
                            exact: options.exact,
                            cache: options.cache.clone(),
                            memory_limit: options.gpu_memory,
                            tuning: tuning(),
                            max_part: options.max_part,
                            fault: options.fault.clone(),
                        };
                        let made = trefoil_devices_vulkan::device(
                            adapter,
                            own,
                            memory.clone(),
                            clock.clone(),
                        );
                        match tested(made, judge.as_ref(), arithmetic) {
                            Ok(device) => devices.push(device),
                            Err(reason) => refused.push(Refused { name, reason }),
                        }
                    }
                    vulkan = Some(instance);
                }
                Err(error) => {
                    refused.push(Refused { name: VULKAN.to_owned(), reason: error.to_string() });
                }
            }
        }
        devices.push(judge);
        Self { devices, refused, memory, adapters, vulkan }
    }

    /// Why the device called `name` cannot be used, where that is known.
    pub fn refusal(&self, name: &str) -> Option<&str> {
        let of = |name: &str| self.refused.iter().find(|refused| refused.name == name);
        let found = of(name).or_else(|| name.starts_with("gpu").then(|| of(VULKAN))?);
        found.map(|refused| refused.reason.as_str())
    }

    /// Messages of Vulkan's validation layer so far; `None` if it is not at work.
    pub fn validation_messages(&self) -> Option<u64> {
        self.vulkan.as_ref()?.validation_messages()
    }

    /// What the planner needs to know of the devices.
    pub fn facts(&self) -> Vec<DeviceFacts> {
        let facts = self.devices.iter().map(|device| DeviceFacts {
            name: device.info().name.clone(),
            domain: device.domains()[0].id,
            only_when_named: device.info().only_when_named,
        });
        facts.collect()
    }
}

/// A device that passed its self-test, or why it is not offered.
fn tested(
    made: Result<Arc<dyn Device>, DeviceError>,
    judge: &dyn Device,
    arithmetic: Arithmetic,
) -> Result<Arc<dyn Device>, String> {
    let device = made.map_err(|error| error.to_string())?;
    self_test(device.as_ref(), judge, arithmetic).map_err(|error| error.to_string())?;
    Ok(device)
}

/// Names of GPUs: cards first, then parts of processors, programs last; else in the driver's order.
fn gpu_names(mut adapters: Vec<Adapter>) -> impl Iterator<Item = (String, Adapter)> {
    adapters.sort_by_key(|adapter| match adapter.kind {
        AdapterKind::Discrete => 0,
        AdapterKind::Integrated => 1,
        AdapterKind::Virtual | AdapterKind::Other => 2,
        AdapterKind::Software => 3,
    });
    adapters.into_iter().enumerate().map(|(index, adapter)| (format!("gpu{index}"), adapter))
}

/// Sizes of Vulkan workgroups: `TREFOIL_VULKAN_TUNING`, ten or fewer numbers, for measuring what is
/// fastest on a device; those that are missing are the usual ones.
fn tuning() -> Tuning {
    let mut tuning = Tuning::default();
    let text = std::env::var("TREFOIL_VULKAN_TUNING").unwrap_or_default();
    let Tuning { dot_rows, dot_groups, dot_threads, coop_tile, coop_groups, unpack_rows } =
        &mut tuning;
    let [a, b, c, d, e] = coop_tile;
    let fields = [dot_rows, dot_groups, dot_threads, a, b, c, d, e, coop_groups, unpack_rows];
    for (field, value) in fields.into_iter().zip(text.split(',')) {
        if let Ok(value) = value.trim().parse() {
            *field = value;
        }
    }
    tuning
}
