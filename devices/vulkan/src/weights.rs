//! Which weights are where the device reads them.

use std::ops::Range;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use trefoil_devices_api::{DeviceError, MemoryManager};
use trefoil_graph::{Storage, Weight};
use trefoil_telemetry::Bytes;

use crate::context::Context;
use crate::memory::Allocation;
use crate::transfer::Transfers;

/// Boundary on which every weight begins in the device's own memory.
const ALIGNMENT: u64 = 64;
/// Boundary that kernels rely on.
const NEEDED: usize = 16;
/// Pieces of a file that are imported or uploaded at a time are at most this large.
const MOST: u64 = 1 << 30;

/// Some weights of one storage in one buffer: the file's pages, or a copy of them.
#[derive(Debug)]
pub(crate) struct Extent {
    storage: Arc<Storage>,
    allocation: Allocation,
    /// Bytes of the storage, and where their first one is in the buffer. Sorted.
    ranges: Vec<(Range<usize>, u64)>,
}

impl Extent {
    /// Address of a weight, if it is here.
    fn address(&self, storage: &Arc<Storage>, range: &Range<usize>) -> Option<u64> {
        if !Arc::ptr_eq(&self.storage, storage) {
            return None;
        }
        let after = self.ranges.partition_point(|(known, _)| known.start <= range.start);
        let (known, at) = self.ranges.get(after.checked_sub(1)?)?;
        let inside = range.end <= known.end;
        inside.then(|| self.allocation.address + at + (range.start - known.start) as u64)
    }
}

/// All weights of a device. Extents live as long as a program uses them.
#[derive(Debug, Default)]
pub(crate) struct Residency {
    extents: Mutex<Vec<Weak<Extent>>>,
}

/// Addresses of weights, and what keeps them valid.
#[derive(Debug, Default)]
pub(crate) struct Resident {
    pub(crate) addresses: Vec<u64>,
    _extents: Vec<Arc<Extent>>,
}

impl Residency {
    /// Makes all of `weights` readable by the device. On shared memory the file's own pages are
    /// imported; what cannot be is copied.
    pub(crate) fn resident(
        &self,
        context: &Arc<Context>,
        memory: &MemoryManager,
        transfers: &Transfers,
        weights: &[Weight],
    ) -> Result<Resident, DeviceError> {
        let mut kept = self.extents.lock();
        kept.retain(|extent| extent.strong_count() > 0);
        let mut extents: Vec<Arc<Extent>> = kept.iter().filter_map(Weak::upgrade).collect();
        let find = |extents: &[Arc<Extent>], weight: &Weight| {
            let range = range_of(weight);
            let found = extents.iter().enumerate();
            let mut found = found.filter_map(|(i, extent)| {
                extent.address(weight.storage(), &range).map(|address| (i, address))
            });
            found.next()
        };
        let mut missing: Vec<&Weight> =
            weights.iter().filter(|weight| find(&extents, weight).is_none()).collect();
        missing.sort_by_key(|weight| (Arc::as_ptr(weight.storage()), weight.offset()));
        missing.dedup_by_key(|weight| (Arc::as_ptr(weight.storage()), range_of(weight)));
        for group in groups(&missing, MOST.min(context.adapter.max_buffer / 2)) {
            let extent = match import(context, group) {
                Some(extent) => extent,
                None => upload(context, memory, transfers, group)?,
            };
            let extent = Arc::new(extent);
            kept.push(Arc::downgrade(&extent));
            extents.push(extent);
        }
        let mut used = vec![false; extents.len()];
        let mut addresses = Vec::with_capacity(weights.len());
        for weight in weights {
            let (extent, address) = find(&extents, weight).expect("made above");
            used[extent] = true;
            addresses.push(address);
        }
        let mut used = used.into_iter();
        extents.retain(|_| used.next().unwrap_or(false));
        Ok(Resident { addresses, _extents: extents })
    }
}

/// Weights that are copied to a buffer before each run of their program.
#[derive(Debug)]
pub(crate) struct Stream {
    stage: Arc<Allocation>,
    /// Storage, bytes of it, and where they begin in the buffer.
    pieces: Vec<(Arc<Storage>, Range<usize>, u64)>,
}

