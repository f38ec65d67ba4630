//! Sizes in bytes as users write them.

use serde::{Deserialize, Serialize};
use trefoil_telemetry::Bytes;

/// Bytes, written as a number or as `512MiB`, `32GiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "String")]
pub struct Size(pub Bytes);

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "expected bytes as a number or a text such as \"512MiB\" or \"32GiB\""
)]
enum Written {
    Number(u64),
    Text(String),
}

impl TryFrom<Written> for Size {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        match written {
            Written::Number(bytes) => Ok(Self(Bytes(bytes))),
            Written::Text(text) => text.parse(),
        }
    }
}

impl std::fmt::Display for Size {
    /// The exact number, in the largest unit of which it is a multiple.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bytes = self.0.0;
        let fits = |(_, shift): &&(&str, u32)| bytes > 0 && bytes.is_multiple_of(1 << *shift);
        match UNITS.iter().rev().find(fits) {
            Some((name, shift)) => write!(f, "{}{name}", bytes >> shift),
            None => write!(f, "{bytes}"),
        }
    }
}

impl From<Size> for String {
    fn from(size: Size) -> Self {
        size.to_string()
    }
}

const UNITS: [(&str, u32); 4] = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40)];

impl std::str::FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = UNITS.iter().find_map(|(name, shift)| {
            text.strip_suffix(name).map(|number| (number, 1u64 << shift))
        });
        let (number, unit) = found.unwrap_or((text, 1));
        match number.trim().parse::<f64>() {
            Ok(number) if number >= 0.0 && number * (unit as f64) < 1e18 => {
                Ok(Self(Bytes((number * unit as f64) as u64)))
            }
            _ => Err(format!("expected a size such as 512MiB or 32GiB, got {text:?}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_refused() {
        assert_eq!("1.5GiB".parse(), Ok(Size(Bytes(3 << 29))));
        assert_eq!("4096".parse(), Ok(Size(Bytes(4096))));
        for text in ["0", "1000", "5KiB", "1536MiB", "32GiB"] {
            assert_eq!(text.parse::<Size>().expect("a size").to_string(), text);
        }
        for bad in ["", "GiB", "-1MiB", "1e300GiB", "7 parsecs", "NaN"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
    }
}
