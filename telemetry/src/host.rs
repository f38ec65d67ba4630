//! Facts about the machine itself. What the system does not tell is `None`.

use crate::Bytes;

/// Main memory of the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostMemory {
    /// All of it.
    pub total: Option<Bytes>,
    /// What programs can still take without swapping.
    pub available: Option<Bytes>,
}

/// Reads the machine's memory now.
pub fn host_memory() -> HostMemory {
    platform::memory()
}

/// Name of the processor.
pub fn processor_name() -> Option<String> {
    platform::processor()
}

/// Resident memory of this process.
pub fn resident_memory() -> Option<Bytes> {
    platform::resident()
}

#[cfg(target_os = "linux")]
mod platform {
    use super::HostMemory;
    use crate::Bytes;

    fn field(text: &str, name: &str) -> Option<Bytes> {
        let line = text.lines().find(|line| line.starts_with(name))?;
        let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
        Some(Bytes(kib * 1024))
    }

    pub(super) fn memory() -> HostMemory {
        let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        HostMemory { total: field(&text, "MemTotal:"), available: field(&text, "MemAvailable:") }
    }

    pub(super) fn processor() -> Option<String> {
        let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
        let line = text.lines().find(|line| line.starts_with("model name"))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    }

    pub(super) fn resident() -> Option<Bytes> {
        field(&std::fs::read_to_string("/proc/self/status").ok()?, "VmRSS:")
    }
}

#[cfg(not(target_os = "linux"))]
mod platform {
    use super::HostMemory;
    use crate::Bytes;

    pub(super) fn memory() -> HostMemory {
        HostMemory::default()
    }

    pub(super) fn processor() -> Option<String> {
        None
    }

    pub(super) fn resident() -> Option<Bytes> {
        None
    }
}
