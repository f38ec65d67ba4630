//! Clock, units, metrics and tracing set-up. Depends on nothing else of trefoil.

mod clock;
mod units;

pub use clock::{Clock, SystemClock, VirtualClock};
pub use units::{Bytes, Nanos};
