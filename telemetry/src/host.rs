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

/// Name, version and processor family of the operating system: `Linux 6.12.0 x86_64 (Debian …)`.
pub fn os_version() -> String {
    let (os, family) = (std::env::consts::OS, std::env::consts::ARCH);
    let (release, name) = platform::os();
    let parts = [Some(os.to_owned()), release, Some(family.to_owned())];
    let parts = parts.into_iter().chain([name.map(|name| format!("({name})"))]).flatten();
    parts.collect::<Vec<_>>().join(" ")
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

    /// Release of the kernel, and name of the distribution.
    pub(super) fn os() -> (Option<String>, Option<String>) {
        let read = |path: &str| std::fs::read_to_string(path).ok();
        let release = read("/proc/sys/kernel/osrelease").map(|text| text.trim().to_owned());
        let names = read("/etc/os-release").unwrap_or_default();
        let name = names.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
        (release, name.map(|name| name.trim_matches('"').to_owned()))
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

    pub(super) fn os() -> (Option<String>, Option<String>) {
        (None, None)
    }

    pub(super) fn resident() -> Option<Bytes> {
        None
    }
}
