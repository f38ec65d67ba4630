//! From a model, a machine and an objective to a placement problem.

use std::collections::BTreeMap;

use trefoil_devices_api::{Phase, streamed_bytes};
use trefoil_graph::ops::Op;
use trefoil_graph::{LayerGraph, NodeIndex, UnitId};
use trefoil_telemetry::Bytes;

use super::objective::{Prices, Use};
use super::{PlanRequest, PlannerError};
use crate::cost::{Cost, CostModel, Refused};
use crate::partition::{Budget, DeviceNode, Home, Instance, Mode, TensorEdge};
use crate::profile::{DeviceProfile, LinkProfile, ProcessorKind};

/// Predicted costs of everything that a placement can choose, before an objective prices them.
#[derive(Clone, Debug)]
pub(crate) struct Tables<'a> {
    pub(crate) model: CostModel<'a>,
    /// Devices that may be used.
    pub(crate) devices: Vec<&'a DeviceProfile>,
    pub(crate) uses: Vec<Use>,
    tensors: Vec<(TensorEdge, Vec<NodeIndex>)>,
    /// `[mode][unit][device]`: cost of a step, or why not.
    pub(crate) run: Vec<Vec<Vec<Result<Cost, Refused>>>>,
    /// `[mode][unit][device]`: what streaming the unit's weights from host memory adds; absent where
    /// they cannot be, or need not be. Empty if streaming is not looked at.
    pub(crate) stream: Vec<Vec<Vec<Option<Cost>>>>,
}

impl<'a> Tables<'a> {
    pub(crate) fn new(request: &PlanRequest<'a>, uses: Vec<Use>) -> Self {
        let model = CostModel {
            profile: request.profile,
            graph: request.graph,
            corrections: request.corrections,
        };
        let devices: Vec<&DeviceProfile> =
            request.profile.devices.iter().filter(|device| request.allows(&device.name)).collect();
        let units = 0..request.graph.units().len();
        let step_costs = |used: &Use| -> Vec<Vec<Result<Cost, Refused>>> {
            let of = |unit: usize| {
                let each = devices.iter().map(|device| {
                    let cost = model.unit(device, UnitId(unit), &used.step)?;
                    Ok(cost + results_to_host(&model, device, UnitId(unit), used))
                });
                each.collect()
            };
            units.clone().map(of).collect()
        };
        let run = uses.iter().map(step_costs).collect();
        Self { model, devices, uses, tensors: tensors(request.graph), run, stream: Vec::new() }
    }

    /// The same with weights that may be streamed while prompts are read.
    ///
    /// The copy of the next weights goes on while a device computes: a unit costs the longer of its
    /// copy and its work, the link's latency and a start. Only units of layers, which all rows pass, are
    /// worth it.
    pub(crate) fn with_streaming(mut self) -> Self {
        let profile = self.model.profile;
        let host = &profile.domains[0].name;
        let links: Vec<Option<&LinkProfile>> = self
            .devices
            .iter()
            .map(|device| {
                let away = device.domain != *host && !device.addresses.contains(host);
                let link = profile.links.iter().find(|l| l.from == *host && l.to == device.domain);
                link.filter(|_| away && device.weight_copy.is_none())
            })
            .collect();
        let cell = |mode: usize, unit: usize, device: usize| {
            let link = links[device]?;
            let run = self.run[mode][unit][device].as_ref().ok()?;
            let bytes = self.model.weight_bytes(self.devices[device], UnitId(unit)).0 as f64;
            let in_layer = self.model.graph.unit(UnitId(unit)).layer.is_some();
            if bytes == 0.0 || !in_layer || self.uses[mode].phase != Phase::Prefill {
                return None;
            }
            let copy = self.model.transfer(link, bytes);
            let hidden = run.seconds.min(bytes / link.bandwidth.get());
            // What is streamed is a run of its own.
            let start = self.model.handoff(self.devices[device]);
            Some(copy * ((copy.seconds - hidden) / copy.seconds) + start)
        };
        let (units, devices) = (self.model.graph.units().len(), self.devices.len());
        let of_mode = |mode: usize| -> Vec<Vec<Option<Cost>>> {
            (0..units).map(|unit| (0..devices).map(|d| cell(mode, unit, d)).collect()).collect()
        };
        let stream: Vec<_> = (0..self.uses.len()).map(of_mode).collect();
        if stream.iter().flatten().flatten().any(Option::is_some) {
            self.stream = stream;
        }
        self
    }

