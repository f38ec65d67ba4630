//! The factory: it shows a device of type NPU, and makes a provider for each session that names it.

use std::ffi::{c_char, c_void};
use std::ptr;

use ort_sys::{
    OrtHardwareDevice, OrtHardwareDeviceType, OrtKeyValuePairs, OrtLogger, OrtSessionOptions,
    OrtStatusPtr,
};

use crate::faults::{Faults, Place, entry};
use crate::ffi::{Api, Opaque, OrtEp, OrtEpFactory, VERSION, guarded};
use crate::provider::{NAME_TEXT, Provider};

/// PCI vendor and device that the NPU says it is.
const VENDOR: (u32, u32) = (0x1022, 0x17f0);
/// Version of ONNX Runtime from which providers can make devices.
const MAKES_DEVICES: u32 = 24;

/// A factory with what it needs; ONNX Runtime sees its first part.
#[repr(C)]
pub(crate) struct Factory {
    interface: OrtEpFactory,
    api: Api,
}

impl Factory {
    pub(crate) fn new(api: Api) -> Self {
        let interface = OrtEpFactory {
            version: VERSION,
            get_name,
            get_vendor,
            get_supported_devices,
            create_ep,
            release_ep,
            get_vendor_id,
            get_version,
            validate_compatibility: None,
            create_allocator,
            release_allocator,
            create_data_transfer,
            is_stream_aware,
            create_sync_stream: None,
        };
        Self { interface, api }
    }
}

/// The interface of the factory that ONNX Runtime hands over.
fn api_of(factory: *const OrtEpFactory) -> Api {
    // SAFETY: ONNX Runtime hands over factories that this library made, each the first part of one.
    unsafe { (*factory.cast::<Factory>()).api }
}

unsafe extern "system" fn get_name(_: *const OrtEpFactory) -> *const c_char {
    NAME_TEXT.as_ptr()
}

unsafe extern "system" fn get_vendor(_: *const OrtEpFactory) -> *const c_char {
    c"trefoil".as_ptr()
}

unsafe extern "system" fn get_vendor_id(_: *const OrtEpFactory) -> u32 {
    VENDOR.0
}

unsafe extern "system" fn get_version(_: *const OrtEpFactory) -> *const c_char {
    c"1.0.0".as_ptr()
}

unsafe extern "system" fn is_stream_aware(_: *const OrtEpFactory) -> bool {
    false
}

/// No transfers are needed: all memory is the host's.
unsafe extern "system" fn create_data_transfer(
    _: *mut OrtEpFactory,
    out: *mut *mut Opaque,
) -> OrtStatusPtr {
    // SAFETY: a place for the result, by the interface.
    unsafe { *out = ptr::null_mut() };
    OrtStatusPtr::default()
}

/// The host's own allocator will do.
unsafe extern "system" fn create_allocator(
    _: *mut OrtEpFactory,
    _: *const c_void,
    _: *const OrtKeyValuePairs,
    out: *mut *mut Opaque,
) -> OrtStatusPtr {
    // SAFETY: a place for the result, by the interface.
    unsafe { *out = ptr::null_mut() };
    OrtStatusPtr::default()
}

unsafe extern "system" fn release_allocator(_: *mut OrtEpFactory, _: *mut Opaque) {}

unsafe extern "system" fn get_supported_devices(
    factory: *mut OrtEpFactory,
    devices: *const *const OrtHardwareDevice,
    count: usize,
    out: *mut *mut Opaque,
    room: usize,
    made: *mut usize,
) -> OrtStatusPtr {
    let api = api_of(factory);
    guarded(api, || {
        // SAFETY: a place for the count, by the interface.
        unsafe { *made = 0 };
        if room == 0 {
            return Ok(());
        }
        let device = if api.minor >= MAKES_DEVICES {
            new_device(api)?
        } else if count > 0 {
            // Older versions have no devices but those that they found: the first stands in.
            // SAFETY: there are `count` of them.
            unsafe { *devices }
        } else {
            return Ok(());
        };
        let mut ep_device = ptr::null_mut();
        let (none, create) = (ptr::null(), api.ep.create_ep_device);
        // SAFETY: the factory and the device are known to ONNX Runtime; metadata may be left out.
        api.check(unsafe { create(factory, device, none, none, &mut ep_device) })?;
        // SAFETY: there is room for at least one.
        unsafe { *out = ep_device };
        // SAFETY: as at the beginning.
        unsafe { *made = 1 };
        Ok(())
    })
}

fn new_device(api: Api) -> Result<*const OrtHardwareDevice, String> {
    let mut device = ptr::null_mut();
    let (kind, vendor) = (OrtHardwareDeviceType::OrtHardwareDeviceType_NPU, c"trefoil");
    let create = api.ep.create_hardware_device;
    // SAFETY: this version of ONNX Runtime has the function; the text is copied.
    let status =
        unsafe { create(kind, VENDOR.0, VENDOR.1, vendor.as_ptr(), ptr::null(), &mut device) };
    api.check(status)?;
    // It stays as long as the process: ONNX Runtime keeps pointers to it.
    Ok(device)
}

unsafe extern "system" fn create_ep(
    factory: *mut OrtEpFactory,
    _devices: *const *const OrtHardwareDevice,
    _metadata: *const *const OrtKeyValuePairs,
    _count: usize,
    options: *const OrtSessionOptions,
    _logger: *const OrtLogger,
    out: *mut *mut OrtEp,
) -> OrtStatusPtr {
    let api = api_of(factory);
    guarded(api, || {
        let faults = Faults::read(api, options)?;
        faults.at(Place::Create, 0)?;
        let writes_context = entry(api, options, "ep.context_enable")?.as_deref() == Some("1");
        let provider = Box::into_raw(Box::new(Provider::new(api, faults, writes_context)));
        // SAFETY: a place for the result, by the interface.
        unsafe { *out = provider.cast() };
        Ok(())
    })
}

unsafe extern "system" fn release_ep(_: *mut OrtEpFactory, ep: *mut OrtEp) {
    // SAFETY: it came from `create_ep`, and is given back once.
    drop(unsafe { Box::from_raw(ep.cast::<Provider>()) });
}
