//! The queue that streams weights: it works beside the one that computes.

use std::sync::Arc;

use trefoil_devices_api::{DeviceError, Work, Worker};
use trefoil_telemetry::Nanos;

use crate::context::Context;
use crate::program::VulkanSegment;
use crate::transfer::Transfers;

/// Copies weights on a thread of its own, with staging buffers of its own.
pub(crate) struct Loader {
    pub(crate) context: Arc<Context>,
    pub(crate) transfers: Transfers,
}

impl Worker for Loader {
    fn run(&mut self, work: Work) -> Result<Option<Nanos>, DeviceError> {
        self.context.check()?;
        let bad = |expected: &str, got: &str| DeviceError::BadRequest {
            what: "work of the queue that loads weights".to_owned(),
            expected: expected.to_owned(),
            got: got.to_owned(),
        };
        let program = match work {
            Work::Barrier => return Ok(None),
            Work::LoadWeights { program } => program,
            _ => return Err(bad("weights to load", "something else")),
        };
        let segment: Option<&VulkanSegment> = program.as_any().downcast_ref();
        let stream = segment.and_then(|segment| segment.stream.as_ref());
        let stream = stream.ok_or_else(|| bad("a program with streamed weights", "another"))?;
        stream.load(&self.transfers).map(|()| None)
    }
}
