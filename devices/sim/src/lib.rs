//! Simulated devices with declared costs and a virtual clock.