    /// Room for streamed weights in the memory of a device: two layers.
    fn streaming_room(&self) -> u64 {
        let graph = self.model.graph;
        let mut layers: BTreeMap<usize, Vec<UnitId>> = BTreeMap::new();
        for (index, unit) in graph.units().iter().enumerate() {
            if let Some(layer) = unit.layer {
                layers.entry(layer).or_default().push(UnitId(index));
            }
        }
        let bytes = layers.values().map(|units| streamed_bytes(graph, &graph.segment(units)));
        2 * bytes.max().unwrap_or(0) as u64
    }

    /// The least that the steps of a phase can take, every unit on the device best for it.
    pub(crate) fn least(&self, phase: Phase) -> Cost {
        let least = |costs: &[Result<Cost, Refused>], by: fn(&Cost) -> f64| {
            let costs = costs.iter().flatten().map(by);
            costs.min_by(f64::total_cmp).unwrap_or(0.0)
        };
        let modes = self.uses.iter().zip(&self.run).filter(|(used, _)| used.phase == phase);
        let of_mode = modes.map(|(used, units)| {
            let seconds = units.iter().map(|unit| least(unit, |cost| cost.seconds)).sum();
            let joules = units.iter().map(|unit| least(unit, |cost| cost.joules)).sum();
            Cost { seconds, joules } * used.steps
        });
        of_mode.sum()
    }

    /// The problem under an objective.
    pub(crate) fn instance(
        &self,
        request: &PlanRequest<'a>,
        prices: &Prices,
    ) -> Result<Instance, PlannerError> {
        let profile = request.profile;
        let nodes = self.devices.iter().map(|device| {
            let others = device.addresses.iter().map(|name| profile.domain_index(name));
            let domain = profile.domain_index(&device.domain);
            let mut addresses: Vec<usize> = others.chain([domain]).collect();
            addresses.sort_unstable();
            addresses.dedup();
            DeviceNode { name: device.name.clone(), domain, addresses }
        });
        let graph = request.graph;
        let mut instance = Instance {
            units: graph.units().iter().map(trefoil_graph::Unit::name).collect(),
            devices: nodes.collect(),
            domains: profile.domains.iter().map(|domain| domain.name.clone()).collect(),
            tensors: self.tensors.iter().map(|(edge, _)| edge.clone()).collect(),
            modes: self.modes(|used, cost| prices.of(used.phase, cost) * used.weight()),
            budgets: self.budgets(request),
            homes: Vec::new(),
        };
        let context = HomeContext { tables: self, request, prices, instance: &instance };
        instance.homes = (0..graph.units().len()).map(|unit| context.homes(UnitId(unit))).collect();
        if request.joint_phases {
            join_phases(&mut instance);
        }
        self.spare_npus(request, &mut instance);
        self.pin(request, prices, &mut instance)?;
        Ok(instance)
    }

    /// Modes with all costs priced.
    pub(crate) fn modes(&self, price: impl Fn(&Use, Cost) -> f64) -> Vec<Mode> {
        let profile = self.model.profile;
        let count = profile.domains.len();
        let mut links: Vec<Vec<Option<&LinkProfile>>> = vec![vec![None; count]; count];
        for link in &profile.links {
            links[profile.domain_index(&link.from)][profile.domain_index(&link.to)] = Some(link);
        }
        let mode = |(used, run): (&Use, &Vec<Vec<Result<Cost, Refused>>>)| Mode {
            name: format!("{} {}", used.phase.name(), used.step.tokens),
            run: run
                .iter()
                .map(|unit| {
                    unit.iter().map(|cost| cost.as_ref().ok().map(|&c| price(used, c))).collect()
                })
                .collect(),
            stream: Vec::new(),
            start: self.devices.iter().map(|d| price(used, self.model.handoff(d))).collect(),
            transfer: self
                .tensors
                .iter()
                .map(|(_, nodes)| {
                    let bytes: u64 = nodes
                        .iter()
                        .map(|&node| self.model.graph.node(node).shape.bytes(&used.step))
                        .sum();
                    let cell = |link: &Option<&LinkProfile>| {
                        link.map(|link| price(used, self.model.transfer(link, bytes as f64)))
                    };
                    links.iter().map(|row| row.iter().map(cell).collect()).collect()
                })
                .collect(),
        };
        let mut modes: Vec<Mode> = self.uses.iter().zip(&self.run).map(mode).collect();
        for ((mode, used), stream) in modes.iter_mut().zip(&self.uses).zip(&self.stream) {
            let cell = |cost: &Option<Cost>| cost.map(|cost| price(used, cost));
            mode.stream = stream.iter().map(|unit| unit.iter().map(cell).collect()).collect();
        }
        modes
    }

