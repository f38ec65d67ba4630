//! Memory domains, budgets, and buffers with bounds-checked views.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::MmapMut;
use parking_lot::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
use trefoil_telemetry::Bytes;

use crate::DeviceError;

/// Memory that a set of devices can address.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct DomainId(pub u16);

impl DomainId {
    /// The machine's main memory.
    pub const HOST: Self = Self(0);
}

impl fmt::Display for DomainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::HOST { f.write_str("ram") } else { write!(f, "vram{}", self.0 - 1) }
    }
}

/// What a device says of a domain that it can address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DomainInfo {
    /// Which.
    pub id: DomainId,
    /// What may be used of it, if the system tells.
    pub size: Option<Bytes>,
    /// Alignment that every buffer gets.
    pub alignment: usize,
    /// Can the host read and write it in place?
    pub host_visible: bool,
}

/// Identity of a buffer for its whole life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BufferId(pub u64);

/// Zeroed host memory on its own pages, so that a device which shares the memory can import it.
/// Pages that are never touched take no memory.
pub struct AlignedBytes {
    pages: MmapMut,
    len: usize,
}

impl AlignedBytes {
    /// `len` zero bytes; fails where the system has no room for them.
    pub fn zeroed(len: usize) -> std::io::Result<Self> {
        Ok(Self { pages: MmapMut::map_anon(len.max(1))?, len })
    }
}

impl std::ops::Deref for AlignedBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.pages[..self.len]
    }
}

impl std::ops::DerefMut for AlignedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.pages[..self.len]
    }
}

/// Where a buffer's bytes are.
#[derive(Clone)]
pub enum Backing {
    /// Host memory. The lock never blocks under a right plan: fences keep users apart.
    Host(Arc<RwLock<AlignedBytes>>),
    /// A handle that only its backend understands.
    Device(Arc<dyn Any + Send + Sync>),
}

/// A piece of a domain. Cloning gives another handle of the same bytes.
#[derive(Clone)]
pub struct Buffer {
    /// Identity.
    pub id: BufferId,
    /// Domain it lies in.
    pub domain: DomainId,
    /// Size.
    pub len: usize,
    backing: Backing,
    _reservation: Option<Arc<Reservation>>,
}

static NEXT_BUFFER: AtomicU64 = AtomicU64::new(1);

impl Buffer {
    /// A buffer over `backing`; `reservation` is held as long as any handle lives.
    pub fn new(
        domain: DomainId,
        len: usize,
        backing: Backing,
        reservation: Option<Reservation>,
    ) -> Self {
        let id = BufferId(NEXT_BUFFER.fetch_add(1, Ordering::Relaxed));
        Self { id, domain, len, backing, _reservation: reservation.map(Arc::new) }
    }

    /// Zeroed host memory without a budget, for tests and small arguments.
    pub fn host(len: usize) -> Self {
        let bytes = AlignedBytes::zeroed(len).expect("the system has memory");
        Self::new(DomainId::HOST, len, Backing::Host(Arc::new(RwLock::new(bytes))), None)
    }

    /// Where the bytes are.
    pub fn backing(&self) -> &Backing {
        &self.backing
    }

    fn bytes(&self) -> Result<&RwLock<AlignedBytes>, DeviceError> {
        match &self.backing {
            Backing::Host(bytes) => Ok(bytes),
            Backing::Device(_) => Err(DeviceError::BadRequest {
                what: format!("buffer {}", self.id.0),
                expected: "host memory".to_owned(),
                got: self.domain.to_string(),
            }),
        }
    }

    fn in_use(&self) -> DeviceError {
        DeviceError::BadRequest {
            what: format!("buffer {}", self.id.0),
            expected: "fences that keep its users apart".to_owned(),
            got: "two users at once".to_owned(),
        }
    }

    /// The bytes for reading. An error if the buffer is not host memory, or being written: that
    /// would be a plan without the fence it needs.
    pub fn read(&self) -> Result<RwLockReadGuard<'_, AlignedBytes>, DeviceError> {
        self.bytes()?.try_read().ok_or_else(|| self.in_use())
    }

    /// The bytes for writing; errors as [`Buffer::read`].
    pub fn write(&self) -> Result<RwLockWriteGuard<'_, AlignedBytes>, DeviceError> {
        self.bytes()?.try_write().ok_or_else(|| self.in_use())
    }

    /// A view of `range`, an error if it leaves the buffer.
    pub fn view(&self, range: Range<usize>) -> Result<BufferRef, DeviceError> {
        if range.start > range.end || range.end > self.len {
            return Err(DeviceError::BadRequest {
                what: format!("view of buffer {}", self.id.0),
                expected: format!("a range within 0..{}", self.len),
                got: format!("{range:?}"),
            });
        }
        Ok(BufferRef { buffer: self.clone(), range })
    }

    /// A view of the whole buffer.
    pub fn whole(&self) -> BufferRef {
        BufferRef { buffer: self.clone(), range: 0..self.len }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({}, {} bytes in {})", self.id.0, self.len, self.domain)
    }
}

