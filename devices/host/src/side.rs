//! What devices whose memory is the host's do alike.

use trefoil_devices_api::{
    AllocRequest, Buffer, Completion, DeviceError, DomainId, DomainInfo, Dropped, Limits, Link,
    LostReason, MemoryManager, Sample, Submission, SubmissionId, WorkQueue,
};
use trefoil_telemetry::host_memory;

/// Host memory and one in-order queue.
#[derive(Debug)]
pub struct HostSide {
    name: String,
    domains: [DomainInfo; 1],
    limits: Limits,
    memory: MemoryManager,
    queue: WorkQueue,
}

impl HostSide {
    /// For the device called `name`, with its queue.
    pub fn new(name: &str, memory: MemoryManager, queue: WorkQueue) -> Self {
        let size = host_memory().total;
        Self {
            name: name.to_owned(),
            domains: [DomainInfo { id: DomainId::HOST, size, alignment: 64, host_visible: true }],
            limits: Limits {
                queues: 1,
                load_queue: None,
                submission: None,
                buffer: None,
                largest: 0,
            },
            memory,
            queue,
        }
    }

    /// Budgets.
    pub fn memory(&self) -> &MemoryManager {
        &self.memory
    }

    /// As [`trefoil_devices_api::Device::domains`].
    pub fn domains(&self) -> &[DomainInfo] {
        &self.domains
    }

    /// As [`trefoil_devices_api::Device::link`].
    pub fn link(&self, from: DomainId, to: DomainId) -> Link {
        if from == DomainId::HOST && to == DomainId::HOST { Link::Native } else { Link::Never }
    }

    /// As [`trefoil_devices_api::Device::limits`].
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// As [`trefoil_devices_api::Device::alloc`].
    ///
    /// # Errors
    /// Another domain than the host's, or a budget that is used up.
    pub fn alloc(&self, request: AllocRequest) -> Result<Buffer, DeviceError> {
        if request.domain != DomainId::HOST {
            return Err(DeviceError::BadRequest {
                what: format!("memory for {}", self.name),
                expected: DomainId::HOST.to_string(),
                got: request.domain.to_string(),
            });
        }
        self.memory.host_buffer(request.bytes, request.purpose.holder())
    }

    /// As [`trefoil_devices_api::Device::import`].
    ///
    /// # Errors
    /// A buffer that is not the host's.
    pub fn import(&self, foreign: &Buffer) -> Result<Buffer, DeviceError> {
        foreign.read().map(|_| foreign.clone())
    }

    /// As [`trefoil_devices_api::Device::submit`].
    ///
    /// # Errors
    /// A queue that is not there, full, or dead.
    pub fn submit(&self, queue: usize, work: Submission) -> Result<SubmissionId, DeviceError> {
        self.queue.submit(queue, work)
    }

    /// As [`trefoil_devices_api::Device::drain`].
    pub fn drain(&self, out: &mut Vec<Completion>) -> Dropped {
        self.queue.drain(out)
    }

    /// As [`trefoil_devices_api::Device::sample`].
    pub fn sample(&self) -> Sample {
        let (busy, free) = (self.queue.load(), host_memory().available);
        Sample { busy, busy_time: Some(self.queue.busy()), free, ..Sample::default() }
    }

    /// As [`trefoil_devices_api::Device::reset`].
    ///
    /// # Errors
    /// A queue whose thread ended.
    pub fn reset(&self) -> Result<(), DeviceError> {
        if self.queue.is_alive() {
            return Ok(());
        }
        Err(DeviceError::Lost { reason: LostReason::Panicked, epoch: 0 })
    }
}