    /// What each domain holds for models, then what each device with its own copies may take.
    fn budgets(&self, request: &PlanRequest<'_>) -> Vec<Budget> {
        let room = working_room(request);
        let streaming_room = if self.stream.is_empty() { 0 } else { self.streaming_room() };
        let profile = request.profile;
        let domains = profile.domains.iter().map(|domain| {
            let usable = domain.size.0.0 as f64 * domain.usable.get();
            let most = request.memory_limits.get(&domain.name).map_or(usable as u64, |b| b.0);
            let own = self.devices.iter().filter(|device| device.domain == domain.name);
            let streams = own.filter(|device| self.streams_to(&device.name)).count() as u64;
            let gpus = self.devices.iter().filter(|device| device.domain == domain.name);
            let gpus = gpus.filter(|device| device.kind == ProcessorKind::Gpu).count() as u64;
            let room = room.0 + streams * streaming_room + gpus * unpacking_room(request).0;
            let bytes = most.min(usable as u64).saturating_sub(request.reserve.0 + room);
            Budget { name: domain.name.clone(), bytes }
        });
        let copies = self.copies().map(|(device, most)| {
            let size = profile.domains[profile.domain_index(&device.domain)].size.0.0 as f64;
            Budget { name: format!("{}'s own copies", device.name), bytes: (size * most) as u64 }
        });
        domains.chain(copies).collect()
    }

    /// Can weights be streamed to a device?
    fn streams_to(&self, name: &str) -> bool {
        let device = self.devices.iter().position(|device| device.name == name);
        let cells = self.stream.iter().flatten();
        device.is_some_and(|device| cells.into_iter().any(|unit| unit[device].is_some()))
    }

