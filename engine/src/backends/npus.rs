//! The NPU: whether it is opened, and how it is held against the judge.

use std::sync::Arc;

use trefoil_devices_api::Device;
use trefoil_devices_npu::{NpuDevice, NumericForm};
use trefoil_telemetry::Clock;

use super::{BackendOptions, Backends};
use crate::self_test::Arithmetic;

/// What names of NPUs begin with.
pub(super) const PREFIX: &str = "npu";
/// The one NPU.
const NAME: &str = "npu0";

/// Adds the NPU that the options ask for, or says why there is none.
pub(super) fn find(
    found: &mut Backends,
    options: &BackendOptions,
    judge: &dyn Device,
    clock: &Arc<dyn Clock>,
) {
    let opened = NpuDevice::open(NAME, &options.npu, found.memory.clone(), clock.clone());
    let device = match opened {
        Ok(device) => Arc::new(device),
        Err(error) => return found.refuse(NAME, error.to_string()),
    };
    let named = options.named.iter().any(|name| name == NAME);
    if device.info().only_when_named && !named {
        let product = &device.info().product;
        return found.refuse(NAME, format!("{product}: used only when named"));
    }
    let arithmetic = arithmetic(&device);
    let before = found.devices.len();
    found.offer(NAME, Ok(device.clone()), judge, arithmetic);
    found.npu = (found.devices.len() > before).then_some(device);
}

/// What its results may differ by. Real NPUs compute models of f32 in halves or bf16.
fn arithmetic(device: &NpuDevice) -> Arithmetic {
    match device.form() {
        NumericForm::F32 if device.info().only_when_named => Arithmetic::Npu,
        NumericForm::F32 | NumericForm::F16 => Arithmetic::NpuHalves,
        NumericForm::Codes => Arithmetic::NpuCodes,
        NumericForm::Int4 => Arithmetic::NpuInt4,
    }
}
