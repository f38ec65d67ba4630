//! Estimates that a few odd times do not move.

/// The middle value, which a few odd times do not move, or the mean of the two in the middle; `None` of nothing.
pub fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        count if count % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

/// A line `y = start + slope * x` through points by Theil and Sen: the median of the slopes of all
/// pairs, and the median of what it leaves. `None` without two different `x`.
pub(super) fn line(points: &[(f64, f64)]) -> Option<(f64, f64)> {
    let mut slopes = Vec::new();
    for (index, (x0, y0)) in points.iter().enumerate() {
        for (x1, y1) in points[index + 1..].iter().filter(|(x1, _)| x1 != x0) {
            slopes.push((y1 - y0) / (x1 - x0));
        }
    }
    let slope = median(&mut slopes)?;
    let mut starts: Vec<f64> = points.iter().map(|(x, y)| y - slope * x).collect();
    Some((median(&mut starts)?, slope))
}

/// The geometric mean of values above zero, by weight; `None` of nothing.
pub(super) fn weighted_mean(values: &[(f64, f64)]) -> Option<f64> {
    let all: f64 = values.iter().map(|(_, weight)| weight).sum();
    let sum: f64 = values.iter().map(|(value, weight)| value.ln() * weight).sum();
    (all > 0.0).then(|| (sum / all).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_times_do_not_move_the_estimates() {
        assert_eq!(median(&mut [5.0, 1.0, 3.0]), Some(3.0));
        assert_eq!(median(&mut [4.0, 2.0]), Some(3.0));
        assert_eq!(median(&mut []), None);
        let mut points: Vec<(f64, f64)> =
            (0..9).map(f64::from).map(|x| (x, 2.0 + 3.0 * x)).collect();
        points[4].1 = 100.0;
        let (start, slope) = line(&points).expect("enough");
        assert!((start - 2.0).abs() < 1e-9 && (slope - 3.0).abs() < 1e-9, "{start} {slope}");
        assert_eq!(line(&[(1.0, 1.0), (1.0, 2.0)]), None);
        let mean = weighted_mean(&[(1.0, 1.0), (100.0, 1.0)]).expect("some");
        assert!((mean - 10.0).abs() < 1e-9);
    }
}
