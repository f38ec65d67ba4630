//! Numbers with a unit and the range in which they are believed: an absurd one is refused where it
//! is read, so that its line can be shown.

use serde::{Deserialize, Serialize};

macro_rules! bounded {
    ($($(#[$doc:meta])* $name:ident, $unit:literal, $least:literal, $most:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize, Deserialize)]
        #[serde(try_from = "f64", into = "f64")]
        pub struct $name(f64);

        impl $name {
            /// The number.
            pub fn get(self) -> f64 {
                self.0
            }

            /// Multiplies the number, within its range.
            pub fn scale(&mut self, factor: f64) {
                self.0 = (self.0 * factor).clamp($least, $most);
            }
        }

        impl TryFrom<f64> for $name {
            type Error = String;

            fn try_from(value: f64) -> Result<Self, String> {
                if ($least..=$most).contains(&value) {
                    return Ok(Self(value));
                }
                let (least, most): (f64, f64) = ($least, $most);
                Err(format!("expected {least:e} to {most:e} {}, got {value}", $unit))
            }
        }

        impl From<$name> for f64 {
            fn from(value: $name) -> f64 {
                value.0
            }
        }
    )*};
}

bounded! {
    /// Bytes per second.
    Bandwidth, "bytes per second", 1e7, 1e14;
    /// Operations per second; a multiply-add is two.
    OpRate, "operations per second", 1e7, 1e16;
    /// A cost in seconds.
    Seconds, "seconds", 0.0, 10.0;
    /// Watts.
    Watts, "watts", 0.0, 5000.0;
    /// A share.
    Share, "as a share", 0.0, 1.0;
    /// A factor on a measured number.
    Factor, "as a factor", 0.05, 20.0;
    /// Bytes that a stored weight takes.
    BytesPerWeight, "bytes per weight", 0.1, 8.0;
}
