//! Bytes into and out of buffers wherever they are.

use std::sync::Arc;

use trefoil_devices_api::{
    Backing, Buffer, BufferRef, Device, DeviceError, Failure, Point, Points, Submission, Timeline,
    Work,
};

/// A copy that did not happen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CopyError {
    /// It was refused.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// It failed.
    #[error("{0}")]
    Failed(Arc<Failure>),
}

/// Writes `bytes` to the start of `buffer`; `device` addresses it. Waits.
pub fn write_buffer(device: &dyn Device, buffer: &Buffer, bytes: &[u8]) -> Result<(), CopyError> {
    if let Backing::Host(_) = buffer.backing() {
        buffer.write()?[..bytes.len()].copy_from_slice(bytes);
        return Ok(());
    }
    let host = Buffer::host(bytes.len());
    host.write()?.copy_from_slice(bytes);
    copy(device, host.whole(), buffer.view(0..bytes.len())?)
}

/// The first `len` bytes of `buffer`; `device` addresses it. Waits.
pub fn read_buffer(device: &dyn Device, buffer: &Buffer, len: usize) -> Result<Vec<u8>, CopyError> {
    if let Backing::Host(_) = buffer.backing() {
        return Ok(buffer.read()?[..len].to_vec());
    }
    let host = Buffer::host(len);
    copy(device, buffer.view(0..len)?, host.whole())?;
    let bytes = host.read()?.to_vec();
    Ok(bytes)
}

fn copy(device: &dyn Device, from: BufferRef, to: BufferRef) -> Result<(), CopyError> {
    let timeline: Arc<Timeline> = Arc::default();
    let signals = Points::from_iter([Point { timeline: timeline.clone(), value: 1 }]);
    let work = Work::Copy { from, to };
    device.submit(0, Submission { waits: Points::new(), signals, work, label: "copy".into() })?;
    timeline.wait(1).map_err(CopyError::Failed)
}