impl Stream {
    /// Lays weights out in a buffer; their addresses, in their order.
    ///
    /// # Errors
    /// A buffer without room for them.
    pub(crate) fn new(
        stage: Arc<Allocation>,
        weights: &[Weight],
    ) -> Result<(Self, Resident), DeviceError> {
        let mut sorted: Vec<&Weight> = weights.iter().collect();
        sorted.sort_by_key(|weight| (Arc::as_ptr(weight.storage()), weight.offset()));
        let mut pieces: Vec<(Arc<Storage>, Range<usize>, u64)> = Vec::new();
        let mut size = 0u64;
        for weight in sorted {
            let range = range_of(weight);
            // What follows without a gap (rows of a matrix that was cut) goes on where it is.
            if let Some((storage, last, at)) = pieces.last_mut()
                && Arc::ptr_eq(storage, weight.storage())
                && range.start <= last.end
                && (range.start - last.start).is_multiple_of(NEEDED)
            {
                last.end = last.end.max(range.end);
                size = *at + last.len() as u64;
                continue;
            }
            let at = size.next_multiple_of(ALIGNMENT);
            size = at + range.len() as u64;
            pieces.push((weight.storage().clone(), range, at));
        }
        if size > stage.len {
            return Err(DeviceError::BadRequest {
                what: "buffer for streamed weights".to_owned(),
                expected: format!("at least {size} bytes"),
                got: stage.len.to_string(),
            });
        }
        let address = |weight: &Weight| {
            let range = range_of(weight);
            let mut pieces = pieces.iter();
            let found = pieces.find(|(storage, bytes, _)| {
                let inside = bytes.start <= range.start && range.end <= bytes.end;
                inside && Arc::ptr_eq(storage, weight.storage())
            });
            let (_, bytes, at) = found.expect("laid out above");
            stage.address + at + (range.start - bytes.start) as u64
        };
        let addresses = weights.iter().map(address).collect();
        let resident = Resident { addresses, _extents: Vec::new() };
        Ok((Self { stage, pieces }, resident))
    }

    /// Bytes of the copy.
    pub(crate) fn bytes(&self) -> u64 {
        self.pieces.iter().map(|(_, range, _)| range.len() as u64).sum()
    }

    /// Copies the weights to the buffer.
    pub(crate) fn load(&self, transfers: &Transfers) -> Result<(), DeviceError> {
        let pieces = self.pieces.iter();
        let pieces = pieces.map(|(storage, range, at)| (&storage.bytes()[range.clone()], *at));
        transfers.upload_all(&self.stage, pieces)
    }
}

fn range_of(weight: &Weight) -> Range<usize> {
    weight.offset()..weight.offset() + weight.len_bytes()
}

/// Cuts sorted weights into groups of one storage and of at most `most` bytes (a larger weight is a
/// group of its own).
fn groups<'a, 'w>(weights: &'a [&'w Weight], most: u64) -> impl Iterator<Item = &'a [&'w Weight]> {
    let mut rest = weights;
    std::iter::from_fn(move || {
        let first = rest.first()?;
        let start = first.offset();
        let end = rest.iter().position(|weight| {
            let other = !Arc::ptr_eq(weight.storage(), first.storage());
            other || (range_of(weight).end - start) as u64 > most
        });
        let (group, later) = rest.split_at(end.unwrap_or(rest.len()).max(1));
        rest = later;
        Some(group)
    })
}

/// The pages that hold a group of weights, as a buffer.
fn import(context: &Arc<Context>, group: &[&Weight]) -> Option<Extent> {
    let boundary = context.adapter.host_import? as usize;
    if !context.adapter.shares_memory() {
        return None;
    }
    let storage = group[0].storage();
    // Values made at run time are small and lie between other things of the heap.
    if matches!(**storage, Storage::Owned(_)) {
        return None;
    }
    let base = storage.bytes().as_ptr() as usize;
    if group.iter().any(|weight| !(base + weight.offset()).is_multiple_of(NEEDED)) {
        return None;
    }
    let first = base + group[0].offset();
    let last = group.iter().map(|weight| base + range_of(weight).end).max()?;
    let start = first / boundary * boundary;
    let len = (last - start).next_multiple_of(boundary);
    // Kernels may read a little past the last weight; past the last page is nothing.
    if start + len < last + NEEDED {
        return None;
    }
    // SAFETY: the pages of a live mapping or of the program itself, whole; `boundary` is a power of
    // two no smaller than a page where it matters, and the extent keeps the storage.
    let allocation = unsafe { Allocation::import(context, start as *const u8, len as u64) }?;
    let ranges = vec![(group[0].offset()..last - base, (first - start) as u64)];
    Some(Extent { storage: storage.clone(), allocation, ranges })
}

/// A copy of a group of weights in the device's memory, each on its own boundary.
fn upload(
    context: &Arc<Context>,
    memory: &MemoryManager,
    transfers: &Transfers,
    group: &[&Weight],
) -> Result<Extent, DeviceError> {
    let mut ranges: Vec<(Range<usize>, u64)> = Vec::with_capacity(group.len());
    let mut size = 0u64;
    for weight in group {
        let range = range_of(weight);
        ranges.push((range.clone(), size));
        size = (size + range.len() as u64).next_multiple_of(ALIGNMENT);
    }
    let reservation = memory.reserve(context.domain, Bytes(size), "weights")?;
    let allocation = transfers.local(size, Some(reservation))?;
    let storage = group[0].storage();
    for (range, at) in &ranges {
        transfers.upload(&allocation, *at, &storage.bytes()[range.clone()])?;
    }
    Ok(Extent { storage: storage.clone(), allocation, ranges })
}
