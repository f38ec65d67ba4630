//! `trefoil plan --dot`: the placement as a picture.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use trefoil_devices_api::DomainId;
use trefoil_graph::LayerGraph;
use trefoil_scheduler::{BucketPlan, Plan};

/// Colours of devices, in the order in which the plan names them: light, and apart for all eyes.
const COLOURS: [&str; 8] =
    ["#a6cee3", "#fdbf6f", "#b2df8a", "#cab2d6", "#fb9a99", "#ffff99", "#d9d9d9", "#80cdc1"];

/// The plan in Graphviz's language (`dot -Tsvg`): a cluster per bucket, a box per unit in its device's
/// colour, an arrow from what makes a tensor to what reads it; copies between memories are thick and
/// say their bytes. `domains` has the domain of each device.
pub(super) fn dot(graph: &LayerGraph, plan: &Plan, domains: &[(String, DomainId)]) -> String {
    let mut text = String::from(
        "digraph plan {\n  rankdir=TB;\n  node [shape=box, style=\"filled,rounded\", fontname=sans];\n  \
         edge [fontname=sans];\n",
    );
    let mut line = |line: String| writeln!(text, "{line}").expect("strings take text");
    let devices: BTreeSet<&str> = plan
        .buckets
        .iter()
        .flat_map(|bucket| bucket.units.iter().map(|unit| unit.device.as_str()))
        .collect();
    let colours: BTreeMap<&str, &str> =
        devices.into_iter().zip(COLOURS.into_iter().cycle()).collect();
    for (number, bucket) in plan.buckets.iter().enumerate() {
        line(format!("  subgraph cluster_{number} {{"));
        let (phase, most) = (bucket.bucket.phase.name(), bucket.bucket.max_tokens);
        line(format!("    label={};", quoted(&format!("{phase}, up to {most} tokens a step"))));
        for (unit, placed) in bucket.units.iter().enumerate() {
            let label = quoted(&format!("{}\n{}", placed.unit, placed.device));
            let colour = colours[placed.device.as_str()];
            line(format!("    b{number}_{unit} [label={label}, fillcolor=\"{colour}\"];"));
        }
        edges(graph, bucket, domains).into_iter().for_each(|((maker, reader), copies)| {
            let style = if copies.is_empty() {
                String::new()
            } else {
                format!(" [label={}, penwidth=2.5, color=\"#d62728\"]", quoted(&copies.join("\n")))
            };
            line(format!("    b{number}_{maker} -> b{number}_{reader}{style};"));
        });
        line("  }".to_owned());
    }
    text.push_str("}\n");
    text
}

/// Which unit reads from which, and the copies that are made for it.
fn edges(
    graph: &LayerGraph,
    bucket: &BucketPlan,
    domains: &[(String, DomainId)],
) -> BTreeMap<(usize, usize), Vec<String>> {
    let mut edges: BTreeMap<(usize, usize), Vec<String>> = BTreeMap::new();
    let domain = |unit: usize| {
        let device = &bucket.units[unit].device;
        domains.iter().find(|(name, _)| name == device).map(|(_, domain)| *domain)
    };
    for node in graph.nodes() {
        let (maker, name) = (graph.node(node).unit.0, &graph.node(node).name);
        let mut readers: Vec<usize> = graph.readers(node).map(|r| graph.node(r).unit.0).collect();
        readers.sort_unstable();
        readers.dedup();
        let mut copied: Vec<DomainId> = Vec::new();
        for reader in readers.into_iter().filter(|&reader| reader != maker) {
            let copies = edges.entry((maker, reader)).or_default();
            let made_for = |to: DomainId| domain(reader) == Some(to) && !copied.contains(&to);
            let found = bucket.transfers.iter().find(|t| t.tensor == *name && made_for(t.to));
            if let Some(transfer) = found {
                // It serves the later readers there too.
                copied.push(transfer.to);
                copies.push(format!("{} {}", transfer.tensor, transfer.bytes));
            }
        }
    }
    edges
}

fn quoted(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("\"{escaped}\"")
}
