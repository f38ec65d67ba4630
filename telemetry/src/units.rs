//! Numbers with their unit in the type.

use std::fmt;

/// A number of bytes.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(transparent)]
pub struct Bytes(pub u64);

impl Bytes {
    /// Bytes of `n` things of `size` bytes each, `None` if that overflows.
    pub fn of(n: u64, size: u64) -> Option<Self> {
        n.checked_mul(size).map(Self)
    }
}

impl From<usize> for Bytes {
    fn from(bytes: usize) -> Self {
        Self(bytes as u64)
    }
}

impl std::ops::Add for Bytes {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }
}

impl std::iter::Sum for Bytes {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        Self(iter.map(|bytes| bytes.0).sum())
    }
}

impl fmt::Display for Bytes {
    /// Binary multiples, as memory is counted: `512 B`, `1.5 KiB`, `23.5 GiB`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
        let mut value = self.0 as f64;
        let mut unit = 0;
        while value >= 1024.0 && unit + 1 < NAMES.len() {
            value /= 1024.0;
            unit += 1;
        }
        if unit == 0 {
            return write!(f, "{} B", self.0);
        }
        write!(f, "{value:.1} {}", NAMES[unit])
    }
}

/// A time span or a clock reading in nanoseconds.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(transparent)]
pub struct Nanos(pub u64);

impl Nanos {
    /// The span in seconds.
    pub fn seconds(self) -> f64 {
        self.0 as f64 * 1e-9
    }

    /// Time since `earlier`, 0 if that lies ahead.
    pub fn since(self, earlier: Self) -> Self {
        Self(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Display for Nanos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0..1_000 => write!(f, "{} ns", self.0),
            1_000..1_000_000 => write!(f, "{:.1} us", self.0 as f64 * 1e-3),
            1_000_000..1_000_000_000 => write!(f, "{:.1} ms", self.0 as f64 * 1e-6),
            _ => write!(f, "{:.2} s", self.seconds()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_read_well() {
        let bytes: Vec<_> = [0, 512, 1536, 1 << 30].map(|b| Bytes(b).to_string()).into();
        assert_eq!(bytes, ["0 B", "512 B", "1.5 KiB", "1.0 GiB"]);
        let times: Vec<_> =
            [7, 1_500, 2_000_000, 3_000_000_000].map(|t| Nanos(t).to_string()).into();
        assert_eq!(times, ["7 ns", "1.5 us", "2.0 ms", "3.00 s"]);
    }
}
