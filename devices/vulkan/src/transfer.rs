//! Bytes between the host and the device's own memory, through staging buffers that both see.

use std::sync::Arc;

use ash::vk;
use parking_lot::Mutex;
use trefoil_devices_api::{DeviceError, Reservation};

use crate::context::Context;
use crate::memory::{Allocation, Kind};

/// Bytes of one staging buffer.
const STAGE: u64 = 16 << 20;
/// Boundary on which pieces begin in a staging buffer.
const GRAIN: u64 = 16;

/// A command buffer with its fence; one submission at a time.
pub(crate) struct Commands {
    context: Arc<Context>,
    pool: vk::CommandPool,
    pub(crate) buffer: vk::CommandBuffer,
    fence: vk::Fence,
}

impl Commands {
    pub(crate) fn new(context: &Arc<Context>) -> Result<Self, DeviceError> {
        let info = vk::CommandPoolCreateInfo::default()
            .queue_family_index(context.family)
            .flags(vk::CommandPoolCreateFlags::RESET_COMMAND_BUFFER);
        // SAFETY: the family is the one that the device was opened with.
        let pool = unsafe { context.raw.create_command_pool(&info, None) }
            .map_err(|result| context.error("vkCreateCommandPool", result))?;
        let mut made = Self {
            context: context.clone(),
            pool,
            buffer: vk::CommandBuffer::null(),
            fence: vk::Fence::null(),
        };
        let info =
            vk::CommandBufferAllocateInfo::default().command_pool(pool).command_buffer_count(1);
        // SAFETY: the pool was made above.
        made.buffer = unsafe { context.raw.allocate_command_buffers(&info) }
            .map_err(|result| context.error("vkAllocateCommandBuffers", result))?[0];
        // SAFETY: no preconditions.
        made.fence = unsafe { context.raw.create_fence(&vk::FenceCreateInfo::default(), None) }
            .map_err(|result| context.error("vkCreateFence", result))?;
        Ok(made)
    }

    /// Records what `record` does, from the start.
    pub(crate) fn record(
        &self,
        once: bool,
        record: impl FnOnce(&ash::Device, vk::CommandBuffer),
    ) -> Result<(), DeviceError> {
        let flags = if once {
            vk::CommandBufferUsageFlags::ONE_TIME_SUBMIT
        } else {
            vk::CommandBufferUsageFlags::empty()
        };
        let info = vk::CommandBufferBeginInfo::default().flags(flags);
        let device = &self.context.raw;
        // SAFETY: the buffer is not in flight: `run` waits.
        unsafe { device.begin_command_buffer(self.buffer, &info) }
            .map_err(|result| self.context.error("vkBeginCommandBuffer", result))?;
        record(device, self.buffer);
        // SAFETY: begun above.
        unsafe { device.end_command_buffer(self.buffer) }
            .map_err(|result| self.context.error("vkEndCommandBuffer", result))
    }

    /// Begins what was recorded, on the queue for work or on the one for copies beside it.
    /// [`Self::wait`] comes next.
    pub(crate) fn begin(&self, beside: bool) -> Result<(), DeviceError> {
        self.context.begin(self.buffer, self.fence, beside)
    }

    /// Waits for what was begun.
    pub(crate) fn wait(&self) -> Result<(), DeviceError> {
        self.context.wait(self.fence)
    }

    /// Runs what was recorded and waits until it is done.
    pub(crate) fn run(&self) -> Result<(), DeviceError> {
        self.context.run(self.buffer, self.fence)
    }
}

impl Drop for Commands {
    fn drop(&mut self) {
        // SAFETY: nothing is in flight (`run` waits); handles are of this device or null.
        unsafe {
            self.context.raw.destroy_fence(self.fence, None);
            self.context.raw.destroy_command_pool(self.pool, None);
        }
    }
}

/// Copies between host and device.
pub(crate) struct Transfers {
    context: Arc<Context>,
    stage: Mutex<Option<Stage>>,
    ring: Mutex<Option<Ring>>,
}

/// Two staging buffers: while one is copied from, the host fills the other.
struct Ring {
    slots: [Slot; 2],
    /// The slot that is being filled.
    at: usize,
    /// Bytes in it.
    filled: u64,
    /// What is to be copied from it.
    regions: Vec<(u64, u64, u64)>,
}

