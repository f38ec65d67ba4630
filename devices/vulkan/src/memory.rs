//! Buffers with addresses: of the device's own memory, seen by the host, or imported from it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use ash::vk;
use trefoil_devices_api::{Buffer, DeviceError, Reservation};
use trefoil_telemetry::Bytes;

use crate::context::Context;

/// Bytes past a buffer's end that kernels may read (wide loads of a last block).
pub(crate) const PADDING: u64 = 64;

/// Where a buffer's bytes are to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// In the device's own memory.
    Local,
    /// Where host and device see it, for copies to the device.
    Upload,
    /// Where the host writes it and the device reads it often: in the device's own memory if the
    /// host sees that.
    Arguments,
    /// Where host and device see it, cached by the host, for data that the host reads.
    Download,
}

/// A buffer with memory of its own.
pub(crate) struct Allocation {
    context: Arc<Context>,
    memory: vk::DeviceMemory,
    /// The buffer.
    pub(crate) buffer: vk::Buffer,
    /// Address of its first byte on the device.
    pub(crate) address: u64,
    /// Bytes asked for.
    pub(crate) len: u64,
    mapped: *mut u8,
    _reservation: Option<Reservation>,
    /// The host's buffer that an import shows.
    _shown: Option<Buffer>,
}

// SAFETY: the mapped pointer is used only through `&mut self` or by copying methods whose callers
// keep device and host apart; Vulkan handles may be used from any thread.
unsafe impl Send for Allocation {}
// SAFETY: as above: shared methods do not touch the mapped bytes without the callers' fences.
unsafe impl Sync for Allocation {}

impl std::fmt::Debug for Allocation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Allocation({} bytes at {:#x})", self.len, self.address)
    }
}

const USAGE: vk::BufferUsageFlags = vk::BufferUsageFlags::from_raw(
    vk::BufferUsageFlags::STORAGE_BUFFER.as_raw()
        | vk::BufferUsageFlags::SHADER_DEVICE_ADDRESS.as_raw()
        | vk::BufferUsageFlags::TRANSFER_SRC.as_raw()
        | vk::BufferUsageFlags::TRANSFER_DST.as_raw(),
);

/// A memory type among `allowed` that has all of `need`, and as much of `want` as there is.
fn memory_type(
    context: &Context,
    allowed: u32,
    need: vk::MemoryPropertyFlags,
    want: vk::MemoryPropertyFlags,
) -> Option<u32> {
    let types = context.memory.memory_types_as_slice().iter().enumerate();
    let fits = types.filter(|(i, t)| allowed >> i & 1 == 1 && t.property_flags.contains(need));
    // The first of the best: drivers list better types first.
    let count = |flags: vk::MemoryPropertyFlags| (flags & want).as_raw().count_ones();
    let mut best: Option<(usize, u32)> = None;
    for (i, t) in fits {
        let score = count(t.property_flags);
        if best.is_none_or(|(_, most)| score > most) {
            best = Some((i, score));
        }
    }
    best.map(|(i, _)| i as u32)
}

impl Allocation {
    /// `len` bytes of the given kind; `reservation` is given back with them.
    pub(crate) fn new(
        context: &Arc<Context>,
        len: u64,
        kind: Kind,
        reservation: Option<Reservation>,
    ) -> Result<Self, DeviceError> {
        use vk::MemoryPropertyFlags as Flag;
        let seen = Flag::HOST_VISIBLE | Flag::HOST_COHERENT;
        let (need, want) = match kind {
            Kind::Local => (Flag::empty(), Flag::DEVICE_LOCAL),
            Kind::Upload => (seen, Flag::empty()),
            Kind::Arguments => (seen, Flag::DEVICE_LOCAL),
            Kind::Download => (seen, Flag::HOST_CACHED),
        };
        let size = (len + PADDING).next_multiple_of(16);
        // The host does not touch the device's own memory, not even where it could: reading it over
        // the bus is slow.
        let map = kind != Kind::Local;
        Self::make(context, len, size, None, map, reservation, |context, allowed| {
            memory_type(context, allowed, need, want)
        })
    }

    /// The host's memory at `pointer` as a device's buffer, without a copy. `None` if the driver
    /// does not take it.
    ///
    /// # Safety
    /// `pointer` must stay valid for `len` bytes as long as the allocation lives, begin on the
    /// boundary that the adapter asks for, and `len` be a multiple of it.
    pub(crate) unsafe fn import(
        context: &Arc<Context>,
        pointer: *const u8,
        len: u64,
    ) -> Option<Self> {
        let functions = context.host_import.as_ref()?;
        let handle = vk::ExternalMemoryHandleTypeFlags::HOST_ALLOCATION_EXT;
        let mut properties = vk::MemoryHostPointerPropertiesEXT::default();
        // SAFETY: the caller vouches for the pointer.
        unsafe {
            (functions.fp().get_memory_host_pointer_properties_ext)(
                functions.device(),
                handle,
                pointer.cast(),
                &mut properties,
            )
        }
        .result()
        .ok()?;
        let types = properties.memory_type_bits;
        Self::make(context, len, len, Some(pointer), false, None, |context, allowed| {
            let none = vk::MemoryPropertyFlags::empty();
            memory_type(context, allowed & types, none, vk::MemoryPropertyFlags::DEVICE_LOCAL)
        })
        .ok()
    }

