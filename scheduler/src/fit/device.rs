//! One device's numbers from its samples.

use std::collections::BTreeMap;

use trefoil_graph::BlockType;

use super::FitError;
use super::robust::{line, weighted_mean};
use super::samples::{DeviceSamples, OpSample, Part, UnitSample};
use crate::cost::{Corrections, Local, LocalPoint, OpClass, Residual, Roof, in_layer};
use crate::profile::{
    Bandwidth, Compute, DeviceProfile, MemoryPort, OpRate, Power, Seconds, Share, Watts,
};

/// Samples of a class below which a regression would say more than it knows.
const LEAST_FOR_REGRESSION: usize = 12;
/// How strongly its coefficients are held near zero.
const PENALTY: f64 = 1.0;
/// The regression sees no ratio farther from 1 than it may answer.
const MOST_RATIO: f64 = 3.0;
/// Of the rate on products: what other arithmetic is believed to attain until it is measured.
const UNMEASURED: f64 = 0.1;
/// Ops that are nearly all launch tell nothing of rates.
const LEAST_OF_WORK: f64 = 0.3;
/// Share of an op's time that is work at least: launches differ a little from op to op.
const LEAST_SHARE: f64 = 0.05;

/// A number within its range.
pub(super) fn bounded<T: TryFrom<f64, Error = String>>(value: f64, least: f64, most: f64) -> T {
    let value = if value.is_finite() { value.clamp(least, most) } else { least };
    T::try_from(value).expect("the range is that of the type, or within it")
}

fn op_rate(value: f64) -> OpRate {
    bounded(value, 1e7, 1e16)
}

fn bandwidth(value: f64) -> Bandwidth {
    bounded(value, 1e7, 1e14)
}

/// A device being fitted.
pub(super) struct DeviceFit<'a> {
    samples: &'a DeviceSamples,
    launch: f64,
    /// Seconds of work in a segment that has nothing to do.
    start: f64,
}

impl<'a> DeviceFit<'a> {
    pub(super) fn new(samples: &'a DeviceSamples) -> Result<Self, FitError> {
        let ops = samples.ops.iter().map(|op| (op.part.signature.as_str(), op.seconds));
        let units = samples.units.iter().map(|unit| (unit.signature.as_str(), unit.seconds));
        let layers = samples.layers.iter().map(|layer| ("layers", layer.seconds));
        let chains = samples.chains.iter().map(|chain| ("launches", chain.seconds));
        for (what, got) in ops.chain(units).chain(layers).chain(chains) {
            if !(got.is_finite() && got > 0.0) {
                let (device, what) = (samples.name.clone(), what.to_owned());
                return Err(FitError::Time { device, what, got });
            }
        }
        if !samples.ops.iter().any(|op| op.part.class == OpClass::Linear) {
            return Err(FitError::NoProducts { device: samples.name.clone() });
        }
        let chains: Vec<(f64, f64)> =
            samples.chains.iter().map(|chain| (f64::from(chain.ops), chain.seconds)).collect();
        let (start, launch) = line(&chains).unwrap_or_default();
        Ok(Self { samples, launch: launch.clamp(0.0, 1.0), start: start.clamp(0.0, 1.0) })
    }

    /// Seconds of one of `count` pieces of work in a segment.
    fn each(&self, seconds: f64, count: u32) -> f64 {
        (seconds - self.start).max(LEAST_SHARE * seconds) / f64::from(count.max(1))
    }

    /// Seconds of an op without its launch.
    fn work(&self, op: &OpSample) -> f64 {
        let each = self.each(op.seconds, op.count);
        (each - self.launch).max(LEAST_SHARE * each)
    }

    /// The most of `amount` per second that ops of a class attained; those that are mostly launch
    /// count only if there are no others.
    fn attained(&self, class: OpClass, amount: impl Fn(&OpSample) -> f64) -> Option<f64> {
        let of_class = || self.samples.ops.iter().filter(|op| op.part.class == class);
        let all = |op: &&OpSample| amount(op) > 0.0;
        let telling = |op: &&OpSample| {
            // Beyond the start, and of that beyond the launch.
            let each = self.each(op.seconds, op.count);
            let beyond = op.seconds - self.start > LEAST_OF_WORK * op.seconds;
            all(op) && beyond && self.work(op) > LEAST_OF_WORK * each
        };
        let most = |ops: &mut dyn Iterator<Item = &OpSample>| {
            ops.map(|op| amount(op) / self.work(op)).max_by(f64::total_cmp)
        };
        most(&mut of_class().filter(telling)).or_else(|| most(&mut of_class().filter(all)))
    }

    /// The device's numbers; adds its corrections to those of all.
    pub(super) fn finish(self, corrections: &mut Corrections) -> DeviceProfile {
        let mut profile = self.profile();
        profile.compute.experts = self.experts(&profile);
        let name = self.samples.name.clone();
        // Not of attention: over pasts its times go straight, and logarithms of them do not.
        for class in [OpClass::Linear, OpClass::Experts, OpClass::Elementwise] {
            if let Some(residual) = self.residual(&profile, class) {
                corrections.set_residual(&name, class, residual);
            }
        }
        self.set_locals(&profile, corrections);
        profile
    }

