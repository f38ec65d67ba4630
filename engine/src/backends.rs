//! The one place that names backends.

use std::sync::Arc;

use trefoil_devices_api::{Device, DomainId, MemoryManager};
use trefoil_scheduler::DeviceFacts;

use crate::self_test::self_test;
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
}

/// A device that did not come up.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Refused {
    /// Its name.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// How the devices are set up.
#[derive(Clone, Copy, Debug, Default)]
pub struct BackendOptions {
    /// Threads of the CPU device; 0 for one per physical core.
    pub threads: usize,
    /// Exact f32 arithmetic on the CPU device instead of 8-bit activations.
    pub exact: bool,
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
        let mut devices = Vec::new();
        let mut refused = Vec::new();
        let BackendOptions { threads, exact } = options;
        let judge = trefoil_devices_ref::device(memory.clone(), clock.clone());
        match trefoil_devices_cpu::device(threads, exact, memory.clone(), clock) {
            Ok(device) => match self_test(device.as_ref(), judge.as_ref(), !exact) {
                Ok(()) => devices.push(device),
                Err(error) => {
                    let reason = error.to_string();
                    refused.push(Refused { name: "cpu0".to_owned(), reason });
                }
            },
            Err(error) => {
                refused.push(Refused { name: "cpu0".to_owned(), reason: error.to_string() })
            }
        }
        devices.push(judge);
        Self { devices, refused, memory }
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
