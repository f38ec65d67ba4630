//! The reference interpreter as a device: `ref0`. Slow and right; used only when named.

use std::sync::Arc;

use trefoil_devices_api::{Device, DeviceInfo, DeviceKind, MemoryManager, OpQuery, Support};
use trefoil_devices_host::{HostDevice, HostDeviceSpec};
use trefoil_kernels::reference::Reference;
use trefoil_telemetry::Clock;

/// Makes `ref0`.
pub fn device(memory: MemoryManager, clock: Arc<dyn Clock>) -> Arc<dyn Device> {
    Arc::new(HostDevice::new(HostDeviceSpec {
        info: DeviceInfo {
            name: "ref0".to_owned(),
            kind: DeviceKind::Reference,
            product: "reference interpreter".to_owned(),
            uuid: "reference".to_owned(),
            driver: env!("CARGO_PKG_VERSION").to_owned(),
            kernel_set: "1".to_owned(),
            only_when_named: true,
        },
        kernels: Box::new(Reference::default()),
        support: |_: &OpQuery<'_>| Support::Native,
        memory,
        clock,
    }))
}