    fn copies(&self) -> impl Iterator<Item = (&'a DeviceProfile, f64)> + '_ {
        let devices = self.devices.iter();
        devices.filter_map(|&device| Some((device, device.weight_copy.as_ref()?.most.get())))
    }

    /// Keeps NPUs out of prompts that are too short for them.
    fn spare_npus(&self, request: &PlanRequest<'_>, instance: &mut Instance) {
        let short = |used: &Use| {
            used.phase == Phase::Prefill && used.step.tokens < request.min_npu_prompt_tokens
        };
        let modes = instance.modes.iter_mut().zip(&self.uses);
        for (mode, _) in modes.filter(|(_, used)| short(used)) {
            for row in &mut mode.run {
                for (cost, device) in row.iter_mut().zip(&self.devices) {
                    *cost = cost.filter(|_| device.kind != ProcessorKind::Npu);
                }
            }
        }
    }

    /// Keeps only the pinned device where a pin holds; the first that matches wins.
    fn pin(
        &self,
        request: &PlanRequest<'_>,
        prices: &Prices,
        instance: &mut Instance,
    ) -> Result<(), PlannerError> {
        for unit in 0..instance.units.len() {
            for (mode, used) in self.uses.iter().enumerate() {
                let mut pins = request.pins.iter();
                let held = |pin: &&crate::Pin| pin.holds(request.graph, UnitId(unit), used.phase);
                let Some(pin) = pins.find(held) else { continue };
                let device = self.devices.iter().position(|device| device.name == pin.device);
                let device = device.expect("names of pins were checked");
                match &self.run[mode][unit][device] {
                    Ok(cost) => {
                        let price = prices.of(used.phase, *cost) * used.weight();
                        let row = &mut instance.modes[mode].run[unit];
                        row.fill(None);
                        row[device] = Some(price);
                    }
                    Err(_) if request.relax_pins => {}
                    Err(refused) => {
                        return Err(PlannerError::Pin {
                            pattern: pin.pattern.clone(),
                            device: pin.device.clone(),
                            unit: instance.units[unit].clone(),
                            why: refused.to_string(),
                        });
                    }
                }
            }
        }
        Ok(())
    }
}

/// Makes every home one of a single device: the unit then runs there in all modes.
fn join_phases(instance: &mut Instance) {
    for homes in &mut instance.homes {
        let split = homes.iter().flat_map(|home| {
            let common = home.devices.iter().fold(u32::MAX, |all, set| all & set);
            let devices = (0..u32::BITS).map(|bit| 1 << bit).filter(move |bit| common & bit != 0);
            devices.map(|one| Home {
                devices: vec![one; home.devices.len()],
                streams: Vec::new(),
                ..home.clone()
            })
        });
        *homes = split.collect();
    }
}

/// Memory for tensors between units and for programs' own use: ten of the largest tensors.
fn working_room(request: &PlanRequest<'_>) -> Bytes {
    let graph = request.graph;
    let largest = |bucket: &trefoil_devices_api::Bucket| {
        graph.nodes().map(|node| bucket.tensor_bytes(graph, node) as u64).max().unwrap_or(0)
    };
    Bytes(10 * request.buckets.iter().map(largest).max().unwrap_or(0))
}

/// Memory in which a GPU turns matrices into halves before it multiplies many rows with them: the largest
/// matrix of a layer and the one after it.
fn unpacking_room(request: &PlanRequest<'_>) -> Bytes {
    let graph = request.graph;
    let layers = graph.nodes().filter(|&node| graph.unit(graph.node(node).unit).layer.is_some());
    let matrices = layers.filter_map(|node| match &graph.node(node).op {
        Op::Linear(op) => Some(op.weight.elements() as u64),
        _ => None,
    });
    Bytes(2 * 2 * matrices.max().unwrap_or(0))
}

/// Results go to the host, where tokens are chosen.
fn results_to_host(
    model: &CostModel<'_>,
    device: &DeviceProfile,
    unit: UnitId,
    used: &Use,
) -> Cost {
    let output = model.graph.output();
    let host = &model.profile.domains[0].name;
    if model.graph.node(output).unit != unit || device.domain == *host {
        return Cost::default();
    }
    let bytes = model.graph.node(output).shape.bytes(&used.step) as f64;
    let link = model.profile.links.iter().find(|l| l.from == device.domain && l.to == *host);
    link.map_or(Cost::default(), |link| model.transfer(link, bytes))
}

/// Tensors that one unit makes and others read; those with the same readers travel together.
pub(crate) fn tensors(graph: &LayerGraph) -> Vec<(TensorEdge, Vec<NodeIndex>)> {
    let mut groups: BTreeMap<(usize, Vec<usize>), Vec<NodeIndex>> = BTreeMap::new();
    for node in graph.nodes() {
        let maker = graph.node(node).unit.0;
        let units = graph.readers(node).map(|reader| graph.node(reader).unit.0);
        let mut readers: Vec<usize> = units.filter(|&unit| unit != maker).collect();
        readers.sort_unstable();
        readers.dedup();
        if !readers.is_empty() {
            groups.entry((maker, readers)).or_default().push(node);
        }
    }
    let edge = |((maker, readers), nodes)| (TensorEdge { maker, readers }, nodes);
    groups.into_iter().map(edge).collect()
}

/// What the homes of units are made from.
struct HomeContext<'t, 'a> {
    tables: &'t Tables<'a>,
    request: &'t PlanRequest<'a>,
    prices: &'t Prices,
    instance: &'t Instance,
}

impl HomeContext<'_, '_> {
    /// All ways to keep a unit's weights and KV pages.
    fn homes(&self, unit: UnitId) -> Vec<Home> {
        let weights = self.weight_homes(unit);
        let Some(layer) = self.request.graph.unit_kv_layer(unit) else { return weights };
        let pages = self.kv_homes(layer);
        let both = weights.iter().flat_map(|weights| {
            pages.iter().map(|pages| Home {
                memory: weights.memory.iter().zip(&pages.memory).map(|(a, b)| a + b).collect(),
                cost: weights.cost + pages.cost,
                devices: weights.devices.iter().zip(&pages.devices).map(|(a, b)| a & b).collect(),
                streams: weights.streams.iter().zip(&pages.devices).map(|(a, b)| a & b).collect(),
                kv: pages.kv,
            })
        });
        both.collect()
    }

    fn price_of(&self, memory: &[u64]) -> f64 {
        // Copies of a device are counted in its domain already.
        let domains = &memory[..self.instance.domains.len()];
        domains.iter().sum::<u64>() as f64 * self.prices.byte
    }

