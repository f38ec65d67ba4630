//! What can go wrong on a device, and what the layer above can do about it.

use std::sync::Arc;

use trefoil_telemetry::{Bytes, Nanos};

use crate::{DomainId, SubmissionId};

/// Why a device is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LostReason {
    /// The driver says so.
    Driver,
    /// It was taken out of the machine.
    Removed,
    /// Its queue's thread ended by a panic.
    Panicked,
}

/// An error of a device.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// A memory domain has too little left.
    #[error("{domain}: need {need}, have {have} free; held by: {holders}")]
    OutOfMemory {
        /// Domain asked for.
        domain: DomainId,
        /// Bytes asked for.
        need: Bytes,
        /// Bytes free under the budget.
        have: Bytes,
        /// Who holds the rest.
        holders: String,
    },
    /// The device is gone; handles of its epoch are dead.
    #[error(
        "device lost ({reason:?}, epoch {epoch}); load the model again, or run it on another \
         device"
    )]
    Lost {
        /// Why.
        reason: LostReason,
        /// Epoch that ended.
        epoch: u64,
    },
    /// A submission ran longer than the device allows.
    #[error("{label}: ran {ran}, the limit is {limit}")]
    Overrun {
        /// Label of the submission.
        label: String,
        /// Time it ran.
        ran: Nanos,
        /// Time allowed.
        limit: Nanos,
    },
    /// The caller broke the contract.
    #[error("{what}: expected {expected}, got {got}")]
    BadRequest {
        /// Thing that was wrong.
        what: String,
        /// What the contract says.
        expected: String,
        /// What came.
        got: String,
    },
    /// Work that this was waiting for failed; the first cause.
    #[error("{0}")]
    Upstream(Arc<Failure>),
    /// Results that are no numbers: the device computed nonsense, or its number format was outgrown.
    #[error(
        "{label}: expected finite results, got {value} in row {row} of {tensor}; run these ops on \
         another device, or in a wider number format"
    )]
    NotFinite {
        /// What ran.
        label: String,
        /// Name of the tensor.
        tensor: String,
        /// Its row.
        row: usize,
        /// Infinite, or not a number.
        value: f32,
    },
    /// A call into the driver failed.
    #[error("{call} failed: {text} (code {code})")]
    Driver {
        /// Name of the driver's function.
        call: &'static str,
        /// Its answer.
        code: i64,
        /// The answer in words.
        text: String,
    },
}

/// What the layer above can do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// Try the same again.
    Retry,
    /// Free memory, then try again.
    Evict,
    /// Make a plan without this device.
    Replan,
    /// Reset the device, then make a new plan.
    Reset,
    /// Give the request up.
    Abort,
}

impl DeviceError {
    /// What the layer above can do about it.
    pub fn recovery(&self) -> Recovery {
        match self {
            Self::OutOfMemory { .. } => Recovery::Evict,
            Self::Lost { .. } | Self::NotFinite { .. } => Recovery::Replan,
            Self::Overrun { .. } | Self::Driver { .. } => Recovery::Reset,
            Self::BadRequest { .. } => Recovery::Abort,
            Self::Upstream(failure) => failure.error.recovery(),
        }
    }
}

/// Failed work: it reaches everyone who waits for what the work would have signalled.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{device}: {label}: {error}")]
pub struct Failure {
    /// The work.
    pub origin: SubmissionId,
    /// Name of the device it failed on.
    pub device: String,
    /// Label of the submission.
    pub label: String,
    /// What happened.
    pub error: DeviceError,
}

/// Why a segment has no program on a device.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompileError {
    /// An op that the device cannot run.
    #[error("{op} ({kind}): {reason}")]
    Unsupported {
        /// Role name of the op.
        op: String,
        /// Kind of the op.
        kind: &'static str,
        /// Op, number format, shape or limit.
        reason: String,
    },
    /// The device was asked for the whole of it, and will not take it.
    #[error("the device's compiler refuses {what}: {reason}")]
    Refused {
        /// The ops, and for how many rows.
        what: String,
        /// What it says.
        reason: String,
    },
    /// The job was cancelled or its time ran out.
    #[error("stopped after {after}: {why}")]
    Stopped {
        /// Time spent.
        after: Nanos,
        /// Cancelled, or the limit.
        why: String,
    },
    /// The device failed on the way.
    #[error(transparent)]
    Device(#[from] DeviceError),
}
