//! The one place that names backends.

mod gpus;
mod npus;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use trefoil_devices_api::{Device, DeviceError, DomainId, MemoryManager};
use trefoil_devices_npu::{NpuDevice, NpuOptions};
use trefoil_devices_vulkan::Adapter;
use trefoil_scheduler::DeviceFacts;

use crate::self_test::{Arithmetic, self_test};

pub use trefoil_devices_npu as npu;
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
    /// The NPU, where it was opened and may be used.
    pub npu: Option<Arc<NpuDevice>>,
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

/// Which NPUs to open: that loads ONNX Runtime.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Npus {
    /// The one that is named: `npu0`.
    #[default]
    Named,
    /// Any that does not only play one.
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
    /// Which NPUs to open.
    pub npus: Npus,
    /// How an NPU is set up.
    pub npu: NpuOptions,
    /// Devices that the user named, in whatever way.
    pub named: Vec<String>,
    /// Most bytes of a GPU's own memory to use.
    pub gpu_memory: Option<Bytes>,
    /// May GPUs be kept awake between pieces of work? `None`: cards with memory of their own.
    pub keep_awake: Option<bool>,
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
        let judge = trefoil_devices_ref::device(memory.clone(), clock.clone());
        let mut found = Self {
            devices: Vec::new(),
            refused: Vec::new(),
            memory,
            adapters: Vec::new(),
            npu: None,
            vulkan: None,
        };
        let (threads, exact) = (options.threads, options.exact);
        let arithmetic = if exact { Arithmetic::Exact } else { Arithmetic::Rounded };
        let made = trefoil_devices_cpu::device(threads, exact, found.memory.clone(), clock.clone());
        found.offer("cpu0", made, judge.as_ref(), arithmetic);
        let named = options.named.iter().any(|name| name.starts_with("gpu"));
        if options.gpus == Gpus::All || named {
            gpus::find(&mut found, &options, judge.as_ref(), &clock);
        }
        let named = options.named.iter().any(|name| name.starts_with(npus::PREFIX));
        if options.npus == Npus::All || named {
            npus::find(&mut found, &options, judge.as_ref(), &clock);
        }
        found.devices.push(judge);
        found
    }

    /// Adds a device that came up and passes its self-test, else the reason why it is not offered.
    fn offer(
        &mut self,
        name: &str,
        made: Result<Arc<dyn Device>, DeviceError>,
        judge: &dyn Device,
        arithmetic: Arithmetic,
    ) {
        let tested = made.map_err(|error| error.to_string()).and_then(|device| {
            let passed = self_test(device.as_ref(), judge, arithmetic);
            passed.map(|()| device).map_err(|error| error.to_string())
        });
        match tested {
            Ok(device) => self.devices.push(device),
            Err(reason) => self.refuse(name, reason),
        }
    }

    fn refuse(&mut self, name: &str, reason: String) {
        self.refused.push(Refused { name: name.to_owned(), reason });
    }

    /// Why the device called `name` cannot be used, where that is known.
    pub fn refusal(&self, name: &str) -> Option<&str> {
        let of = |name: &str| self.refused.iter().find(|refused| refused.name == name);
        let found = of(name).or_else(|| name.starts_with("gpu").then(|| of(gpus::VULKAN))?);
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
