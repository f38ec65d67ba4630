//! Memory that a placement takes, by domain, and tensors that it moves between domains.

use std::collections::BTreeSet;

use trefoil_devices_api::DomainId;
use trefoil_graph::{LayerGraph, NodeIndex};
use trefoil_telemetry::Bytes;

use crate::plan::{BucketPlan, DomainMemory, Transfer};

/// Where a device keeps what it needs.
#[derive(Clone, Debug)]
pub(crate) struct Residence<'a> {
    pub(crate) device: &'a str,
    pub(crate) domain: DomainId,
    /// Domains that it addresses, its own included.
    pub(crate) reads: Vec<DomainId>,
    /// Bytes per weight of its own copy, if it has one.
    pub(crate) copy: Option<f64>,
}

/// Memory by domain, ascending. Weights that devices of a domain read in place are counted once
/// however many devices, phases and units read them; a device's own copy is counted on top. `kv` has
/// the domain of each layer's pages, one list per phase that has its own.
pub(crate) fn memory(
    graph: &LayerGraph,
    devices: &[Residence<'_>],
    buckets: &[BucketPlan],
    kv: &[Vec<DomainId>],
    kv_bytes_per_element: usize,
) -> Vec<DomainMemory> {
    let domains: BTreeSet<DomainId> = devices.iter().map(|device| device.domain).collect();
    let runs = |device: &Residence<'_>, unit: usize| {
        buckets.iter().any(|bucket| bucket.units[unit].device == device.device)
    };
    let of_domain = |domain: DomainId| {
        let mut shared = BTreeSet::new();
        let mut weights = 0.0;
        for device in devices.iter().filter(|device| device.domain == domain) {
            let mut own = BTreeSet::new();
            for (index, unit) in graph.units().iter().enumerate() {
                if !runs(device, index) {
                    continue;
                }
                for weight in unit.nodes.iter().flat_map(|&node| graph.node(node).op.weights()) {
                    let at = (weight.bytes().as_ptr() as usize, weight.len_bytes());
                    let (seen, bytes) = match device.copy {
                        None => (&mut shared, weight.len_bytes() as f64),
                        Some(each) => (&mut own, weight.elements() as f64 * each),
                    };
                    if seen.insert(at) {
                        weights += bytes;
                    }
                }
            }
        }
        let here = |layer: usize| kv.iter().any(|phase| phase[layer] == domain);
        let pages = graph.kv().iter().enumerate().filter(|(layer, _)| here(*layer));
        let elements: usize = pages.map(|(_, kv)| kv.elements_per_token()).sum();
        let bounce = if domain == DomainId::HOST { bounced_elements(graph, kv) } else { 0 };
        DomainMemory {
            domain,
            weights: Bytes(weights.ceil() as u64),
            kv: Bytes::from((elements + bounce) * kv_bytes_per_element),
            activations: Bytes(activations(graph, devices, buckets, domain)),
        }
    };
    domains.into_iter().map(of_domain).collect()
}

/// Elements per token of the largest layer whose pages move between two domains that are not the
/// host's: they go by way of its memory, one layer after the other.
fn bounced_elements(graph: &LayerGraph, kv: &[Vec<DomainId>]) -> usize {
    let layers = graph.kv().iter().enumerate().filter(|(layer, _)| {
        let mut homes = kv.iter().map(|phase| phase[*layer]);
        let first = homes.next();
        let away = |home| first.is_some_and(|first| first != home && first != DomainId::HOST);
        homes.any(|home| home != DomainId::HOST && away(home))
    });
    layers.map(|(_, shape)| shape.elements_per_token()).max().unwrap_or(0)
}

/// Tensors between segments that lie in a domain, made there or copied there, of the bucket that needs
/// most.
fn activations(
    graph: &LayerGraph,
    devices: &[Residence<'_>],
    buckets: &[BucketPlan],
    domain: DomainId,
) -> u64 {
    let here =
        |name: &str| devices.iter().any(|device| device.device == name && device.domain == domain);
    let of_bucket = |bucket: &BucketPlan| -> u64 {
        let segments = bucket.segments();
        let segments = segments.iter().filter(|segment| here(&segment.device));
        let outputs = segments.flat_map(|segment| graph.segment(&segment.units).outputs);
        let made: u64 = outputs.map(|node| bucket.bucket.tensor_bytes(graph, node) as u64).sum();
        let copied = bucket.transfers.iter().filter(|transfer| transfer.to == domain);
        let copied: u64 = copied.map(|transfer| transfer.bytes.0).sum();
        (made + copied) * bucket.steps_at_once() as u64
    };
    buckets.iter().map(of_bucket).max().unwrap_or(0)
}

/// Tensors that are copied from one domain to another, in the order in which they are needed. A copy
/// serves all later readers in its domain.
pub(crate) fn transfers(
    graph: &LayerGraph,
    devices: &[Residence<'_>],
    plan: &BucketPlan,
) -> Vec<Transfer> {
    let of = |unit: usize| {
        let name = &plan.units[unit].device;
        devices.iter().find(|device| device.device == name).expect("devices were checked")
    };
    let mut copies: BTreeSet<(NodeIndex, DomainId)> = BTreeSet::new();
    let mut transfers = Vec::new();
    for segment in plan.segments() {
        let to = of(segment.units[0].0);
        for node in graph.segment(&segment.units).inputs {
            let maker = graph.node(node);
            let from = of(maker.unit.0).domain;
            let there = |domain: &DomainId| *domain == from || copies.contains(&(node, *domain));
            if to.reads.iter().any(there) {
                continue;
            }
            copies.insert((node, to.domain));
            transfers.push(Transfer {
                tensor: maker.name.clone(),
                from,
                to: to.domain,
                bytes: Bytes::from(plan.bucket.tensor_bytes(graph, node)),
            });
        }
    }
    transfers
}