    fn profile(&self) -> DeviceProfile {
        let samples = self.samples;
        let source = format!("measured on {} with {} samples", samples.date, samples.count());
        // Bytes come fastest where few rows share them; many rows are bound by arithmetic.
        let stream = self.attained(OpClass::Linear, |op| op.part.work.weight_bytes);
        let stream = stream.unwrap_or(1e9);
        let kv = self.attained(OpClass::Attention, |op| {
            op.part.work.kv_read_bytes + op.part.work.kv_write_bytes
        });
        let activations = self.attained(OpClass::Elementwise, |op| {
            op.part.work.read_bytes + op.part.work.write_bytes
        });
        let other = |class| self.attained(class, |op| op.part.work.other_flops);
        let (weights, rows_of, rows) = self.rates();
        // Where they were not measured, a share of what products attain.
        let usual = UNMEASURED * weights["other"].get();
        let elementwise = other(OpClass::Elementwise).unwrap_or(usual);
        let peak = weights.values().map(|rate| rate.get()).fold(1e7, f64::max);
        let watts = samples.watts.unwrap_or(0.0);
        DeviceProfile {
            name: samples.name.clone(),
            kind: samples.kind,
            product: samples.product.clone(),
            domain: samples.domain.clone(),
            addresses: Vec::new(),
            compute: Compute {
                peak: op_rate(peak),
                weights,
                rows,
                rows_of,
                experts: None,
                attention: op_rate(other(OpClass::Attention).unwrap_or(elementwise)),
                elementwise: op_rate(elementwise),
                source: format!("{source}; the peak is the most that was attained"),
            },
            memory: MemoryPort {
                bandwidth: bandwidth(stream),
                kv_bandwidth: kv.map(bandwidth),
                activation_bandwidth: activations.map(bandwidth),
                source: source.clone(),
            },
            launch: bounded::<Seconds>(self.launch, 0.0, 10.0),
            handoff: bounded::<Seconds>(self.start + samples.outside, 0.0, 10.0),
            launch_source: format!("{source}, {} of them chains of tiny ops", samples.chains.len()),
            power: Power {
                idle: bounded::<Watts>(0.0, 0.0, 5000.0),
                busy: bounded::<Watts>(watts, 0.0, 5000.0),
                source: match samples.watts {
                    Some(_) => {
                        "as the device told while it was measured; idle not known".to_owned()
                    }
                    None => "not measured: the device does not tell; counted as 0".to_owned(),
                },
            },
            static_rows: None,
            weight_copy: None,
            refuses: samples.refuses.clone(),
        }
    }

    /// Rates on products with weights: by format at the best number of rows, and the share of it that
    /// each number of rows attains, by format and of all.
    #[expect(clippy::type_complexity, reason = "as the profile has them")]
    fn rates(
        &self,
    ) -> (BTreeMap<String, OpRate>, BTreeMap<String, Vec<(f64, Share)>>, Vec<(f64, Share)>) {
        // By format and rows: what each op attained, with the weight of its size.
        let mut attained: BTreeMap<String, BTreeMap<u64, Vec<(f64, f64)>>> = BTreeMap::new();
        for op in self.samples.ops.iter().filter(|op| op.part.class == OpClass::Linear) {
            let Some(format) = op.part.format.clone() else { continue };
            // A format that profiles do not know counts as other.
            let known = BlockType::from_name(&format).is_some();
            let format = if known { format } else { "other".to_owned() };
            let flops = op.part.work.weight_flops;
            if flops > 0.0 {
                let rows = attained.entry(format).or_default();
                let at = rows.entry(op.part.weight_rows.max(1.0).to_bits()).or_default();
                at.push((flops / self.work(op), flops));
            }
        }
        let (mut weights, mut rows_of) = (BTreeMap::new(), BTreeMap::new());
        let mut all: BTreeMap<u64, Vec<(f64, f64)>> = BTreeMap::new();
        for (format, rows) in attained {
            let rates: Vec<(u64, f64)> = rows
                .iter()
                .filter_map(|(rows, values)| Some((*rows, weighted_mean(values)?)))
                .collect();
            let best = rates.iter().map(|(_, rate)| *rate).fold(1e7, f64::max);
            let shares: Vec<(f64, Share)> = rates
                .iter()
                .map(|(rows, rate)| (f64::from_bits(*rows), bounded(rate / best, 1e-6, 1.0)))
                .collect();
            for (rows, share) in &shares {
                all.entry(rows.to_bits()).or_default().push((share.get(), 1.0));
            }
            weights.insert(format.clone(), op_rate(best));
            rows_of.insert(format, shares);
        }
        let rows = all.iter().filter_map(|(rows, shares)| {
            Some((f64::from_bits(*rows), bounded::<Share>(weighted_mean(shares)?, 1e-6, 1.0)))
        });
        let rows: Vec<(f64, Share)> = rows.collect();
        if !weights.contains_key("other") {
            let known: Vec<(f64, f64)> =
                weights.values().map(|r: &OpRate| (r.get(), 1.0)).collect();
            weights.insert("other".to_owned(), op_rate(weighted_mean(&known).unwrap_or(1e9)));
        }
        let rows = if rows.is_empty() { vec![(1.0, bounded(1.0, 0.0, 1.0))] } else { rows };
        (weights, rows_of, rows)
    }

