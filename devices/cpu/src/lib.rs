//! The machine's processor cores as a device: `cpu0`.

use std::sync::Arc;

use trefoil_devices_api::{
    Device, DeviceError, DeviceInfo, DeviceKind, MemoryManager, OpQuery, Support,
};
use trefoil_devices_host::{HostDevice, HostDeviceSpec};
use trefoil_graph::BlockType;
use trefoil_graph::ops::Op;
use trefoil_kernels::cpu::{CpuKernels, Form, Int8Support, Level, int8_support};
use trefoil_telemetry::{Clock, processor_name};

/// Makes `cpu0` with `threads` threads (0: one per physical core). `exact` computes products in f32
/// instead of rounding activations to 8 bits.
pub fn device(
    threads: usize,
    exact: bool,
    memory: MemoryManager,
    clock: Arc<dyn Clock>,
) -> Result<Arc<dyn Device>, DeviceError> {
    let form = if exact { Form::Exact } else { Form::Int8 };
    let kernels = CpuKernels::new(threads, form).map_err(|error| DeviceError::Driver {
        call: "thread::spawn",
        code: i64::from(error.raw_os_error().unwrap_or(-1)),
        text: error.to_string(),
    })?;
    let level = kernels.pool().level();
    let threads = kernels.pool().threads();
    let product = processor_name().unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    Ok(Arc::new(HostDevice::new(HostDeviceSpec {
        info: DeviceInfo {
            name: "cpu0".to_owned(),
            kind: DeviceKind::Cpu,
            uuid: format!("cpu-{}", product.replace(' ', "-")),
            product: format!("{product}, {threads} threads, {}", level_name(level)),
            driver: env!("CARGO_PKG_VERSION").to_owned(),
            kernel_set: if exact { "1-f32" } else { "1-int8" }.to_owned(),
            only_when_named: false,
        },
        kernels: Box::new(kernels),
        support: if exact { support_exact } else { support_int8 },
        memory,
        clock,
    })))
}

fn level_name(level: Level) -> String {
    format!("{level:?}").to_lowercase()
}

fn support_exact(_: &OpQuery<'_>) -> Support {
    Support::Native
}

/// Formats without an integer kernel go through f32.
fn support_int8(query: &OpQuery<'_>) -> Support {
    let op = &query.graph.node(query.node).op;
    let by_f32 =
        |block: BlockType| !block.is_float() && !matches!(int8_support(block), Int8Support::Native);
    match op {
        Op::Linear(linear) if by_f32(linear.weight.block) => {
            Support::Slow(format!("{} is decoded to f32", linear.weight.block))
        }
        _ => Support::Native,
    }
}
