//! What a product costs that several devices compute together.

use trefoil_graph::{NodeIndex, StepShape};

use crate::cost::{Cost, CostModel, Refused};
use crate::profile::{DeviceProfile, LinkProfile, Profile};

/// A product with its devices' shares, in a step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SplitWork<'a> {
    pub(crate) model: CostModel<'a>,
    pub(crate) node: NodeIndex,
    /// Device of the unit: it gets the whole result.
    pub(crate) home: &'a DeviceProfile,
    pub(crate) step: &'a StepShape,
}

impl<'a> SplitWork<'a> {
    fn link(&self, from: &str, to: &str) -> Option<&'a LinkProfile> {
        self.model.profile.links.iter().find(|link| link.from == from && link.to == to)
    }

    /// Seconds of the whole product on a device beyond its launch.
    pub(crate) fn alone(&self, device: &DeviceProfile) -> Result<f64, Refused> {
        let cost = self.model.op(device, self.node, self.step)?;
        Ok((cost.seconds - device.launch.get()).max(0.0))
    }

    /// Seconds in which a device that works beside others does its part of the product, and those that
    /// it takes before and after whatever its part is. `None` without a link.
    pub(crate) fn times(
        &self,
        device: &DeviceProfile,
        others: &[&DeviceProfile],
    ) -> Result<Option<(f64, f64)>, Refused> {
        let keeps: f64 = others
            .iter()
            .map(|other| self.model.profile.keeps(&device.name, &other.name))
            .product();
        let mut part = self.alone(device)? / keeps.max(1e-3);
        let mut fixed = device.handoff.get() + device.launch.get();
        if device.domain != self.home.domain {
            let graph = self.model.graph;
            let read: u64 = graph
                .inputs(self.node)
                .into_iter()
                .map(|n| graph.node(n).shape.bytes(self.step))
                .sum();
            let made = graph.node(self.node).shape.bytes(self.step);
            let ways = [
                self.link(&self.home.domain, &device.domain),
                self.link(&device.domain, &self.home.domain),
            ];
            let [Some(there), Some(back)] = ways else { return Ok(None) };
            fixed += there.latency.get() + read as f64 / there.bandwidth.get() + back.latency.get();
            part += made as f64 / back.bandwidth.get();
        }
        Ok(Some((part, fixed)))
    }

    /// Cost of the product with these shares of its rows (from 0 to 1, together 1), joined where the
    /// unit's device has its tensors. Devices that read one domain's DRAM together get no more of it
    /// than there is. `None` without a link.
    pub(crate) fn cost(&self, shares: &[(&DeviceProfile, f64)]) -> Result<Option<Cost>, Refused> {
        let profile = self.model.profile;
        let graph = self.model.graph;
        let (mut slowest, mut busy_joules) = (0.0f64, 0.0);
        for (index, &(device, share)) in shares.iter().enumerate() {
            let others = shares.iter().enumerate().filter(|(other, _)| *other != index);
            let others: Vec<&DeviceProfile> = others.map(|(_, (device, _))| *device).collect();
            let Some((part, fixed)) = self.times(device, &others)? else { return Ok(None) };
            slowest = slowest.max(fixed + share * part);
            let watts = device.power.busy.get() - device.power.idle.get();
            busy_joules += share * part * watts.max(0.0);
        }
        let weights = graph.node(self.node).op.weights();
        let bytes: f64 = weights.iter().map(|weight| weight.len_bytes() as f64).sum();
        for domain in &profile.domains {
            let read = shares.iter().filter(|(device, _)| device.domain == domain.name);
            let read: f64 = read.map(|(_, share)| share * bytes).sum();
            slowest = slowest.max(read / domain.bandwidth.get());
        }
        // Each part becomes columns of the result by a copy of its own; what follows is a new start.
        let made = graph.node(self.node).shape.bytes(self.step) as f64;
        let memory = &self.home.memory;
        let rate = memory.activation_bandwidth.unwrap_or(memory.bandwidth);
        let joins = (shares.len() as f64 + 1.0) * self.home.handoff.get() + 2.0 * made / rate.get();
        let seconds = slowest + joins;
        Ok(Some(Cost { seconds, joules: seconds * waiting_watts(profile) + busy_joules }))
    }
}

/// Power of a machine that waits.
pub(crate) fn waiting_watts(profile: &Profile) -> f64 {
    let idle = profile.devices.iter().map(|device| device.power.idle.get());
    profile.base_power.get() + idle.sum::<f64>()
}
