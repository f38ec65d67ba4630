//! What an NPU does not take, where everything was asked to run on it: keys and values, token tables,
//! mixtures.

use std::sync::Arc;

use trefoil_devices_api::{Bucket, Device, DeviceKind, OpQuery, Support};
use trefoil_graph::{LayerGraph, UnitId, UnitKind};
use trefoil_scheduler::Pin;

use crate::backends::Backends;
use crate::model::ModelOptions;

/// Where units go that an NPU does not take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NpuFallback {
    /// To the first GPU that is open, else to the CPU.
    #[default]
    Gpu,
    /// To the CPU.
    Cpu,
    /// Nowhere: the plan does not compile, and says why.
    Error,
}

/// Pins for the units that the NPU named by the options does not take, and a word about them for the plan;
/// none where another device, or none, was named.
pub(crate) fn pins_beside(
    graph: &LayerGraph,
    backends: &Backends,
    options: &ModelOptions,
    buckets: &[Bucket],
) -> (Vec<Pin>, Option<String>) {
    let find = |kind: DeviceKind| {
        let mut devices = backends.devices.iter();
        devices.find(|device| device.info().kind == kind)
    };
    let named = options.device.as_deref().or(options.devices.first().map(String::as_str));
    let npu = backends.devices.iter().find(|device| Some(&*device.info().name) == named);
    let Some(npu) = npu.filter(|device| device.info().kind == DeviceKind::Npu) else {
        return (Vec::new(), None);
    };
    let other = match options.npu_fallback {
        NpuFallback::Gpu => find(DeviceKind::Gpu).or_else(|| find(DeviceKind::Cpu)),
        NpuFallback::Cpu => find(DeviceKind::Cpu),
        NpuFallback::Error => None,
    };
    let Some(other) = other.map(|device| device.info().name.clone()) else {
        return (Vec::new(), None);
    };
    let patterns = patterns(graph, npu, buckets);
    if patterns.is_empty() {
        return (Vec::new(), None);
    }
    let name = &npu.info().name;
    let word = format!("{name} does not take {}: on {other} instead", patterns.join(", "));
    let pin = |pattern: String| Pin { pattern, device: other.clone(), phase: None };
    (patterns.into_iter().map(pin).collect(), Some(word))
}

/// Patterns of the units that a device refuses in any bucket: one for a kind of which it refuses all.
fn patterns(graph: &LayerGraph, device: &Arc<dyn Device>, buckets: &[Bucket]) -> Vec<String> {
    let refuses = |unit: UnitId| {
        graph.unit(unit).nodes.iter().any(|&node| {
            buckets.iter().any(|&bucket| {
                matches!(device.support(&OpQuery { graph, node, bucket }), Support::No(_))
            })
        })
    };
    let units = (0..graph.units().len()).map(UnitId);
    let (refused, taken): (Vec<UnitId>, Vec<UnitId>) = units.partition(|&unit| refuses(unit));
    let kind = |unit: &UnitId| (graph.unit(*unit).kind, graph.unit(*unit).layer.is_some());
    let mut patterns: Vec<String> = Vec::new();
    for unit in &refused {
        let all = taken.iter().all(|other| kind(other) != kind(unit));
        let pattern = match (all, kind(unit)) {
            (true, (kind, true)) => format!("blk.*.{}", UnitKind::name(kind)),
            _ => graph.unit(*unit).name(),
        };
        if !patterns.contains(&pattern) {
            patterns.push(pattern);
        }
    }
    patterns
}