    fn make(
        context: &Arc<Context>,
        len: u64,
        size: u64,
        import: Option<*const u8>,
        map: bool,
        reservation: Option<Reservation>,
        choose: impl FnOnce(&Context, u32) -> Option<u32>,
    ) -> Result<Self, DeviceError> {
        let handle = vk::ExternalMemoryHandleTypeFlags::HOST_ALLOCATION_EXT;
        let mut external = vk::ExternalMemoryBufferCreateInfo::default().handle_types(handle);
        let mut info = vk::BufferCreateInfo::default().size(size).usage(USAGE);
        if import.is_some() {
            info = info.push_next(&mut external);
        }
        // SAFETY: `info` and what it points to outlive the call.
        let buffer = unsafe { context.raw.create_buffer(&info, None) }
            .map_err(|result| context.error("vkCreateBuffer", result))?;
        // From here on the guard frees what was made, whatever fails.
        let mut made = Self {
            context: context.clone(),
            memory: vk::DeviceMemory::null(),
            buffer,
            address: 0,
            len,
            mapped: std::ptr::null_mut(),
            _reservation: reservation,
            _shown: None,
        };
        // SAFETY: the buffer belongs to this device.
        let needs = unsafe { context.raw.get_buffer_memory_requirements(buffer) };
        let chosen = choose(context, needs.memory_type_bits)
            .ok_or_else(|| context.error("memory types", vk::Result::ERROR_FEATURE_NOT_PRESENT))?;
        let mut flags =
            vk::MemoryAllocateFlagsInfo::default().flags(vk::MemoryAllocateFlags::DEVICE_ADDRESS);
        let mut host = vk::ImportMemoryHostPointerInfoEXT::default().handle_type(handle);
        // An import takes exactly the pages it was given.
        let bytes = if import.is_some() { size } else { needs.size };
        let mut allocate = vk::MemoryAllocateInfo::default()
            .allocation_size(bytes)
            .memory_type_index(chosen)
            .push_next(&mut flags);
        if let Some(pointer) = import {
            host.p_host_pointer = pointer.cast_mut().cast();
            allocate = allocate.push_next(&mut host);
        }
        // SAFETY: `allocate` and what it points to outlive the call; an imported pointer is vouched
        // for by the caller of `import`.
        made.memory = unsafe { context.raw.allocate_memory(&allocate, None) }.map_err(
            |result| match context.error("vkAllocateMemory", result) {
                DeviceError::OutOfMemory { domain, holders, .. } => {
                    let have =
                        context.budget().map_or(0, |(all, used)| all.0.saturating_sub(used.0));
                    let (need, have) = (Bytes(bytes), Bytes(have));
                    DeviceError::OutOfMemory { domain, need, have, holders }
                }
                other => other,
            },
        )?;
        // SAFETY: buffer and memory are of this device, unbound, and the memory is large enough.
        unsafe { context.raw.bind_buffer_memory(buffer, made.memory, 0) }
            .map_err(|result| context.error("vkBindBufferMemory", result))?;
        let address = vk::BufferDeviceAddressInfo::default().buffer(buffer);
        // SAFETY: the buffer was made for addresses and is bound.
        made.address = unsafe { context.raw.get_buffer_device_address(&address) };
        if map {
            let none = vk::MemoryMapFlags::empty();
            // SAFETY: the memory was chosen to be visible to the host, and is not mapped yet.
            let pointer = unsafe { context.raw.map_memory(made.memory, 0, vk::WHOLE_SIZE, none) };
            made.mapped = pointer.map_err(|result| context.error("vkMapMemory", result))?.cast();
        }
        Ok(made)
    }

    /// The import with the buffer whose bytes it shows, which lives as long.
    pub(crate) fn holding(mut self, shown: Buffer) -> Self {
        self._shown = Some(shown);
        self
    }

    /// Can the host write it in place?
    pub(crate) fn is_mapped(&self) -> bool {
        !self.mapped.is_null()
    }

    /// Copies `bytes` to `offset`. The device must not be using that part.
    ///
    /// # Panics
    /// If it is not mapped, or the bytes do not fit.
    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) {
        assert!(self.is_mapped() && offset + bytes.len() as u64 <= self.len, "write inside");
        // SAFETY: the mapped range is `len` bytes at least and the bytes fit (checked); the callers'
        // order of submissions keeps the device away.
        unsafe {
            let to = self.mapped.add(offset as usize);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
        }
    }

    /// Sets the first word, which the device may be reading: it sees the old or the new one.
    ///
    /// # Panics
    /// If it is not mapped, or shorter than a word.
    pub(crate) fn signal(&self, word: u32) {
        assert!(self.is_mapped() && self.len >= 4, "signal inside");
        // SAFETY: the mapped range has a word (checked) and begins on a page's boundary; the host
        // reaches this word by atomic stores alone.
        unsafe { AtomicU32::from_ptr(self.mapped.cast()) }.store(word, Ordering::SeqCst);
    }

    /// Copies from `offset` to `bytes`; conditions as [`Allocation::write`].
    pub(crate) fn read(&self, offset: u64, bytes: &mut [u8]) {
        assert!(self.is_mapped() && offset + bytes.len() as u64 <= self.len, "read inside");
        // SAFETY: as in `write`.
        unsafe {
            let from = self.mapped.add(offset as usize);
            std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len());
        }
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: the worker waits for all work before anything that it used is dropped; both
        // handles are of this device (or null, which is allowed) and destroyed once.
        unsafe {
            self.context.raw.destroy_buffer(self.buffer, None);
            self.context.raw.free_memory(self.memory, None);
        }
    }
}
