//! Rotary position embedding.

use super::ThreadPool;
use super::level::at_level;
use super::norm::each_row;

/// Which elements of a head form pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopePairs {
    /// `(2i, 2i + 1)`, as llama's GGUF files have it.
    Interleaved,
    /// `(i, i + n/2)` of the `n` rotated elements, as most others have it.
    Halves,
}

/// Rotates the first `2 * width` elements of every head of `x` (`[rows, heads, head_dim]`) in place:
/// `(a, b)` becomes `(a cos - b sin, a sin + b cos)`. `cos` and `sin` are `[rows, width]`: angles of
/// the row's position, any scaling included.
///
/// # Panics
/// If the lengths do not fit.
#[expect(clippy::too_many_arguments, reason = "four shapes and three arrays")]
pub fn rope(
    pool: &ThreadPool,
    x: &mut [f32],
    heads: usize,
    head_dim: usize,
    width: usize,
    pairs: RopePairs,
    cos: &[f32],
    sin: &[f32],
) {
    rotate_rows(pool, x, heads, head_dim, width, pairs, (cos, sin), |_, _| {});
}

/// [`rope`] of `x` into `out`; `angles` are cosines and sines.
///
/// # Panics
/// If the lengths do not fit.
#[expect(clippy::too_many_arguments, reason = "four shapes and three arrays")]
pub fn rope_from(
    pool: &ThreadPool,
    x: &[f32],
    out: &mut [f32],
    heads: usize,
    head_dim: usize,
    width: usize,
    pairs: RopePairs,
    angles: (&[f32], &[f32]),
) {
    assert_eq!(x.len(), out.len(), "rope: input and output differ in length");
    let columns = heads * head_dim;
    rotate_rows(pool, out, heads, head_dim, width, pairs, angles, |row, values| {
        values.copy_from_slice(&x[row * columns..(row + 1) * columns]);
    });
}

/// Rotates every row in place after `fill` has put it there.
#[expect(clippy::too_many_arguments, reason = "four shapes and three arrays")]
fn rotate_rows(
    pool: &ThreadPool,
    x: &mut [f32],
    heads: usize,
    head_dim: usize,
    width: usize,
    pairs: RopePairs,
    (cos, sin): (&[f32], &[f32]),
    fill: impl Fn(usize, &mut [f32]) + Sync,
) {
    assert!(2 * width <= head_dim, "rope: {width} pairs in a head of {head_dim}");
    assert!(heads * head_dim > 0, "rope: no heads");
    let rows = x.len() / (heads * head_dim);
    assert_eq!((cos.len(), sin.len()), (rows * width, rows * width), "rope: one angle a pair");
    each_row(pool, x, heads * head_dim, |row, values| {
        fill(row, values);
        let angles = row * width..(row + 1) * width;
        let (cos, sin) = (&cos[angles.clone()], &sin[angles]);
        for head in values.chunks_exact_mut(head_dim) {
            rotate(pool.level(), &mut head[..2 * width], pairs, cos, sin);
        }
    });
}

at_level! {
    fn rotate(head: &mut [f32], pairs: RopePairs, cos: &[f32], sin: &[f32]) = rotate_body;
}

#[inline(always)]
fn rotate_body(head: &mut [f32], pairs: RopePairs, cos: &[f32], sin: &[f32]) {
    let turned = |a: f32, b: f32, c: f32, s: f32| (a.mul_add(c, -(b * s)), a.mul_add(s, b * c));
    match pairs {
        RopePairs::Interleaved => {
            for ((pair, c), s) in head.as_chunks_mut::<2>().0.iter_mut().zip(cos).zip(sin) {
                let (a, b) = turned(pair[0], pair[1], *c, *s);
                *pair = [a, b];
            }
        }
        RopePairs::Halves => {
            let (first, second) = head.split_at_mut(head.len() / 2);
            for (((a, b), c), s) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                (*a, *b) = turned(*a, *b, *c, *s);
            }
        }
    }
}
