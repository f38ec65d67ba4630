//! From one block type to another, in pieces, on several threads.

use std::sync::Mutex;
use std::thread;

use trefoil_graph::BlockType;
use trefoil_kernels::blocks::{decode_row, encode_row};

/// Elements that a thread takes at a time: a multiple of every block, and few enough that the
/// decoded values stay in its cache.
const PIECE: usize = 16 << 10;
/// Elements encoded between two writes, which bounds memory: 32 MiB where they stay F32.
const CHUNK: usize = 8 << 20;

/// What was lost beyond rounding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Lost {
    /// Values that were infinite or not a number.
    pub(super) not_finite: u64,
    /// Values beyond the largest of half precision.
    pub(super) saturated: u64,
}

impl std::ops::AddAssign for Lost {
    fn add_assign(&mut self, other: Self) {
        self.not_finite += other.not_finite;
        self.saturated += other.saturated;
    }
}

/// One tensor's data on its way from one type to another. Rows do not matter here: where every row
/// is a whole number of blocks in both types, so is any number of elements cut at [`PIECE`]s.
pub(super) struct Recoder<'a> {
    pub(super) source: &'a [u8],
    pub(super) from: BlockType,
    pub(super) to: BlockType,
    pub(super) threads: usize,
}

impl Recoder<'_> {
    /// Calls `sink` with the encoded bytes, in order, and how many source bytes they stand for.
    pub(super) fn run<E>(
        &self,
        buffer: &mut Vec<u8>,
        mut sink: impl FnMut(&[u8], u64) -> Result<(), E>,
    ) -> Result<Lost, E> {
        let mut lost = Lost::default();
        for source in self.source.chunks(bytes_of(self.from, CHUNK)) {
            if self.from == self.to {
                sink(source, source.len() as u64)?;
                continue;
            }
            let elements = source.len() / self.from.info().bytes * self.from.info().elements;
            buffer.resize(bytes_of(self.to, elements), 0);
            lost += self.chunk(source, buffer);
            sink(buffer, source.len() as u64)?;
        }
        Ok(lost)
    }

    fn chunk(&self, source: &[u8], target: &mut [u8]) -> Lost {
        let pieces = source
            .chunks(bytes_of(self.from, PIECE))
            .zip(target.chunks_mut(bytes_of(self.to, PIECE)));
        let threads = self.threads.min(pieces.len());
        let pieces = Mutex::new(pieces);
        let total = Mutex::new(Lost::default());
        let work = || {
            let mut values = vec![0.0; PIECE];
            let mut lost = Lost::default();
            loop {
                let next = pieces.lock().expect("no thread panics with the lock").next();
                let Some((source, target)) = next else { break };
                lost += self.piece(source, target, &mut values);
            }
            *total.lock().expect("no thread panics with the lock") += lost;
        };
        thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(work);
            }
            work();
        });
        total.into_inner().expect("no thread panics with the lock")
    }

    fn piece(&self, source: &[u8], target: &mut [u8], values: &mut [f32]) -> Lost {
        let info = self.from.info();
        let values = &mut values[..source.len() / info.bytes * info.elements];
        decode_row(self.from, source, values);
        encode_row(self.to, values, target);
        let limit = half::f16::MAX.to_f32();
        let mut lost = Lost::default();
        for value in values {
            lost.not_finite += u64::from(!value.is_finite());
            let large = value.is_finite() && value.abs() > limit;
            lost.saturated += u64::from(self.to == BlockType::F16 && large);
        }
        lost
    }
}

fn bytes_of(block: BlockType, elements: usize) -> usize {
    let info = block.info();
    elements / info.elements * info.bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recoded(values: &[f32], to: BlockType, threads: usize) -> (Vec<u8>, Lost, usize) {
        let source: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let recoder = Recoder { source: &source, from: BlockType::F32, to, threads };
        let (mut out, mut calls, mut done) = (Vec::new(), 0, 0);
        let lost = recoder.run(&mut Vec::new(), |bytes, from| {
            out.extend_from_slice(bytes);
            calls += 1;
            done += from;
            Ok::<_, ()>(())
        });
        assert_eq!(done, source.len() as u64);
        (out, lost.expect("the sink takes all"), calls)
    }

    #[test]
    fn pieces_are_what_the_whole_would_be_whatever_the_threads() {
        // Not a multiple of a piece, nor of a chunk.
        let values: Vec<f32> =
            (0..CHUNK + PIECE + 512).map(|i| (i % 1009) as f32 - 500.0).collect();
        let mut whole = vec![0; bytes_of(BlockType::Q4_0, values.len())];
        encode_row(BlockType::Q4_0, &values, &mut whole);
        for threads in [1, 3] {
            let (out, lost, calls) = recoded(&values, BlockType::Q4_0, threads);
            assert!(out == whole, "{threads} threads");
            assert_eq!((lost, calls), (Lost::default(), 2));
        }
    }

    #[test]
    fn pieces_are_whole_blocks_of_every_type() {
        for row in trefoil_graph::BLOCK_TABLE {
            assert_eq!((PIECE % row.elements, CHUNK % PIECE), (0, 0), "{}", row.name);
        }
    }

    #[test]
    fn what_is_lost_is_counted() {
        let values = [1.0, f32::NAN, f32::INFINITY, 1e5, -1e5, 65504.0];
        let (_, lost, _) = recoded(&values, BlockType::F16, 2);
        assert_eq!(lost, Lost { not_finite: 2, saturated: 2 });
        let (_, lost, _) = recoded(&values, BlockType::BF16, 2);
        assert_eq!(lost, Lost { not_finite: 2, saturated: 0 });
    }

    #[test]
    fn equal_types_are_copied_bit_for_bit() {
        let values = [f32::NAN, 1.0];
        let (out, lost, _) = recoded(&values, BlockType::F32, 1);
        let bits: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!((out, lost), (bits, Lost::default()));
    }
}