    /// Weights in every set of places: a domain whose devices read the file's pages or one copy of
    /// them, or one device's own copy.
    fn weight_homes(&self, unit: UnitId) -> Vec<Home> {
        let (tables, domains) = (self.tables, self.instance.domains.len());
        let budgets = self.instance.budgets.len();
        let modes = tables.uses.len();
        let copies: Vec<&DeviceProfile> = tables.copies().map(|(device, _)| device).collect();
        // Place of each device: its domain, or its own budget.
        let place: Vec<usize> = tables
            .devices
            .iter()
            .zip(&self.instance.devices)
            .map(|(device, node)| {
                let own = copies.iter().position(|copy| copy.name == device.name);
                own.map_or(node.domain, |own| domains + own)
            })
            .collect();
        let bytes: Vec<u64> =
            tables.devices.iter().map(|d| tables.model.weight_bytes(d, unit).0).collect();
        if bytes.iter().all(|&bytes| bytes == 0) {
            let set = (1u32 << place.len()) - 1;
            let memory = vec![0; budgets];
            let (devices, streams) = (vec![set; modes], Vec::new());
            return vec![Home { memory, cost: 0.0, devices, streams, kv: None }];
        }
        let mut places: Vec<usize> = place.clone();
        places.sort_unstable();
        places.dedup();
        let home = |chosen: u32| {
            let used = |at: usize| {
                places.iter().position(|&p| p == at).is_some_and(|bit| chosen & (1 << bit) != 0)
            };
            let mut memory = vec![0; budgets];
            let mut set = 0;
            let mut counted = vec![false; budgets];
            for (device, &at) in place.iter().enumerate().filter(|(_, at)| used(**at)) {
                set |= 1 << device;
                if !std::mem::replace(&mut counted[at], true) {
                    memory[at] += bytes[device];
                    if at >= domains {
                        memory[self.instance.devices[device].domain] += bytes[device];
                    }
                }
            }
            let streams = if memory[0] > 0 { self.streams(unit, set) } else { Vec::new() };
            let cost = self.price_of(&memory);
            Home { cost, memory, devices: vec![set; modes], streams, kv: None }
        };
        (1..1u32 << places.len()).map(home).collect()
    }

    /// By mode: devices beside `resident` that weights in host memory can be streamed to.
    fn streams(&self, unit: UnitId, resident: u32) -> Vec<u32> {
        let modes = self.tables.stream.iter().map(|units| {
            let devices = units[unit.0].iter().enumerate().filter(|(_, cost)| cost.is_some());
            devices.fold(0u32, |set, (device, _)| set | 1 << device) & !resident
        });
        modes.collect()
    }

    /// KV pages in one domain for both phases, or moved from one to another between them.
    fn kv_homes(&self, layer: usize) -> Vec<Home> {
        let request = self.request;
        let per_token = request.graph.kv()[layer].elements_per_token() * request.kv_element_bytes;
        let bytes = (per_token * request.context) as u64;
        let reach = |domain: usize| {
            let devices = self.instance.devices.iter().enumerate();
            let reaching = devices.filter(|(_, device)| device.addresses.contains(&domain));
            reaching.fold(0u32, |set, (device, _)| set | 1 << device)
        };
        let mut homes = Vec::new();
        for first in 0..self.instance.domains.len() {
            for later in 0..self.instance.domains.len() {
                let move_cost = self.kv_move(first, later, per_token);
                let Some(move_cost) = move_cost else { continue };
                let mut memory = vec![0; self.instance.budgets.len()];
                memory[first] = bytes;
                memory[later] = bytes;
                let devices = self.tables.uses.iter().map(|used| match used.phase {
                    Phase::Prefill => reach(first),
                    Phase::Decode => reach(later),
                });
                let cost = self.prices.of(Phase::Prefill, move_cost) + self.price_of(&memory);
                let (devices, kv) = (devices.collect(), Some([first, later]));
                homes.push(Home { memory, cost, devices, streams: Vec::new(), kv });
            }
        }
        homes
    }

    fn kv_move(&self, from: usize, to: usize, bytes_per_token: usize) -> Option<Cost> {
        if from == to {
            return Some(Cost::default());
        }
        let profile = self.request.profile;
        let (from, to) = (&profile.domains[from].name, &profile.domains[to].name);
        let link = profile.links.iter().find(|link| link.from == *from && link.to == *to)?;
        let bytes = bytes_per_token as f64 * self.request.workload.prompt as f64;
        self.request.move_kv.then(|| self.tables.model.transfer(link, bytes))
    }
}
