//! The one way in which sums over a row are made: sixteen partial sums, element `i` in number
//! `i % 16`, then halves added to halves. Every level and every tile shape follows it, which makes a
//! row's result independent of them.

/// Partial sums.
pub(super) const LANES: usize = 16;

/// Adds the partial sums: 8 + 8, 4 + 4, 2 + 2, 1 + 1.
#[inline(always)]
pub(super) fn total(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// The greatest of the lanes (not-a-number is passed over).
#[inline(always)]
pub(super) fn greatest(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = lanes[i].max(lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// `sum of f(x)` in the fixed order; elements beyond a whole sixteen go to the first lanes.
#[inline(always)]
pub(super) fn sum_by(x: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (whole, rest) = x.as_chunks::<LANES>();
    for chunk in whole {
        for i in 0..LANES {
            lanes[i] = f(chunk[i], lanes[i]);
        }
    }
    for (lane, &v) in lanes.iter_mut().zip(rest) {
        *lane = f(v, *lane);
    }
    total(lanes)
}