    /// What is left of the rate on products when rows are gathered for experts.
    fn experts(&self, profile: &DeviceProfile) -> Option<Share> {
        let of_class = self.samples.ops.iter().filter(|op| op.part.class == OpClass::Experts);
        let shares = of_class.map(|op| (roof(profile, &op.part).seconds() / self.work(op), 1.0));
        let shares: Vec<(f64, f64)> = shares.collect();
        Some(bounded(weighted_mean(&shares)?, 0.01, 1.0))
    }

    fn residual(&self, profile: &DeviceProfile, class: OpClass) -> Option<Residual> {
        let of_class = self.samples.ops.iter().filter(|op| op.part.class == class);
        let samples = of_class.map(|op| {
            let ratio = self.work(op) / roof(profile, &op.part).seconds().max(1e-12);
            (op.part.weight_rows, op.part.work, ratio.clamp(1.0 / MOST_RATIO, MOST_RATIO))
        });
        let samples: Vec<_> = samples.collect();
        // Too few say nothing beyond the rates.
        (samples.len() >= LEAST_FOR_REGRESSION).then(|| Residual::fit(&samples, PENALTY).ok())?
    }

    /// Factors of the ops and units that were measured.
    fn set_locals(&self, profile: &DeviceProfile, corrections: &mut Corrections) {
        let name = &self.samples.name;
        let mut points: BTreeMap<&str, Vec<LocalPoint>> = BTreeMap::new();
        for op in &self.samples.ops {
            let predicted = predict(profile, corrections, &op.part, op.past);
            let measured = self.each(op.seconds, op.count);
            let point = LocalPoint { rows: op.part.rows, past: op.past, measured, predicted };
            points.entry(&op.part.signature).or_default().push(point);
        }
        for (signature, points) in points {
            corrections.set_local(name, signature.to_owned(), Local::new(&points));
        }
        let mut points: BTreeMap<&str, Vec<LocalPoint>> = BTreeMap::new();
        for unit in &self.samples.units {
            let parts =
                unit.parts.iter().map(|part| predict(profile, corrections, part, unit.past));
            let (measured, predicted) = (self.each(unit.seconds, unit.count), parts.sum::<f64>());
            let point = LocalPoint { rows: unit.tokens, past: unit.past, measured, predicted };
            points.entry(&unit.signature).or_default().push(point);
        }
        for (signature, points) in points {
            corrections.set_local(name, signature.to_owned(), Local::new(&points));
        }
        // Units next to each other in one program may share launches and what is in a cache. Layers of
        // different models differ in that.
        let mut points: BTreeMap<String, Vec<LocalPoint>> = BTreeMap::new();
        for layer in &self.samples.layers {
            let unit = |unit: &UnitSample| {
                let parts = unit.parts.iter();
                let parts = parts.map(|part| predict(profile, corrections, part, unit.past));
                let together =
                    corrections.local(name, || unit.signature.clone(), unit.tokens, unit.past);
                parts.sum::<f64>() * together * f64::from(unit.count)
            };
            let predicted = layer.units.iter().map(unit).sum();
            let measured = self.each(layer.seconds, 1);
            let (rows, past) = (layer.tokens, layer.past);
            for unit in &layer.units {
                let points = points.entry(in_layer(&unit.signature)).or_default();
                points.push(LocalPoint { rows, past, measured, predicted });
            }
        }
        for (signature, points) in points {
            corrections.set_local(name, signature, Local::new(&points));
        }
    }
}

fn roof(profile: &DeviceProfile, part: &Part) -> Roof {
    let block = part.format.as_deref().and_then(BlockType::from_name);
    Roof::of_work(profile, (part.class, block, 1.0), &part.work, part.weight_rows)
}

/// Seconds of an op, as the cost model has them.
fn predict(profile: &DeviceProfile, corrections: &Corrections, part: &Part, past: f64) -> f64 {
    let name = &profile.name;
    let residual = corrections.residual(name, part.class);
    let learned = residual.map_or(1.0, |residual| residual.factor(part.weight_rows, &part.work));
    let local = corrections.local(name, || part.signature.clone(), part.rows, past);
    ((profile.launch.get() + roof(profile, part).seconds() * learned) * local).max(1e-12)
}