struct Slot {
    commands: Commands,
    up: Allocation,
    /// Is a copy from it under way?
    busy: bool,
}

impl Slot {
    fn new(context: &Arc<Context>) -> Result<Self, DeviceError> {
        let up = Allocation::new(context, STAGE, Kind::Upload, None)?;
        Ok(Self { commands: Commands::new(context)?, up, busy: false })
    }

    fn wait(&mut self) -> Result<(), DeviceError> {
        // Whatever comes of it, nothing is under way then.
        if std::mem::take(&mut self.busy) { self.commands.wait() } else { Ok(()) }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // Only after an error is something left; a lost device has nothing under way either.
        let _ = self.wait();
    }
}

impl Ring {
    fn new(context: &Arc<Context>) -> Result<Self, DeviceError> {
        let slots = [Slot::new(context)?, Slot::new(context)?];
        Ok(Self { slots, at: 0, filled: 0, regions: Vec::new() })
    }

    /// Takes bytes that are to go to `at` of the target.
    fn add(&mut self, to: &Allocation, mut at: u64, mut bytes: &[u8]) -> Result<(), DeviceError> {
        while !bytes.is_empty() {
            if self.filled == STAGE {
                self.flush(to)?;
            }
            let (piece, rest) = bytes.split_at(bytes.len().min((STAGE - self.filled) as usize));
            let slot = &mut self.slots[self.at];
            slot.wait()?;
            slot.up.write(self.filled, piece);
            let len = piece.len() as u64;
            self.regions.push((self.filled, at, len));
            self.filled = (self.filled + len).next_multiple_of(GRAIN).min(STAGE);
            (at, bytes) = (at + len, rest);
        }
        Ok(())
    }

    /// Begins the copy of what was taken so far, and goes on with the other buffer.
    fn flush(&mut self, to: &Allocation) -> Result<(), DeviceError> {
        self.filled = 0;
        let regions = std::mem::take(&mut self.regions);
        if regions.is_empty() {
            return Ok(());
        }
        let slot = &mut self.slots[self.at];
        record_copy(&slot.commands, &slot.up, to, &regions)?;
        slot.commands.begin(true)?;
        slot.busy = true;
        self.at = 1 - self.at;
        Ok(())
    }

    /// Copies what is left and waits for everything.
    fn finish(&mut self, to: &Allocation) -> Result<(), DeviceError> {
        let begun = self.flush(to);
        let waited = self.slots.each_mut().map(Slot::wait);
        begun.and(waited.into_iter().collect())
    }
}

struct Stage {
    commands: Commands,
    up: Allocation,
    down: Allocation,
}

impl std::fmt::Debug for Transfers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Transfers")
    }
}

impl Transfers {
    pub(crate) fn new(context: &Arc<Context>) -> Self {
        Self { context: context.clone(), stage: Mutex::default(), ring: Mutex::default() }
    }

    /// Memory of the device's own.
    pub(crate) fn local(
        &self,
        len: u64,
        reservation: Option<Reservation>,
    ) -> Result<Allocation, DeviceError> {
        Allocation::new(&self.context, len, Kind::Local, reservation)
    }

    fn staged<T>(
        &self,
        work: impl FnOnce(&Stage) -> Result<T, DeviceError>,
    ) -> Result<T, DeviceError> {
        let mut stage = self.stage.lock();
        if stage.is_none() {
            *stage = Some(Stage {
                commands: Commands::new(&self.context)?,
                up: Allocation::new(&self.context, STAGE, Kind::Upload, None)?,
                down: Allocation::new(&self.context, STAGE, Kind::Download, None)?,
            });
        }
        work(stage.as_ref().expect("made above"))
    }

    /// Writes `bytes` at `offset` of device memory.
    pub(crate) fn upload(
        &self,
        to: &Allocation,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), DeviceError> {
        if to.is_mapped() {
            to.write(offset, bytes);
            return Ok(());
        }
        self.staged(|stage| {
            for (i, piece) in bytes.chunks(STAGE as usize).enumerate() {
                stage.up.write(0, piece);
                let at = offset + i as u64 * STAGE;
                copy(&stage.commands, &stage.up, to, &[(0, at, piece.len() as u64)])?;
            }
            Ok(())
        })
    }

