//! The first placement rule: everything on one device, except what pins say.

use trefoil_devices_api::{Bucket, DomainId, Phase};
use trefoil_graph::{LayerGraph, UnitId};

use crate::memory::{Residence, memory, transfers};
use crate::plan::{BucketPlan, ModelRef, PLAN_VERSION, PinReport, Plan, PlanError, UnitPlacement};
use crate::{Pin, nearest};

/// What the planner knows of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceFacts {
    /// Name.
    pub name: String,
    /// Domain where its data goes.
    pub domain: DomainId,
    /// Is it used only when named?
    pub only_when_named: bool,
}

/// What is to be placed.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// The model.
    pub model: ModelRef,
    /// Its graph.
    pub graph: &'a LayerGraph,
    /// Devices, best first.
    pub devices: &'a [DeviceFacts],
    /// Device that takes what no pin names; the first that need not be named if absent.
    pub device: Option<&'a str>,
    /// Pins; the first match wins.
    pub pins: &'a [Pin],
    /// Buckets to place.
    pub buckets: &'a [Bucket],
    /// Tokens of context to plan KV pages for.
    pub context: usize,
    /// Bytes of one stored key or value element.
    pub kv_element_bytes: usize,
}

/// A request that cannot be met.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlaceError {
    /// A device that is not here.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A pin that matches nothing.
    #[error(
        "pin {pattern:?} names no unit or op of this model{}; `trefoil inspect` lists them",
        near.as_ref().map(|name| format!("; did you mean {name}?")).unwrap_or_default()
    )]
    PinMatchesNothing {
        /// The pattern.
        pattern: String,
        /// The most similar name.
        near: Option<String>,
    },
    /// No device at all.
    #[error("no device to run on; `trefoil devices` says what is here and why not")]
    NoDevice,
}

/// Places every unit in every bucket.
pub fn place(request: &Request<'_>) -> Result<Plan, PlaceError> {
    let names: Vec<&str> = request.devices.iter().map(|device| device.name.as_str()).collect();
    let find = |name: &str| {
        request
            .devices
            .iter()
            .find(|device| device.name == name)
            .ok_or_else(|| PlanError::unknown_device(name, &names))
    };
    let main = match request.device {
        Some(name) => find(name)?,
        None => request
            .devices
            .iter()
            .find(|device| !device.only_when_named)
            .ok_or(PlaceError::NoDevice)?,
    };
    for pin in request.pins {
        find(&pin.device)?;
        check_pin(pin, request.graph)?;
    }
    let residences = request.devices.iter().map(|device| Residence {
        device: &device.name,
        domain: device.domain,
        reads: vec![device.domain],
        copy: None,
    });
    let residences: Vec<_> = residences.collect();
    let mut placed = vec![0; request.pins.len()];
    let mut buckets = Vec::with_capacity(request.buckets.len());
    for &bucket in request.buckets {
        let units = (0..request.graph.units().len()).map(|index| {
            let id = UnitId(index);
            let pin =
                request.pins.iter().position(|pin| pin.holds(request.graph, id, bucket.phase));
            let device = match pin {
                Some(pin) => {
                    placed[pin] += 1;
                    request.pins[pin].device.clone()
                }
                None => main.name.clone(),
            };
            UnitPlacement { unit: request.graph.unit(id).name(), device }
        });
        let mut plan = BucketPlan {
            bucket,
            units: units.collect(),
            splits: Vec::new(),
            streamed: Vec::new(),
            transfers: Vec::new(),
            predicted_seconds: None,
            predicted_joules: None,
            segments: Vec::new(),
        };
        plan.transfers = transfers(request.graph, &residences, &plan);
        buckets.push(plan);
    }
    let pins = request.pins.iter().zip(placed);
    let per_element = request.context * request.kv_element_bytes;
    let kv =
        [Phase::Prefill, Phase::Decode].map(|phase| kv_domains(request, main, &buckets, phase));
    let memory = memory(request.graph, &residences, &buckets, &kv, per_element);
    let [first, later] = kv;
    let kv_decode = (first != later).then_some(later);
    Ok(Plan {
        version: PLAN_VERSION,
        model: request.model.clone(),
        profile: None,
        policy: "single device".to_owned(),
        context: request.context,
        reasons: reasons(request, &main.name, &buckets, kv_decode.is_some()),
        kv: first,
        kv_decode,
        memory,
        pins: pins.map(|(pin, placed)| PinReport { pin: pin.clone(), placed }).collect(),
        prediction: None,
        buckets,
    })
}

/// Domain of each layer's KV pages in a phase: where the device of its attention has its data.
fn kv_domains(
    request: &Request<'_>,
    main: &DeviceFacts,
    buckets: &[BucketPlan],
    phase: Phase,
) -> Vec<DomainId> {
    let domain_of = |name: &str| {
        let found = request.devices.iter().find(|device| device.name == name);
        found.map_or(main.domain, |device| device.domain)
    };
    let mut domains = vec![main.domain; request.graph.kv().len()];
    // Buckets of a phase place every unit alike: pins know phases only.
    for bucket in buckets.iter().filter(|bucket| bucket.bucket.phase == phase) {
        for (index, placed) in bucket.units.iter().enumerate() {
            if let Some(layer) = request.graph.unit_kv_layer(UnitId(index)) {
                domains[layer] = domain_of(&placed.device);
            }
        }
    }
    domains
}

pub(crate) fn check_pin(pin: &Pin, graph: &LayerGraph) -> Result<(), PlaceError> {
    if (0..graph.units().len()).any(|unit| pin.matches(graph, UnitId(unit))) {
        return Ok(());
    }
    let units = graph.units().iter().map(trefoil_graph::Unit::name);
    let nodes = graph.nodes().map(|node| graph.node(node).name.clone());
    let names: Vec<String> = units.chain(nodes).collect();
    let near = nearest(&pin.pattern, names.iter().map(String::as_str)).map(str::to_owned);
    Err(PlaceError::PinMatchesNothing { pattern: pin.pattern.clone(), near })
}

fn reasons(
    request: &Request<'_>,
    main: &str,
    buckets: &[BucketPlan],
    kv_moves: bool,
) -> Vec<String> {
    let mut reasons = vec![match request.device {
        Some(_) => format!("{main} was named"),
        None => format!("{main} is the first device that may be used without being named"),
    }];
    if buckets.iter().any(|bucket| bucket.units_per_device().len() > 1) {
        reasons.push("pins put some units elsewhere".to_owned());
    }
    if kv_moves {
        let why = "attention is in other memory in decode: KV pages move after the prompt";
        reasons.push(why.to_owned());
    }
    reasons
}
