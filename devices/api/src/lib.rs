//! The device contract, timelines, memory manager.
