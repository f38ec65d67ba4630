//! Which buffers the tensors between the pieces of a step share: a plan counts them, an executor takes
//! them, both by this.

use std::collections::HashMap;

use trefoil_graph::{LayerGraph, NodeIndex};

use crate::pieces::Piece;

/// Buffers of one memory, for tensors that live from the piece that makes them to the last that reads them.
#[derive(Clone, Debug)]
pub struct TensorPool<K> {
    slots: Vec<Slot<K>>,
}

#[derive(Clone, Debug)]
struct Slot<K> {
    bytes: usize,
    /// The tensor in it, and the last piece that reads it.
    held: Option<(K, usize)>,
}

/// Where a tensor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a buffer that was there before.
    Known(usize),
    /// In a new buffer, which has the next number.
    New(usize),
}

impl<K> Default for TensorPool<K> {
    fn default() -> Self {
        Self { slots: Vec::new() }
    }
}

impl<K: PartialEq> TensorPool<K> {
    /// Forgets all tensors, but keeps the buffers: for the next bucket.
    pub fn clear(&mut self) {
        self.slots.iter_mut().for_each(|slot| slot.held = None);
    }

    /// Gives back the buffers of tensors that neither `piece` nor a later one reads.
    pub fn retire(&mut self, piece: usize) {
        for slot in &mut self.slots {
            if slot.held.as_ref().is_some_and(|(_, last)| *last < piece) {
                slot.held = None;
            }
        }
    }

    /// The buffer of a tensor of `bytes` that is read until the piece `last`: the one it has, else the
    /// smallest free one that holds it, else a new one.
    pub fn place(&mut self, tensor: K, bytes: usize, last: usize) -> Place {
        let has = |slot: &Slot<K>| slot.held.as_ref().is_some_and(|(held, _)| *held == tensor);
        if let Some(at) = self.slots.iter().position(has) {
            return Place::Known(at);
        }
        let slots = self.slots.iter_mut().enumerate();
        let free = slots.filter(|(_, slot)| slot.held.is_none() && slot.bytes >= bytes);
        if let Some((at, slot)) = free.min_by_key(|(_, slot)| slot.bytes) {
            slot.held = Some((tensor, last));
            return Place::Known(at);
        }
        self.slots.push(Slot { bytes, held: Some((tensor, last)) });
        Place::New(self.slots.len() - 1)
    }

    /// Bytes of all buffers.
    pub fn bytes(&self) -> u64 {
        self.slots.iter().map(|slot| slot.bytes as u64).sum()
    }
}

/// The last piece that reads each tensor; the result's is past all.
pub fn last_readers(graph: &LayerGraph, pieces: &[Piece]) -> HashMap<NodeIndex, usize> {
    let mut last = HashMap::new();
    for (number, piece) in pieces.iter().enumerate() {
        last.extend(piece.segment.inputs.iter().map(|&node| (node, number)));
    }
    last.insert(graph.output(), usize::MAX);
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_that_are_not_alive_together_share_a_buffer() {
        let mut pool = TensorPool::default();
        assert_eq!(pool.place("a", 100, 1), Place::New(0));
        assert_eq!(pool.place("b", 10, 2), Place::New(1));
        assert_eq!(pool.place("a", 100, 1), Place::Known(0), "it has one");
        pool.retire(2);
        assert_eq!(pool.place("c", 5, 9), Place::Known(0), "the only free one");
        assert_eq!(pool.place("d", 5, 9), Place::New(2));
        pool.retire(3);
        assert_eq!(pool.place("e", 8, 9), Place::Known(1), "the smallest that holds it");
        pool.clear();
        assert_eq!(pool.place("f", 100, 9), Place::Known(0));
        assert_eq!(pool.bytes(), 115);
    }
}
