//! Moves of KV pages between the domains that a layer has in the two phases.

use std::ops::Range;
use std::sync::Arc;

use trefoil_devices_api::{Buffer, Device, DomainId, MemoryManager, Phase, Purpose, Work};

use super::ExecuteError;
use super::compile::mover;
use super::lanes::{Lanes, Marks};
use super::queues::{Given, Queues};
use crate::kv::KvPool;
use crate::records::CopyKind;

/// A copy of pages by one device.
#[derive(Debug)]
struct Hop {
    lane: usize,
    from: Buffer,
    to: Buffer,
    label: Arc<str>,
}

/// A layer whose pages move.
#[derive(Debug)]
struct LayerMove {
    layer: usize,
    page_bytes: usize,
    /// Towards the domain of prefill, and that of decode: one hop, or two by way of the host.
    hops: [Vec<Hop>; 2],
}

/// All layers whose pages move.
#[derive(Debug, Default)]
pub(super) struct KvMoves {
    layers: Vec<LayerMove>,
    /// Last use of the host's memory by which pages go that no device moves at once.
    bounce: Marks,
}

impl KvMoves {
    /// Ways for the pages of every layer with two domains.
    pub(super) fn new(
        kv: &KvPool,
        devices: &[Arc<dyn Device>],
        memory: &MemoryManager,
        lanes: &mut Lanes,
    ) -> Result<Self, ExecuteError> {
        let mut bounce: Option<Buffer> = None;
        let largest = kv.moved().map(|layer| kv.layer(Phase::Prefill, layer).len).max();
        let mut layers = Vec::new();
        for layer in kv.moved() {
            let mut way = |to: Phase| -> Result<Vec<Hop>, ExecuteError> {
                let [from, to] = [opposite(to), to].map(|phase| kv.layer(phase, layer).clone());
                let mut hop = |device: &Arc<dyn Device>, from: Buffer, to: Buffer| {
                    let label = format!("KV pages of layer {layer} to {}", to.domain).into();
                    Hop { lane: lanes.of(device), from, to, label }
                };
                if let Some(device) = mover(from.domain, to.domain, devices) {
                    return Ok(vec![hop(device, from, to)]);
                }
                let none = || ExecuteError::NoWay { from: from.domain, to: to.domain };
                let up = mover(from.domain, DomainId::HOST, devices).ok_or_else(none)?;
                let down = mover(DomainId::HOST, to.domain, devices).ok_or_else(none)?;
                let host = match &bounce {
                    Some(host) => host.clone(),
                    None => {
                        let bytes = largest.unwrap_or(0);
                        let made = memory.host_buffer(bytes, Purpose::Kv.holder())?;
                        bounce.insert(made).clone()
                    }
                };
                Ok(vec![hop(up, from, host.clone()), hop(down, host, to)])
            };
            let hops = [way(Phase::Prefill)?, way(Phase::Decode)?];
            layers.push(LayerMove { layer, page_bytes: kv.page_bytes(layer), hops });
        }
        Ok(Self { layers, bounce: Marks::default() })
    }

    /// Submits the move of `pages` of every layer to where `to` has them. Each layer waits for what
    /// used its pages last (`used`, by layer), and what uses them next waits for it.
    pub(super) fn submit(
        &mut self,
        queues: &mut Queues,
        used: &mut [Marks],
        pages: &[u32],
        to: Phase,
        serial: u64,
    ) -> Result<(), ExecuteError> {
        if pages.is_empty() || self.layers.is_empty() {
            return Ok(());
        }
        let runs = runs(pages);
        for LayerMove { layer, page_bytes, hops } in &self.layers {
            let hops = &hops[usize::from(to == Phase::Decode)];
            for hop in hops {
                let mut waits = used[*layer].clone();
                if hops.len() > 1 {
                    waits.add_all(&self.bounce);
                }
                let work = Work::CopyPages {
                    from: hop.from.clone(),
                    to: hop.to.clone(),
                    page_bytes: *page_bytes,
                    runs: runs.clone(),
                };
                let given = Given::Copy {
                    kind: CopyKind::KvPages,
                    domains: [hop.from.domain, hop.to.domain],
                    bytes: (pages.len() * page_bytes) as u64,
                };
                let mark = queues.give(hop.lane, &waits, work, &hop.label, serial, given)?;
                used[*layer].replace(mark);
                if hops.len() > 1 {
                    self.bounce.replace(mark);
                }
            }
        }
        Ok(())
    }

    /// Forgets what was under way.
    pub(super) fn renew(&mut self) {
        self.bounce.clear();
    }
}

fn opposite(phase: Phase) -> Phase {
    match phase {
        Phase::Prefill => Phase::Decode,
        Phase::Decode => Phase::Prefill,
    }
}

/// Page numbers as runs of numbers that follow each other, ascending.
fn runs(pages: &[u32]) -> Arc<[Range<u32>]> {
    let mut sorted = pages.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    let mut runs: Vec<Range<u32>> = Vec::new();
    for page in sorted {
        match runs.last_mut() {
            Some(run) if run.end == page => run.end += 1,
            _ => runs.push(page..page + 1),
        }
    }
    runs.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_next_to_each_other_move_together() {
        assert_eq!(&runs(&[7, 3, 4, 5, 9, 8, 4])[..], [3..6, 7..10]);
        assert_eq!(runs(&[]).len(), 0);
    }
}
