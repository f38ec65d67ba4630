//! Pins: parts of the model that the user puts on a device by hand.

use std::str::FromStr;

use trefoil_devices_api::Phase;
use trefoil_graph::{LayerGraph, UnitId};
use wildmatch::WildMatch;

/// `GLOB=DEVICE`: units, or units of ops, whose names match run on the device.
#[derive(
    Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    /// Pattern on unit names (`blk.3.ffn`) and op names (`blk.3.ffn_down`); `*` and `?` as usual.
    #[serde(rename = "match")]
    pub pattern: String,
    /// Device name.
    pub device: String,
    /// Only in this phase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<crate::plan::PhaseForm>")]
    pub phase: Option<Phase>,
}

/// A pin that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("pin {got:?}: expected GLOB=DEVICE, such as 'blk.*.ffn=gpu0' or 'decode:blk.*=cpu0'")]
pub struct PinError {
    /// What came.
    pub got: String,
}

impl FromStr for Pin {
    type Err = PinError;

    /// `[prefill:|decode:]GLOB=DEVICE`.
    fn from_str(text: &str) -> Result<Self, PinError> {
        let error = || PinError { got: text.to_owned() };
        let (pattern, device) = text.rsplit_once('=').ok_or_else(error)?;
        let (phase, pattern) = match pattern.split_once(':') {
            Some(("prefill", rest)) => (Some(Phase::Prefill), rest),
            Some(("decode", rest)) => (Some(Phase::Decode), rest),
            Some(_) => return Err(error()),
            None => (None, pattern),
        };
        if pattern.is_empty() || device.is_empty() {
            return Err(error());
        }
        Ok(Self { pattern: pattern.to_owned(), device: device.to_owned(), phase })
    }
}

impl Pin {
    /// Does the pin hold for a unit in a phase?
    pub fn holds(&self, graph: &LayerGraph, unit: UnitId, phase: Phase) -> bool {
        self.phase.is_none_or(|only| only == phase) && self.matches(graph, unit)
    }

    /// Does the pattern match the unit's name or that of one of its ops?
    pub fn matches(&self, graph: &LayerGraph, unit: UnitId) -> bool {
        let pattern = WildMatch::new(&self.pattern);
        let unit = graph.unit(unit);
        pattern.matches(&unit.name())
            || unit.nodes.iter().any(|&node| pattern.matches(&graph.node(node).name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_read_and_refused() {
        let pin: Pin = "decode:blk.*.ffn=ref0".parse().expect("valid");
        assert_eq!(pin.phase, Some(Phase::Decode));
        assert_eq!((pin.pattern.as_str(), pin.device.as_str()), ("blk.*.ffn", "ref0"));
        for bad in ["blk.0", "=cpu0", "blk.0=", "later:blk.0=cpu0"] {
            assert!(bad.parse::<Pin>().is_err(), "{bad}");
        }
    }
}
