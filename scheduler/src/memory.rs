//! Memory that a placement takes, by domain, and tensors that it moves between domains.

use std::collections::{BTreeMap, BTreeSet};

use trefoil_devices_api::{DomainId, streamed_bytes};
use trefoil_graph::{LayerGraph, NodeIndex};
use trefoil_telemetry::Bytes;

use crate::pieces::{Piece, PieceShare};
use crate::plan::{BucketPlan, DomainMemory, Transfer};
use crate::tensor_pool::{TensorPool, last_readers};

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
/// the domain of each layer's pages, one list per phase that has its own. Streamed weights lie in host
/// memory, and count as the host's.
pub(crate) fn memory(
    graph: &LayerGraph,
    devices: &[Residence<'_>],
    buckets: &[BucketPlan],
    kv: &[Vec<DomainId>],
    kv_bytes_per_element: usize,
) -> Vec<DomainMemory> {
    let domains: BTreeSet<DomainId> = devices.iter().map(|device| device.domain).collect();
    let runs = |device: &Residence<'_>, unit: usize| {
        let on = |bucket: &&BucketPlan| bucket.units[unit].device == device.device;
        buckets.iter().filter(on).any(|bucket| !bucket.is_streamed(unit))
    };
    let from_host = |unit: usize| buckets.iter().any(|bucket| bucket.is_streamed(unit));
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
        if domain == DomainId::HOST {
            let units = graph.units().iter().enumerate().filter(|(index, _)| from_host(*index));
            for weight in units
                .flat_map(|(_, unit)| &unit.nodes)
                .flat_map(|&node| graph.node(node).op.weights())
            {
                let at = (weight.bytes().as_ptr() as usize, weight.len_bytes());
                if shared.insert(at) {
                    weights += weight.len_bytes() as f64;
                }
            }
        }
        weights += shared_out(graph, devices, buckets, domain);
        let here = |layer: usize| kv.iter().any(|phase| phase[layer] == domain);
        let pages = graph.kv().iter().enumerate().filter(|(layer, _)| here(*layer));
        let elements: usize = pages.map(|(_, kv)| kv.elements_per_token()).sum();
        let bounce = if domain == DomainId::HOST { bounced_elements(graph, kv) } else { 0 };
        DomainMemory {
            domain,
            weights: Bytes(weights.ceil() as u64),
            kv: Bytes::from((elements + bounce) * kv_bytes_per_element),
            activations: Bytes(activations(graph, devices, buckets, domain)),
            streaming: Bytes(streaming(graph, devices, buckets, domain)),
        }
    };
    domains.into_iter().map(of_domain).collect()
}

