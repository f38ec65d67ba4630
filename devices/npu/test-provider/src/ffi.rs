//! Structs of the plugin interface that bindings do not have, and calls as results.

use std::ffi::{CStr, CString, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

use ort_sys::{
    OrtApi, OrtApiBase, OrtErrorCode, OrtGraph, OrtHardwareDevice, OrtHardwareDeviceType,
    OrtKernelContext, OrtKeyValuePairs, OrtLogger, OrtNode, OrtSessionOptions, OrtStatusPtr,
};

/// Version of the interface that this provider was written for.
pub(crate) const VERSION: u32 = 23;

/// Something that ONNX Runtime owns and that is only handed on.
#[repr(C)]
pub struct Opaque([u8; 0]);

/// A function that this provider does not have.
pub(crate) type Missing = Option<unsafe extern "system" fn()>;

/// Makes providers.
#[repr(C)]
#[allow(missing_docs)] // the interface's own names
pub struct OrtEpFactory {
    pub version: u32,
    pub get_name: unsafe extern "system" fn(*const Self) -> *const c_char,
    pub get_vendor: unsafe extern "system" fn(*const Self) -> *const c_char,
    pub get_supported_devices: unsafe extern "system" fn(
        *mut Self,
        *const *const OrtHardwareDevice,
        usize,
        *mut *mut Opaque,
        usize,
        *mut usize,
    ) -> OrtStatusPtr,
    pub create_ep: unsafe extern "system" fn(
        *mut Self,
        *const *const OrtHardwareDevice,
        *const *const OrtKeyValuePairs,
        usize,
        *const OrtSessionOptions,
        *const OrtLogger,
        *mut *mut OrtEp,
    ) -> OrtStatusPtr,
    pub release_ep: unsafe extern "system" fn(*mut Self, *mut OrtEp),
    pub get_vendor_id: unsafe extern "system" fn(*const Self) -> u32,
    pub get_version: unsafe extern "system" fn(*const Self) -> *const c_char,
    pub validate_compatibility: Missing,
    pub create_allocator: unsafe extern "system" fn(
        *mut Self,
        *const c_void,
        *const OrtKeyValuePairs,
        *mut *mut Opaque,
    ) -> OrtStatusPtr,
    pub release_allocator: unsafe extern "system" fn(*mut Self, *mut Opaque),
    pub create_data_transfer:
        unsafe extern "system" fn(*mut Self, *mut *mut Opaque) -> OrtStatusPtr,
    pub is_stream_aware: unsafe extern "system" fn(*const Self) -> bool,
    pub create_sync_stream: Missing,
}

/// A provider in one session.
#[repr(C)]
#[allow(missing_docs)] // the interface's own names
pub struct OrtEp {
    pub version: u32,
    pub get_name: unsafe extern "system" fn(*const Self) -> *const c_char,
    pub get_capability:
        unsafe extern "system" fn(*mut Self, *const OrtGraph, *mut Opaque) -> OrtStatusPtr,
    pub compile: unsafe extern "system" fn(
        *mut Self,
        *const *const OrtGraph,
        *const *const OrtNode,
        usize,
        *mut *mut OrtNodeComputeInfo,
        *mut *mut OrtNode,
    ) -> OrtStatusPtr,
    pub release_infos: unsafe extern "system" fn(*mut Self, *mut *mut OrtNodeComputeInfo, usize),
    pub get_layout: Missing,
    pub should_convert_layout: Missing,
    pub set_dynamic_options: Missing,
    pub on_run_start: Missing,
    pub on_run_end: Missing,
    pub create_allocator: Missing,
    pub create_sync_stream: Missing,
    pub get_compatibility: Missing,
}

/// What runs in the place of compiled nodes.
#[repr(C)]
#[allow(missing_docs)] // the interface's own names
pub struct OrtNodeComputeInfo {
    pub version: u32,
    pub create_state:
        unsafe extern "system" fn(*mut Self, *mut Opaque, *mut *mut c_void) -> OrtStatusPtr,
    pub compute:
        unsafe extern "system" fn(*mut Self, *mut c_void, *mut OrtKernelContext) -> OrtStatusPtr,
    pub release_state: unsafe extern "system" fn(*mut Self, *mut c_void),
}

/// How claimed nodes become one.
#[repr(C)]
pub(crate) struct FusionOptions {
    pub(crate) version: u32,
    /// Weights are copied, so that the session need not keep them.
    pub(crate) drop_constants: bool,
}

/// ONNX Runtime's functions for providers: those that are called, at their places.
#[repr(C)]
pub(crate) struct EpApi {
    pub(crate) create_ep_device: unsafe extern "system" fn(
        *mut OrtEpFactory,
        *const OrtHardwareDevice,
        *const OrtKeyValuePairs,
        *const OrtKeyValuePairs,
        *mut *mut Opaque,
    ) -> OrtStatusPtr,
    release_ep_device: Missing,
    pub(crate) add_nodes_to_fuse: unsafe extern "system" fn(
        *mut Opaque,
        *const *const OrtNode,
        usize,
        *const FusionOptions,
    ) -> OrtStatusPtr,
    /// From nodes that run alone to ids of streams.
    others: [Missing; 13],
    /// Since version 24.
    pub(crate) create_hardware_device: unsafe extern "system" fn(
        OrtHardwareDeviceType,
        u32,
        u32,
        *const c_char,
        *const OrtKeyValuePairs,
        *mut *mut OrtHardwareDevice,
    ) -> OrtStatusPtr,
}

/// ONNX Runtime, as long as this library is loaded.
#[derive(Clone, Copy)]
pub(crate) struct Api {
    pub(crate) ort: &'static OrtApi,
    pub(crate) ep: &'static EpApi,
    /// Second part of ONNX Runtime's version, 31 for 1.31.
    pub(crate) minor: u32,
}

impl Api {
    /// The interface of the library behind `base`; `None` where that is older than this provider.
    ///
    /// # Safety
    /// `base` is ONNX Runtime's own, and stays as long as this library does.
    pub(crate) unsafe fn of(base: *const OrtApiBase) -> Option<Self> {
        // SAFETY: the caller's promise.
        let base = unsafe { base.as_ref() }?;
        // SAFETY: takes a number; gives null for a version that is not known.
        let ort = unsafe { (base.GetApi)(VERSION) };
        // SAFETY: null, or a struct that lives as long as the library.
        let ort = unsafe { ort.as_ref() }?;
        // SAFETY: a static text.
        let version = unsafe { CStr::from_ptr((base.GetVersionString)()) };
        let minor = version.to_str().ok()?.split('.').nth(1)?.parse().ok()?;
        // SAFETY: no arguments.
        let ep = unsafe { (ort.GetEpApi)() };
        // SAFETY: null, or a struct that lives as long as the library; the last function declared here
        // is there since version 24 and is not touched before.
        let ep = unsafe { ep.cast::<EpApi>().as_ref() }?;
        Some(Self { ort, ep, minor })
    }

    /// A call's outcome, the status freed.
    pub(crate) fn check(self, status: OrtStatusPtr) -> Result<(), String> {
        if status.0.is_null() {
            return Ok(());
        }
        // SAFETY: a status that is not null has a message.
        let message = unsafe { CStr::from_ptr((self.ort.GetErrorMessage)(status.0)) };
        let message = message.to_string_lossy().into_owned();
        // SAFETY: the status is ours and not used after this.
        unsafe { (self.ort.ReleaseStatus)(status.0) };
        Err(message)
    }

    fn status(self, message: &str) -> OrtStatusPtr {
        let message = CString::new(message.replace('\0', " ")).unwrap_or_default();
        // SAFETY: the text is copied.
        unsafe { (self.ort.CreateStatus)(OrtErrorCode::ORT_EP_FAIL, message.as_ptr()) }
    }
}

/// Runs `work` for ONNX Runtime: errors and panics become statuses.
pub(crate) fn guarded(api: Api, work: impl FnOnce() -> Result<(), String>) -> OrtStatusPtr {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(())) => OrtStatusPtr::default(),
        Ok(Err(message)) => api.status(&format!("trefoiltest: {message}")),
        Err(_) => api.status("trefoiltest: a bug of the test provider"),
    }
}

/// Calls a function of ONNX Runtime by name: `call!(api, GetDimensions(info, place, count))?`.
macro_rules! call {
    ($api:expr, $name:ident($($argument:expr),* $(,)?)) => {{
        let api: $crate::ffi::Api = $api;
        let function = api.ort.$name;
        // SAFETY: pointers come from ONNX Runtime during the call that handed them over, or point to
        // places of this function that are large enough; counts are those that it gave.
        api.check(unsafe { function($($argument),*) })
    }};
}
pub(crate) use call;