    /// Writes pieces, each with its place in device memory, while the device may be at other work: the
    /// host fills one staging buffer while the other is copied.
    pub(crate) fn upload_all<'b>(
        &self,
        to: &Allocation,
        mut pieces: impl Iterator<Item = (&'b [u8], u64)>,
    ) -> Result<(), DeviceError> {
        if to.is_mapped() {
            pieces.for_each(|(bytes, at)| to.write(at, bytes));
            return Ok(());
        }
        let mut ring = self.ring.lock();
        let ring = match &mut *ring {
            Some(ring) => ring,
            none => none.insert(Ring::new(&self.context)?),
        };
        let added = pieces.try_for_each(|(bytes, at)| ring.add(to, at, bytes));
        if added.is_err() {
            ring.regions.clear();
        }
        added.and(ring.finish(to))
    }

    /// Reads `bytes` from `offset` of device memory.
    pub(crate) fn download(
        &self,
        from: &Allocation,
        offset: u64,
        bytes: &mut [u8],
    ) -> Result<(), DeviceError> {
        if from.is_mapped() {
            from.read(offset, bytes);
            return Ok(());
        }
        self.staged(|stage| {
            for (i, piece) in bytes.chunks_mut(STAGE as usize).enumerate() {
                let at = offset + i as u64 * STAGE;
                copy(&stage.commands, from, &stage.down, &[(at, 0, piece.len() as u64)])?;
                stage.down.read(0, piece);
            }
            Ok(())
        })
    }

    /// Fills device memory with zeroes.
    pub(crate) fn zero(&self, what: &Allocation) -> Result<(), DeviceError> {
        self.staged(|stage| {
            stage.commands.record(true, |device, buffer| {
                // SAFETY: recording is under way; the buffer is as large as the range says.
                unsafe { device.cmd_fill_buffer(buffer, what.buffer, 0, vk::WHOLE_SIZE, 0) };
                written(device, buffer);
            })?;
            stage.commands.run()
        })
    }

    /// Copies within the device.
    pub(crate) fn within(
        &self,
        from: (&Allocation, u64),
        to: (&Allocation, u64),
        len: u64,
    ) -> Result<(), DeviceError> {
        self.regions(from.0, to.0, &[(from.1, to.1, len)])
    }

    /// Copies regions within the device: begin in the source, begin in the target, bytes.
    pub(crate) fn regions(
        &self,
        from: &Allocation,
        to: &Allocation,
        regions: &[(u64, u64, u64)],
    ) -> Result<(), DeviceError> {
        self.staged(|stage| copy(&stage.commands, from, to, regions))
    }
}

fn copy(
    commands: &Commands,
    from: &Allocation,
    to: &Allocation,
    regions: &[(u64, u64, u64)],
) -> Result<(), DeviceError> {
    if regions.is_empty() {
        return Ok(()); // which Vulkan does not take
    }
    record_copy(commands, from, to, regions)?;
    commands.run()
}

/// Records the copy of at least one region.
fn record_copy(
    commands: &Commands,
    from: &Allocation,
    to: &Allocation,
    regions: &[(u64, u64, u64)],
) -> Result<(), DeviceError> {
    let region = |&(from_at, to_at, len): &(u64, u64, u64)| {
        assert!(from_at + len <= from.len && to_at + len <= to.len, "copy inside");
        vk::BufferCopy::default().src_offset(from_at).dst_offset(to_at).size(len)
    };
    let regions: Vec<vk::BufferCopy> = regions.iter().map(region).collect();
    commands.record(true, |device, buffer| {
        // SAFETY: recording is under way; all ranges are inside their buffers (checked above).
        unsafe { device.cmd_copy_buffer(buffer, from.buffer, to.buffer, &regions) };
        written(device, buffer);
    })
}

/// What was copied becomes visible to the host and to kernels.
fn written(device: &ash::Device, buffer: vk::CommandBuffer) {
    let barrier = [vk::MemoryBarrier::default()
        .src_access_mask(vk::AccessFlags::TRANSFER_WRITE)
        .dst_access_mask(vk::AccessFlags::HOST_READ | vk::AccessFlags::SHADER_READ)];
    // SAFETY: recording is under way.
    unsafe {
        device.cmd_pipeline_barrier(
            buffer,
            vk::PipelineStageFlags::TRANSFER,
            vk::PipelineStageFlags::HOST | vk::PipelineStageFlags::COMPUTE_SHADER,
            vk::DependencyFlags::empty(),
            &barrier,
            &[],
            &[],
        );
    }
}
