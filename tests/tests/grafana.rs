//! The dashboard in the docs shows metrics that are there, by labels that they have.

use std::collections::BTreeSet;

use serde_json::Value;
use trefoil_telemetry::{Kind, METRICS, MetricInfo};
use trefoil_tests::golden;

/// Words of a query: names of metrics, labels, functions.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

/// The metric that a query means by a name.
fn metric(name: &str) -> Option<&'static MetricInfo> {
    METRICS.iter().find(|metric| {
        let histogram = matches!(metric.kind, Kind::Histogram(_));
        match name.strip_prefix(metric.name) {
            Some("") => !histogram,
            Some("_bucket" | "_sum" | "_count") => histogram,
            _ => false,
        }
    })
}

/// Names in double braces, as legends have them, or between marks of a query.
fn between<'a>(text: &'a str, open: &'a str, close: &'a str) -> Vec<&'a str> {
    let parts = text.split(open).skip(1);
    parts.filter_map(|part| part.split_once(close)).map(|(inside, _)| inside).collect()
}

/// Checks one query with its legend; returns the metrics that it shows.
fn check(query: &str, legend: &str) -> BTreeSet<&'static str> {
    let names: Vec<&str> = words(query).filter(|word| word.starts_with("trefoil_")).collect();
    assert!(!names.is_empty(), "no metric in {query}");
    let metrics: Vec<&MetricInfo> = names
        .iter()
        .map(|name| metric(name).unwrap_or_else(|| panic!("{name}: {query}")))
        .collect();
    let mut labels: Vec<&str> = between(legend, "{{", "}}");
    labels.extend(between(query, "by (", ")").iter().flat_map(|list| list.split(", ")));
    let matched = between(query, "{", "}");
    labels.extend(
        matched
            .iter()
            .flat_map(|list| list.split(','))
            .filter_map(|one| one.split_once(['=', '!']).map(|(label, _)| label)),
    );
    for label in labels.into_iter().filter(|label| *label != "le") {
        for metric in &metrics {
            assert!(metric.labels.contains(&label), "{} has no {label}: {query}", metric.name);
        }
    }
    metrics.into_iter().map(|metric| metric.name).collect()
}

#[test]
fn the_dashboard_shows_metrics_that_are_there() {
    let path = golden::data().join("../../docs/grafana.json");
    let text = std::fs::read_to_string(path).expect("the docs have it");
    let dashboard: Value = serde_json::from_str(&text).expect("it is JSON");
    let mut shown = BTreeSet::new();
    let mut ids = BTreeSet::new();
    for panel in dashboard["panels"].as_array().expect("panels") {
        assert!(ids.insert(panel["id"].as_u64().expect("a number")), "an id twice: {panel}");
        let place = &panel["gridPos"];
        assert!(place["x"].as_u64().expect("x") + place["w"].as_u64().expect("w") <= 24, "{place}");
        if panel["type"] == "row" {
            continue;
        }
        for target in panel["targets"].as_array().expect("a panel has queries") {
            let text = |name: &str| target[name].as_str().expect("text");
            shown.extend(check(text("expr"), text("legendFormat")));
        }
    }
    for name in [
        "trefoil_placement_layers",
        "trefoil_placement_segment_info",
        "trefoil_segment_duration_seconds",
        "trefoil_segment_predicted_seconds",
        "trefoil_segment_prediction_error_ratio",
        "trefoil_device_busy_seconds_total",
        "trefoil_device_memory_used_bytes",
        "trefoil_transfer_bytes_total",
        "trefoil_plan_version",
        "trefoil_plan_predicted_seconds",
        "trefoil_policy_info",
        "trefoil_prefix_cache_hit_tokens_total",
        "trefoil_time_to_first_token_seconds",
        "trefoil_kv_pages",
    ] {
        assert!(shown.contains(name), "the dashboard does not show {name}");
    }
    let variables = dashboard["templating"]["list"].as_array().expect("variables");
    let model = variables.iter().find(|variable| variable["name"] == "model").expect("there");
    let query = model["query"]["query"].as_str().expect("text");
    assert_eq!(query, "label_values(trefoil_model_info, model)");
    assert!(metric("trefoil_model_info").is_some_and(|m| m.labels.contains(&"model")));
}
