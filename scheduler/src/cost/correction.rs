//! What measurements say of the predictions, per device and class of op.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Local, OpClass, Residual};

/// A running mean of `ln(measured / predicted)` in which older measurements fade.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Correction {
    mean: f64,
    weight: f64,
}

/// What a measurement's weight falls to with each that follows.
const FADE: f64 = 0.95;
/// Measurements that the prediction itself stands for: a single odd one moves little.
const PRIOR: f64 = 3.0;
/// A single measurement counts as at most this factor off: a page fault is not a slower device.
const MOST: f64 = 4.0;

impl Correction {
    /// The state after one more measurement; times that are not above zero say nothing.
    #[must_use]
    pub fn with(self, predicted_seconds: f64, measured_seconds: f64) -> Self {
        let ratio = measured_seconds / predicted_seconds;
        if !(ratio.is_finite() && ratio > 0.0) {
            return self;
        }
        let weight = self.weight * FADE + 1.0;
        let ratio = ratio.clamp(1.0 / MOST, MOST).ln();
        Self { mean: self.mean + (ratio - self.mean) / weight, weight }
    }

    /// Factor on predictions.
    pub fn factor(self) -> f64 {
        (self.mean * self.weight / (self.weight + PRIOR)).exp()
    }
}

/// Corrections of all devices and classes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Corrections {
    online: BTreeMap<(String, OpClass), Correction>,
    residuals: BTreeMap<(String, OpClass), Residual>,
    /// By device: by signature of an op or unit.
    locals: BTreeMap<String, BTreeMap<String, Local>>,
}

impl Corrections {
    /// Learns from one measured time; the prediction must be the one without correction.
    pub fn observe(&mut self, device: &str, class: OpClass, predicted: f64, measured: f64) {
        let state = self.online.entry((device.to_owned(), class)).or_default();
        *state = state.with(predicted, measured);
    }

    /// Uses a regression on the residuals of a device and class.
    pub fn set_residual(&mut self, device: &str, class: OpClass, residual: Residual) {
        self.residuals.insert((device.to_owned(), class), residual);
    }

    /// Uses measurements of exactly one op or unit of a device ([`super::op_signature`],
    /// [`super::unit_signature`]).
    pub fn set_local(&mut self, device: &str, signature: String, local: Local) {
        self.locals.entry(device.to_owned()).or_default().insert(signature, local);
    }

    /// Factor of what was measured of exactly this op or unit; 1 where nothing was. The signature is
    /// made only where a device has any.
    pub fn local(
        &self,
        device: &str,
        signature: impl FnOnce() -> String,
        rows: f64,
        past: f64,
    ) -> f64 {
        let of_device = self.locals.get(device);
        let local = of_device.and_then(|locals| locals.get(&signature()));
        local.map_or(1.0, |local| local.factor(rows, past))
    }

    /// Forgets all of a device.
    pub fn forget(&mut self, device: &str) {
        self.online.retain(|(name, _), _| name != device);
        self.residuals.retain(|(name, _), _| name != device);
        self.locals.remove(device);
    }

    /// These corrections without what was learned while running.
    #[must_use]
    pub fn without_online(&self) -> Self {
        Self { online: BTreeMap::new(), ..self.clone() }
    }

    /// Factor on predictions of a device and class; 1 where nothing was measured.
    pub fn factor(&self, device: &str, class: OpClass) -> f64 {
        let known = |((name, of), _): &(&(String, OpClass), _)| name == device && *of == class;
        self.online.iter().find(known).map_or(1.0, |(_, correction)| correction.factor())
    }

    /// The regression of a device and class.
    pub fn residual(&self, device: &str, class: OpClass) -> Option<&Residual> {
        let known = |((name, of), _): &(&(String, OpClass), _)| name == device && *of == class;
        self.residuals.iter().find(known).map(|(_, residual)| residual)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_learns_a_lasting_factor_and_forgets_an_old_one() {
        let mut state = Correction::default();
        assert_eq!(state.factor(), 1.0);
        state = state.with(1.0, 100.0);
        assert!(state.factor() < 1.5, "one odd time moves little: {}", state.factor());
        for _ in 0..100 {
            state = state.with(2.0, 3.0);
        }
        assert!((state.factor() - 1.5).abs() < 0.08, "{}", state.factor());
        for _ in 0..100 {
            state = state.with(2.0, 1.0);
        }
        assert!((state.factor() - 0.5).abs() < 0.06, "{}", state.factor());
        for (predicted, measured) in [(0.0, 1.0), (1.0, 0.0), (1.0, f64::NAN), (-1.0, 1.0)] {
            assert_eq!(state.with(predicted, measured), state, "{predicted} {measured}");
        }
    }

    #[test]
    fn devices_and_classes_are_kept_apart() {
        let mut corrections = Corrections::default();
        for _ in 0..50 {
            corrections.observe("gpu0", OpClass::Linear, 1.0, 2.0);
        }
        assert!(corrections.factor("gpu0", OpClass::Linear) > 1.8);
        assert_eq!(corrections.factor("gpu0", OpClass::Attention), 1.0);
        assert_eq!(corrections.factor("cpu0", OpClass::Linear), 1.0);
    }
}
