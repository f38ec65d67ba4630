//! An execution provider of ONNX Runtime that plays an NPU, for tests on machines without one.
//!
//! It is a plugin library: `register_ep_library(NAME, path)` makes it known, and a device of type NPU
//! appears. It behaves as such devices do: it takes only static shapes and a list of ops
//! ([`program::OPS`]), compiles ahead, copies the weights, and writes what it compiled into an
//! `EPContext` model. It computes in plain loops. Session options make it fail in the ways that drivers
//! do; see [`faults`].
//!
//! The structs that ONNX Runtime and a provider exchange are declared in [`ffi`]; they are those of
//! version 1.23 of its interface, which later versions keep.

mod factory;
pub mod faults;
mod ffi;
mod graph;
pub mod program;
mod provider;

use std::ffi::c_char;
use std::path::PathBuf;

use ort_sys::{OrtApiBase, OrtLogger, OrtStatusPtr};

use factory::Factory;
use ffi::{Api, OrtEpFactory, guarded};

/// Where the library for ONNX Runtime lies when this is linked into a test: beside the program, or one
/// folder above it.
///
/// # Panics
/// If it is not there: then it was not built.
pub fn library() -> PathBuf {
    let name = format!(
        "{}trefoil_npu_test_provider{}",
        std::env::consts::DLL_PREFIX,
        std::env::consts::DLL_SUFFIX
    );
    let program = std::env::current_exe().expect("the system tells");
    let mut places = program.ancestors().skip(1).take(2).map(|folder| folder.join(&name));
    places.find(|path| path.is_file()).unwrap_or_else(|| panic!("{name} is not beside the test"))
}

/// Makes the one factory of this library.
///
/// # Safety
/// For ONNX Runtime alone, which keeps to its interface.
#[unsafe(no_mangle)]
pub unsafe extern "system" fn CreateEpFactories(
    _registered_name: *const c_char,
    base: *const OrtApiBase,
    _logger: *const OrtLogger,
    factories: *mut *mut OrtEpFactory,
    max_factories: usize,
    num_factories: *mut usize,
) -> OrtStatusPtr {
    // SAFETY: ONNX Runtime gives its own base.
    let Some(api) = (unsafe { Api::of(base) }) else {
        // Without the interface there is no way to say why.
        return OrtStatusPtr::default();
    };
    guarded(api, || {
        if max_factories == 0 {
            return Err("expected room for a factory".to_owned());
        }
        let factory = Box::into_raw(Box::new(Factory::new(api)));
        // SAFETY: there is room for at least one, as was checked.
        unsafe { *factories = factory.cast() };
        // SAFETY: a place for the count, by the interface.
        unsafe { *num_factories = 1 };
        Ok(())
    })
}

/// Takes a factory back.
///
/// # Safety
/// For ONNX Runtime alone, which gives back what [`CreateEpFactories`] made.
#[unsafe(no_mangle)]
pub unsafe extern "system" fn ReleaseEpFactory(factory: *mut OrtEpFactory) -> OrtStatusPtr {
    // SAFETY: it came from `CreateEpFactories`, and is given back once.
    drop(unsafe { Box::from_raw(factory.cast::<Factory>()) });
    OrtStatusPtr::default()
}
