//! What can go wrong with a plan or a step.

use std::sync::Arc;

use trefoil_devices_api::{CompileError, DeviceError, DomainId, Failure};

/// A step or a plan that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExecuteError {
    /// A segment has no program.
    #[error("{device}: cannot compile {segment}: {source}")]
    Compile {
        /// The device.
        device: String,
        /// The segment.
        segment: String,
        /// Why.
        source: CompileError,
    },
    /// A device refused a request.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Work failed on a device.
    #[error("{0}")]
    Failed(Arc<Failure>),
    /// A device that the plan names is not here.
    #[error("device {0} is in the plan but not here")]
    NoDevice(String),
    /// A tensor that no device can move.
    #[error("no device copies from {from} to {to}; place the units on devices that share memory")]
    NoWay {
        /// Domain where it is made.
        from: DomainId,
        /// Domain where it is read.
        to: DomainId,
    },
    /// KV pages where the device of their attention cannot reach them.
    #[error(
        "plan: {segment}: expected the KV pages of its layers in memory that {device} addresses, got \
         {domain}; make the plan again with `trefoil plan`"
    )]
    KvOutOfReach {
        /// The segment.
        segment: String,
        /// Its device.
        device: String,
        /// Where the plan has the pages.
        domain: DomainId,
    },
    /// A product that cannot be split as the plan says.
    #[error("{op}: cannot compute rows {rows:?} apart from the others")]
    Split {
        /// The op.
        op: String,
        /// A share's rows.
        rows: std::ops::Range<usize>,
    },
    /// A step that fits no bucket.
    #[error("{phase}: expected a step of at most {most} rows, got {got}")]
    TooManyRows {
        /// The phase.
        phase: &'static str,
        /// Rows of the largest bucket.
        most: usize,
        /// Rows of the step.
        got: usize,
    },
}
