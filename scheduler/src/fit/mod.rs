//! From measurements to a profile and corrections: a pure function of what was measured.
//!
//! Launch and hand-off are the slope and the start of the line through the times of chains of tiny
//! ops. Rates and bandwidths are those that the ops attained without their launch. What single ops and
//! units took beyond that stays in the corrections: a regression per class for shapes that were not
//! measured, and factors for those that were.

mod device;
mod robust;
mod samples;

use trefoil_telemetry::Bytes;

pub use robust::median;
pub use samples::{
    ChainSample, DeviceSamples, DomainFacts, LayerSample, LinkSample, Measurements, OpSample,
    PairSample, Part, UnitSample,
};

use crate::cost::Corrections;
use crate::profile::{
    Bandwidth, CoRun, DomainProfile, LinkProfile, Profile, ProfileError, Seconds, Share, Watts,
};
use crate::size::Size;
use device::{DeviceFit, bounded};
use robust::line;

/// Name of the profile of the machine that was measured.
pub const THIS_MACHINE: &str = "this-machine";

/// What measurements say of a machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Fitted {
    /// Its numbers.
    pub profile: Profile,
    /// What its ops and units took beyond them.
    pub corrections: Corrections,
}

/// Measurements that no profile can be made of.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum FitError {
    /// A device without a single product with weights.
    #[error("{device}: expected measured products with weights, got none; run `trefoil calibrate`")]
    NoProducts {
        /// The device.
        device: String,
    },
    /// A time that is not above zero.
    #[error("{device}: {what}: expected a time above 0, got {got}")]
    Time {
        /// The device.
        device: String,
        /// What was measured.
        what: String,
        /// The time.
        got: f64,
    },
    /// Two domains without copies between them.
    #[error("copies from {from} to {to}: expected measured times, got none")]
    NoLink {
        /// Source.
        from: String,
        /// Target.
        to: String,
    },
    /// Names that do not fit together.
    #[error(transparent)]
    Profile(#[from] ProfileError),
}

/// Makes a profile and corrections. The same measurements give the same result.
pub fn fit(measured: &Measurements) -> Result<Fitted, FitError> {
    let mut corrections = Corrections::default();
    let mut devices = Vec::with_capacity(measured.devices.len());
    for samples in &measured.devices {
        devices.push(DeviceFit::new(samples)?.finish(&mut corrections));
    }
    let domains = measured.domains.iter().map(|domain| {
        let users = devices.iter().filter(|device| device.domain == domain.name);
        let attained = users.map(|device| device.memory.bandwidth.get());
        let read = measured.devices.iter().filter(|device| device.domain == domain.name);
        let most = attained.chain(read.filter_map(|device| device.read)).fold(1e9, f64::max);
        DomainProfile {
            name: domain.name.clone(),
            size: Size(Bytes(domain.bytes)),
            usable: bounded::<Share>(domain.usable, 0.0, 1.0),
            bandwidth: bounded::<Bandwidth>(most, 1e7, 1e14),
            source: "size as the system tells; bandwidth: the most that a device attained"
                .to_owned(),
        }
    });
    let profile = Profile {
        name: THIS_MACHINE.to_owned(),
        title: "this machine, as `trefoil calibrate` measured it".to_owned(),
        base_power: bounded::<Watts>(0.0, 0.0, 5000.0),
        base_power_source: "not measured: counted as 0".to_owned(),
        domains: domains.collect(),
        links: links(measured)?,
        co_run: measured.pairs.iter().map(co_run).collect(),
        devices,
        machines: Vec::new(),
        published: Vec::new(),
    };
    profile.check()?;
    Ok(Fitted { profile, corrections })
}

fn co_run(pair: &PairSample) -> CoRun {
    let share = |keep: f64| bounded::<Share>(keep, 0.05, 1.0);
    let [a, b] = pair.devices.clone();
    CoRun {
        devices: (a, b),
        keep: (share(pair.keep[0]), share(pair.keep[1])),
        source: format!("measured on {}: both at once against each alone", pair.date),
    }
}

/// A link per ordered pair of domains; those that no device copies between go through the host.
fn links(measured: &Measurements) -> Result<Vec<LinkProfile>, FitError> {
    let names: Vec<&str> = measured.domains.iter().map(|domain| domain.name.as_str()).collect();
    let direct = |from: &str, to: &str| {
        let samples = measured.links.iter().filter(|link| link.from == from && link.to == to);
        let points: Vec<(f64, f64)> = samples.map(|link| (link.bytes, link.seconds)).collect();
        let (latency, per_byte) = line(&points)?;
        // A line that falls tells that all is latency: the fastest copy bounds the speed.
        let fastest = points.iter().map(|(bytes, seconds)| bytes / seconds).fold(1e7, f64::max);
        let rate = if per_byte > 0.0 { 1.0 / per_byte } else { fastest };
        Some((latency.max(0.0), rate, points.len()))
    };
    let mut links = Vec::new();
    for &from in &names {
        for &to in names.iter().filter(|&&to| to != from) {
            let (latency, rate, source) = match direct(from, to) {
                Some((latency, rate, count)) => {
                    (latency, rate, format!("measured with {count} sizes of copies"))
                }
                None => {
                    let host = names[0];
                    let [first, then] = [direct(from, host), direct(host, to)];
                    let (Some(first), Some(then)) = (first, then) else {
                        let (from, to) = (from.to_owned(), to.to_owned());
                        return Err(FitError::NoLink { from, to });
                    };
                    let rate = 1.0 / (1.0 / first.1 + 1.0 / then.1);
                    (first.0 + then.0, rate, format!("through {host}, as its halves were measured"))
                }
            };
            links.push(LinkProfile {
                from: from.to_owned(),
                to: to.to_owned(),
                bandwidth: bounded::<Bandwidth>(rate, 1e7, 1e14),
                latency: bounded::<Seconds>(latency, 0.0, 10.0),
                source,
            });
        }
    }
    Ok(links)
}

#[cfg(test)]
mod tests;