/// Buffers that weights are streamed through: two for each device that has some streamed, each for
/// the largest piece.
fn streaming(
    graph: &LayerGraph,
    devices: &[Residence<'_>],
    buckets: &[BucketPlan],
    domain: DomainId,
) -> u64 {
    let streams = buckets.iter().filter(|bucket| !bucket.streamed.is_empty());
    let mut largest: BTreeMap<String, usize> = BTreeMap::new();
    for piece in streams.flat_map(|bucket| bucket.pieces(graph)).filter(|piece| piece.streamed) {
        let most = largest.entry(piece.device).or_default();
        *most = (*most).max(streamed_bytes(graph, &piece.segment));
    }
    let here = devices.iter().filter(|device| device.domain == domain);
    here.map(|device| 2 * largest.get(device.device).copied().unwrap_or(0) as u64).sum()
}

/// Bytes of the rows that devices of a domain compute of units that nobody there runs: their shares of
/// split products.
fn shared_out(
    graph: &LayerGraph,
    devices: &[Residence<'_>],
    buckets: &[BucketPlan],
    domain: DomainId,
) -> f64 {
    let of_domain = |name: &str| devices.iter().find(|d| d.device == name && d.domain == domain);
    let mut seen = BTreeSet::new();
    let mut bytes = 0.0;
    for bucket in buckets.iter().filter(|bucket| !bucket.splits.is_empty()) {
        for piece in bucket.pieces(graph) {
            for share in &piece.shares {
                let Some(device) = of_domain(&share.device) else { continue };
                let node = graph.node(piece.segment.nodes[0]);
                let at_hand = |name: &str| {
                    let other = of_domain(name);
                    other.is_some_and(|o| device.copy.is_none() && o.copy.is_none())
                        || name == device.device
                };
                if buckets.iter().any(|bucket| at_hand(&bucket.units[node.unit.0].device)) {
                    continue; // counted with the unit
                }
                let weights = node.op.weights();
                let Some(matrix) = weights.first() else { continue };
                let begin =
                    matrix.bytes().as_ptr() as usize + share.rows.start * matrix.row_bytes();
                if seen.insert((begin, share.rows.len())) {
                    let stored = (share.rows.len() * matrix.row_bytes()) as f64;
                    let own = |each| (share.rows.len() * matrix.cols) as f64 * each;
                    bytes += device.copy.map_or(stored, own);
                }
            }
        }
    }
    bytes
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

/// Buffers for tensors between pieces that lie in a domain, made there or copied there, of all steps that
/// are under way at once.
fn activations(
    graph: &LayerGraph,
    devices: &[Residence<'_>],
    buckets: &[BucketPlan],
    domain: DomainId,
) -> u64 {
    let sets = buckets.iter().map(BucketPlan::steps_at_once).max().unwrap_or(0);
    let of_set = |set: usize| {
        let mut pool = TensorPool::default();
        for bucket in buckets.iter().filter(|bucket| bucket.steps_at_once() > set) {
            place_tensors(&mut pool, graph, devices, bucket, domain);
        }
        pool.bytes()
    };
    (0..sets).map(of_set).sum()
}

/// Gives the tensors of a bucket's step that lie in a domain their buffers, as an executor does. Parts of
/// split products have numbers from 1 on.
fn place_tensors(
    pool: &mut TensorPool<(NodeIndex, usize)>,
    graph: &LayerGraph,
    devices: &[Residence<'_>],
    bucket: &BucketPlan,
    domain: DomainId,
) {
    let here =
        |name: &str| devices.iter().any(|device| device.device == name && device.domain == domain);
    let pieces = bucket.pieces(graph);
    let last = last_readers(graph, &pieces);
    pool.clear();
    for (number, piece) in pieces.iter().enumerate() {
        pool.retire(number);
        let whole = |pool: &mut TensorPool<_>, node: NodeIndex| {
            let bytes = bucket.bucket.tensor_bytes(graph, node);
            pool.place((node, 0), bytes, last.get(&node).copied().unwrap_or(number));
        };
        if piece.shares.is_empty() && here(&piece.device) {
            let tensors = piece.segment.inputs.iter().chain(&piece.segment.outputs);
            tensors.for_each(|&node| whole(pool, node));
        }
        for (part, share) in (1..).zip(&piece.shares) {
            let [made, home] = [here(&share.device), here(&piece.device)];
            let (input, output) = (piece.segment.inputs[0], piece.segment.outputs[0]);
            let bytes = share_bytes(graph, bucket, piece, share) as usize;
            if made {
                whole(pool, input);
                pool.place((output, part), bytes, number);
            }
            if home {
                whole(pool, output);
                pool.place((output, part), bytes, number);
            }
        }
    }
}

/// Tensors that are copied from one domain to another, in the order in which they are needed. A copy
/// serves all later readers in its domain.
pub(crate) fn transfers(
    graph: &LayerGraph,
    devices: &[Residence<'_>],
    plan: &BucketPlan,
) -> Vec<Transfer> {
    let named = |name: &str| {
        devices.iter().find(|device| device.device == name).expect("devices were checked")
    };
    let of = |unit: usize| named(&plan.units[unit].device);
    let mut copies: BTreeSet<(NodeIndex, DomainId)> = BTreeSet::new();
    let mut transfers = Vec::new();
    for piece in plan.pieces(graph) {
        let mut readers: Vec<&Residence<'_>> = vec![named(&piece.device)];
        if !piece.shares.is_empty() {
            readers = piece.shares.iter().map(|share| named(&share.device)).collect();
        }
        for to in readers {
            for &node in &piece.segment.inputs {
                let maker = graph.node(node);
                let from = of(maker.unit.0).domain;
                let there =
                    |domain: &DomainId| *domain == from || copies.contains(&(node, *domain));
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
        let home = named(&piece.device).domain;
        for share in &piece.shares {
            let from = named(&share.device).domain;
            if from != home {
                let tensor = graph.node(piece.segment.outputs[0]).name.clone();
                let bytes = Bytes(share_bytes(graph, plan, &piece, share));
                transfers.push(Transfer { tensor, from, to: home, bytes });
            }
        }
    }
    transfers
}

/// Bytes of a share's result in the largest step.
fn share_bytes(graph: &LayerGraph, plan: &BucketPlan, piece: &Piece, share: &PieceShare) -> u64 {
    let shape = graph.node(piece.segment.outputs[0]).shape;
    let rows = plan.bucket.max_rows(shape.rows);
    (rows * share.rows.len() * size_of::<f32>()) as u64
}
