//! Profiles that nobody means: every one is refused, or planned with; none panics.

use toml::{Table, Value};
use trefoil_devices_api::Bucket;
use trefoil_graph::LayerGraph;

use super::tests::{bucket, graph, request};
use super::*;
use crate::partition::MAX_DEVICES;
use crate::profile::{Profile, shipped};

/// Paths of everything in a value: table keys and list places.
fn paths(value: &Value, here: &mut Vec<String>, all: &mut Vec<Vec<String>>) {
    let inner: Vec<(String, &Value)> = match value {
        Value::Table(table) => table.iter().map(|(key, value)| (key.clone(), value)).collect(),
        Value::Array(list) => {
            list.iter().enumerate().map(|(at, value)| (at.to_string(), value)).collect()
        }
        _ => Vec::new(),
    };
    for (key, value) in inner {
        here.push(key);
        all.push(here.clone());
        paths(value, here, all);
        here.pop();
    }
}

/// Replaces what stands at a path, or takes it away.
fn change(value: &mut Value, path: &[String], new: Option<Value>) {
    let Some((first, rest)) = path.split_first() else { return };
    match value {
        Value::Table(table) if rest.is_empty() => {
            match new {
                Some(new) => table.insert(first.clone(), new),
                None => table.remove(first),
            };
        }
        Value::Array(list) if rest.is_empty() => {
            let at: usize = first.parse().expect("a place");
            match new {
                Some(new) => list[at] = new,
                None => {
                    list.remove(at);
                }
            }
        }
        Value::Table(table) => change(table.get_mut(first).expect("is there"), rest, new),
        Value::Array(list) => {
            change(&mut list[first.parse::<usize>().expect("a place")], rest, new)
        }
        _ => {}
    }
}

/// Was it planned with? An answer or an error, but an end.
fn planned(text: &str, graph: &LayerGraph, buckets: &[Bucket]) -> bool {
    let Ok(profile) = Profile::parse("a profile", text) else { return false };
    let plans = [Goal::Latency, Goal::Energy].map(|goal| {
        let planned = plan(&request(graph, &profile, buckets, goal));
        planned.map(|planned| planned.plan.to_json()).is_ok()
    });
    plans.into_iter().all(|planned| planned)
}

#[test]
fn no_profile_makes_the_planner_panic() {
    let graph = graph("qwen3-0.6b");
    let buckets = [bucket(Phase::Prefill, 512), bucket(Phase::Decode, 1)];
    for name in ["desktop-radeon", "strix-point"] {
        let profile = shipped(name).expect("ships");
        let mut table = Table::try_from(&profile).expect("plain data");
        // What is published is not planned with.
        table.remove("published");
        table.remove("machine");
        let whole = Value::Table(table);
        let mut all = Vec::new();
        paths(&whole, &mut Vec::new(), &mut all);
        assert!(all.len() > 80, "{}", all.len());
        let absurd = [
            None,
            Some(Value::Float(0.0)),
            Some(Value::Float(-1.0)),
            Some(Value::Float(f64::NAN)),
            Some(Value::Float(1e300)),
            Some(Value::Integer(i64::MAX)),
            Some(Value::Integer(1)),
            Some(Value::String(String::new())),
            Some(Value::Array(Vec::new())),
        ];
        let (mut refused, mut accepted) = (0, 0);
        for (path, new) in all.iter().flat_map(|path| absurd.iter().map(move |new| (path, new))) {
            let mut changed = whole.clone();
            change(&mut changed, path, new.clone());
            match planned(&toml::to_string(&changed).expect("plain data"), &graph, &buckets) {
                true => accepted += 1,
                false => refused += 1,
            }
        }
        // Both happen, or nothing was tried.
        assert!(accepted > 100 && refused > 200, "{name}: {accepted} planned, {refused} not");
    }
}

#[test]
fn many_devices_and_domains_are_refused_or_planned() {
    let graph = graph("qwen3-0.6b");
    let buckets = [bucket(Phase::Prefill, 512), bucket(Phase::Decode, 1)];
    let profile = shipped("strix-point").expect("ships");
    for count in [15, 17, 33, 70] {
        let mut many = profile.clone();
        let model = many.devices[1].clone();
        for number in 1..count {
            let mut device = model.clone();
            device.name = format!("gpu{number}");
            many.devices.push(device);
        }
        let planned = plan(&request(&graph, &many, &buckets, Goal::Latency));
        match planned {
            Ok(_) => assert!(many.devices.len() <= MAX_DEVICES, "{count}"),
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains("devices"), "{text}");
            }
        }
    }
}