/// A bounds-checked view of a buffer.
#[derive(Clone, Debug)]
pub struct BufferRef {
    /// The buffer.
    pub buffer: Buffer,
    /// Bytes of it.
    pub range: Range<usize>,
}

#[derive(Debug, Default)]
struct Domain {
    budget: u64,
    used: u64,
    holders: BTreeMap<String, u64>,
}

/// Hard budgets per domain: what is held, by whom.
#[derive(Clone, Debug, Default)]
pub struct MemoryManager {
    domains: Arc<Mutex<BTreeMap<DomainId, Domain>>>,
}

impl MemoryManager {
    /// Sets the budget of a domain (what is already held stays).
    pub fn set_budget(&self, domain: DomainId, budget: Bytes) {
        self.domains.lock().entry(domain).or_default().budget = budget.0;
    }

    /// Bytes held in a domain.
    pub fn used(&self, domain: DomainId) -> Bytes {
        Bytes(self.domains.lock().get(&domain).map_or(0, |d| d.used))
    }

    /// Bytes held in a domain, by holder.
    pub fn holders(&self, domain: DomainId) -> Vec<(String, Bytes)> {
        let domains = self.domains.lock();
        let holders = domains.get(&domain).into_iter().flat_map(|d| &d.holders);
        holders.map(|(name, bytes)| (name.clone(), Bytes(*bytes))).collect()
    }

    /// Takes `bytes` of a domain's budget for `holder`. An error names domain, need, have and who
    /// holds the rest.
    pub fn reserve(
        &self,
        domain: DomainId,
        bytes: Bytes,
        holder: &str,
    ) -> Result<Reservation, DeviceError> {
        let mut domains = self.domains.lock();
        let entry = domains.entry(domain).or_default();
        let have = entry.budget.saturating_sub(entry.used);
        if bytes.0 > have {
            let holders: Vec<String> = entry
                .holders
                .iter()
                .map(|(name, bytes)| format!("{name} {}", Bytes(*bytes)))
                .collect();
            let holders = if holders.is_empty() { "nobody".to_owned() } else { holders.join(", ") };
            return Err(DeviceError::OutOfMemory {
                domain,
                need: bytes,
                have: Bytes(have),
                holders,
            });
        }
        entry.used += bytes.0;
        *entry.holders.entry(holder.to_owned()).or_default() += bytes.0;
        let (manager, holder) = (self.clone(), holder.to_owned());
        Ok(Reservation { manager, domain, bytes: bytes.0, holder })
    }

    /// A zeroed host buffer under the host's budget.
    pub fn host_buffer(&self, len: usize, holder: &str) -> Result<Buffer, DeviceError> {
        let reservation = self.reserve(DomainId::HOST, Bytes::from(len), holder)?;
        let bytes = AlignedBytes::zeroed(len).map_err(|_| DeviceError::OutOfMemory {
            domain: DomainId::HOST,
            need: Bytes::from(len),
            have: Bytes(0),
            holders: "the system refused, other programs hold the rest".to_owned(),
        })?;
        let bytes = Arc::new(RwLock::new(bytes));
        Ok(Buffer::new(DomainId::HOST, len, Backing::Host(bytes), Some(reservation)))
    }
}

/// A part of a budget, given back when dropped.
#[derive(Debug)]
pub struct Reservation {
    manager: MemoryManager,
    domain: DomainId,
    bytes: u64,
    holder: String,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut domains = self.manager.domains.lock();
        let Some(entry) = domains.get_mut(&self.domain) else { return };
        entry.used -= self.bytes;
        if let Some(held) = entry.holders.get_mut(&self.holder) {
            *held -= self.bytes;
            if *held == 0 {
                entry.holders.remove(&self.holder);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_hard_and_given_back() {
        let manager = MemoryManager::default();
        manager.set_budget(DomainId::HOST, Bytes(1000));
        let first = manager.host_buffer(600, "kv").expect("fits");
        let error = manager.host_buffer(600, "scratch").expect_err("over budget").to_string();
        assert_eq!(error, "ram: need 600 B, have 400 B free; held by: kv 600 B");
        let copy = first.clone();
        drop(first);
        assert_eq!(manager.used(DomainId::HOST), Bytes(600), "a handle still lives");
        drop(copy);
        assert_eq!(manager.used(DomainId::HOST), Bytes(0));
        assert!(manager.holders(DomainId::HOST).is_empty());
    }

    #[test]
    fn views_stay_inside_and_two_writers_are_an_error() {
        let buffer = Buffer::host(100);
        assert!(buffer.view(90..101).is_err());
        assert!(buffer.view(90..100).is_ok());
        let writer = buffer.write().expect("free");
        assert_eq!(writer.as_ptr() as usize % 64, 0);
        assert!(buffer.read().is_err());
        assert!(buffer.write().is_err());
    }
}
