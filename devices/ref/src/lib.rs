//! The reference interpreter as a device.
