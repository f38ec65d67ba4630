//! Static row counts: which a program is compiled for, and how a step is laid out on them.
//!
//! A step is padded up to the smallest count that fits. It is cut where it has more rows than the largest
//! count, or where cutting at least halves the work: with 128 and 512, a step of 130 rows runs as 128 and
//! 2 (padded to 128), one of 400 as 512. A call counts as 64 rows at least, since it reads all weights.

use trefoil_devices_api::{Bucket, Phase};
use trefoil_graph::Rows;

/// Row counts of decode steps, next to the bucket's own: few, each is compiled.
const DECODE: [usize; 2] = [1, 8];
/// Rows below which a call takes no less time: it reads the weights.
const LEAST: usize = 64;

/// Row counts that a program of a bucket is compiled for, ascending: in decode 1, 8 and the bucket's
/// size; for a prompt those of `shapes` below its size, and its size (the largest of `shapes` where it is
/// smaller). Where rows are wanted rows, 1 is among them: of most chunks one or none is wanted.
pub(crate) fn sizes(bucket: Bucket, rows: Rows, shapes: &[usize]) -> Vec<usize> {
    let most = bucket.max_rows(rows).max(1);
    let mut sizes: Vec<usize> = match (bucket.phase, rows) {
        (Phase::Decode, _) => DECODE.to_vec(),
        (Phase::Prefill, Rows::Tokens) => shapes.to_vec(),
        (Phase::Prefill, Rows::Outputs | Rows::Sequences) => vec![1],
    };
    let largest = shapes.iter().copied().max().filter(|_| rows == Rows::Tokens);
    sizes.retain(|&size| size > 0 && size < most);
    sizes.push(most.min(largest.unwrap_or(most)).max(1));
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}

/// Pieces of a step of `rows` rows: number of the size in `sizes`, first row, rows.
pub(crate) fn pieces(rows: usize, sizes: &[usize]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut first = 0;
    while first < rows {
        let size = next(rows - first, sizes);
        let count = sizes[size].min(rows - first);
        pieces.push(Piece { size, first, count });
        first += count;
    }
    pieces
}

/// Rows of a step that run together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Number of the row count.
    pub(crate) size: usize,
    /// First row of the step.
    pub(crate) first: usize,
    /// Rows of the step; the others of the row count are padding.
    pub(crate) count: usize,
}

/// The row count that the first of `rows` rows go to.
fn next(rows: usize, sizes: &[usize]) -> usize {
    let last = sizes.len() - 1;
    let Some(fits) = sizes.iter().position(|&size| size >= rows) else { return last };
    if fits == 0 {
        return 0;
    }
    let below = sizes[fits - 1];
    let cut = below.max(LEAST) + work(rows - below, &sizes[..fits]);
    if 2 * cut <= sizes[fits] { fits - 1 } else { fits }
}

/// Rows that are computed for `rows` rows, padding included; a call counts as [`LEAST`] or more.
fn work(rows: usize, sizes: &[usize]) -> usize {
    pieces(rows, sizes).iter().map(|piece| sizes[piece.size].max(LEAST)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(phase: Phase, max_tokens: usize, max_outputs: usize) -> Bucket {
        Bucket { phase, min_tokens: 1, max_tokens, max_outputs }
    }

    #[test]
    fn sizes_follow_the_bucket() {
        let shapes = [128, 512, 2048];
        let of = |phase, max, rows| sizes(bucket(phase, max, 64), rows, &shapes);
        assert_eq!(of(Phase::Prefill, 512, Rows::Tokens), [128, 512]);
        assert_eq!(of(Phase::Prefill, 600, Rows::Tokens), [128, 512, 600]);
        assert_eq!(of(Phase::Prefill, 64, Rows::Tokens), [64]);
        assert_eq!(of(Phase::Prefill, 9000, Rows::Tokens), [128, 512, 2048]);
        assert_eq!(of(Phase::Prefill, 512, Rows::Outputs), [1, 64]);
        assert_eq!(of(Phase::Decode, 1, Rows::Tokens), [1]);
        assert_eq!(of(Phase::Decode, 16, Rows::Tokens), [1, 8, 16]);
        assert_eq!(sizes(bucket(Phase::Prefill, 9, 1), Rows::Tokens, &[]), [9]);
        assert_eq!(sizes(bucket(Phase::Prefill, 0, 0), Rows::Outputs, &[]), [1]);
    }

    #[test]
    fn every_row_is_in_one_piece_and_little_is_padded() {
        let sizes = [1, 8, 128, 512];
        for rows in 0..1600 {
            let pieces = pieces(rows, &sizes);
            let mut next = 0;
            for piece in &pieces {
                assert_eq!(piece.first, next);
                assert!(piece.count > 0 && piece.count <= sizes[piece.size]);
                next += piece.count;
            }
            assert_eq!(next, rows);
            let padded: usize = pieces.iter().map(|piece| sizes[piece.size]).sum();
            assert!(padded >= rows && padded <= (2 * rows).max(128), "{rows}: {padded}");
            assert!(rows > 8 || pieces.len() <= 1, "a call reads all weights");
        }
        let counts = |rows| -> Vec<(usize, usize)> {
            pieces(rows, &[128, 512]).iter().map(|p| (p.size, p.count)).collect()
        };
        assert_eq!(counts(130), [(0, 128), (0, 2)]);
        assert_eq!(counts(400), [(1, 400)]);
        assert_eq!(counts(520), [(1, 512), (0, 8)]);
        assert_eq!(counts(3), [(0, 3)]);
    }
}
