//! Clock, units, metrics, traces and tracing set-up. Depends on nothing else of trefoil.

mod chrome_trace;
mod clock;
mod host;
mod logging;
mod metrics;
mod units;

pub use chrome_trace::{ChromeTrace, TrackId};
pub use clock::{Clock, SystemClock, VirtualClock};
pub use host::{HostMemory, host_memory, os_version, processor_name, resident_memory};
pub use logging::{LogFormat, start_logging};
pub use metrics::{Kind, METRICS, MetricInfo, Metrics};
pub use prometheus::{Counter, Gauge, Histogram, HistogramVec};
pub use units::{Bytes, Nanos};
