//! What a device can do at most, to hold figures against.

use std::time::Duration;

use serde::Serialize;
use trefoil_devices_api::{Device, DeviceKind};
use trefoil_kernels::cpu::ThreadPool;

use super::gpu_peaks;
use super::stats::seconds;
use crate::backends::BackendOptions;

/// A limit of a device.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Peak {
    /// So much a second, measured just now.
    Measured(f64),
    /// Not known, and why.
    Unknown(String),
}

impl Peak {
    /// What part of the limit `per_second` is.
    pub fn share(&self, per_second: f64) -> Option<f64> {
        match self {
            Self::Measured(most) => Some(per_second / most),
            Self::Unknown(_) => None,
        }
    }
}

/// Limits of what runs a phase.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Peaks {
    /// Bytes of memory read a second.
    pub read: Peak,
    /// Arithmetic operations a second, in the form that products of weights use.
    pub arithmetic: Peak,
}

impl Peaks {
    /// Limits of a device. A kind of device that can measure its own gets an arm here.
    pub fn of_device(device: &dyn Device, options: &BackendOptions) -> Self {
        let info = device.info();
        match info.kind {
            DeviceKind::Cpu => Self::of_processor(options.threads),
            DeviceKind::Gpu => gpu_peaks::measure(device),
            kind => Self::unknown(&format!("{}: not measured for {kind:?}", info.name)),
        }
    }

    /// Limits of work whose devices have no common ones.
    pub fn unknown(reason: &str) -> Self {
        let unknown = || Peak::Unknown(reason.to_owned());
        Self { read: unknown(), arithmetic: unknown() }
    }

    fn of_processor(threads: usize) -> Self {
        let pool = match threads {
            0 => ThreadPool::for_this_machine(),
            count => ThreadPool::new(count),
        };
        let arithmetic = Peak::Unknown("no loop measures the processor's arithmetic".to_owned());
        let read = match pool {
            Ok(pool) => Peak::Measured(read_bandwidth(&pool)),
            Err(error) => Peak::Unknown(format!("threads do not start: {error}")),
        };
        Self { read, arithmetic }
    }
}

/// Bytes a second at which all threads of a pool together read memory that is in no cache; takes
/// about half a second and 256 MiB.
pub fn read_bandwidth(pool: &ThreadPool) -> f64 {
    const PARTS: usize = 64;
    let memory = vec![1u64; 32 << 20];
    let part = memory.len() / PARTS;
    let taken = seconds(Duration::from_millis(500), 5, || {
        pool.run(PARTS, |task, _| {
            let part = &memory[task * part..(task + 1) * part];
            let mut sums = [0u64; 64];
            for chunk in part.as_chunks::<64>().0 {
                sums.iter_mut().zip(chunk).for_each(|(sum, v)| *sum = sum.wrapping_add(*v));
            }
            std::hint::black_box(sums);
        });
    });
    size_of_val(&memory[..]) as f64 / taken.best
}
