//! The table of metrics in the docs is the code's.

use std::fmt::Write;

use trefoil_telemetry::{Kind, METRICS, Metrics};
use trefoil_tests::golden;

const ABOUT: &str = "\
# Metrics

`GET /metrics` answers in Prometheus' text form, version 0.0.4. Names begin with `trefoil_`; units are
seconds, bytes and shares of 1; counters end in `_total`. What cannot be read has no sample.

A *step* is one pass over the model: a chunk of one prompt (`phase=\"prefill\"`), or one token of each
sequence that generates (`phase=\"decode\"`). `batch_sequences` and `batch_tokens` say how much of each is
in a step; their sums over those of other metrics are means, such as the sequences of a decode step:
`rate(trefoil_batch_sequences_sum[1m]) / rate(trefoil_batch_sequences_count[1m])`.

Prompt tokens are `computed` or `cached`: the latter were in pages that an earlier request had left. A
prompt with several replies (`n`) counts once; every reply counts in `requests_total`. The time to the
first token and the queue's are counted from the moment at which a request was accepted.

Pages of the KV cache are `used` by sequences, `cached` (nobody uses them, but a prompt that begins alike
finds them; they are given away when room is needed) or `free`.

";

/// The table as the docs have it.
fn table() -> String {
    let mut text = ABOUT.to_owned();
    text.push_str("| name | sort | labels | what |\n|---|---|---|---|\n");
    for metric in METRICS {
        let kind = match metric.kind {
            Kind::Counter => "counter".to_owned(),
            Kind::Gauge => "gauge".to_owned(),
            Kind::Histogram(bounds) => {
                let (first, last) = (bounds[0], bounds[bounds.len() - 1]);
                format!("histogram, {first} to {last}")
            }
        };
        let labels = metric.labels.join(", ");
        writeln!(text, "| `{}` | {kind} | {labels} | {} |", metric.name, metric.help)
            .expect("text can grow");
    }
    text
}

#[test]
fn the_table_in_the_docs_is_the_code_s() {
    let path = golden::data().join("../../docs/metrics.md");
    let text = table();
    if std::env::var_os("TREFOIL_UPDATE_DOCS").is_some() {
        std::fs::write(&path, &text).expect("docs can be written");
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == text, "run with TREFOIL_UPDATE_DOCS=1 to write docs/metrics.md");
}

#[test]
fn every_row_is_a_metric_that_is_rendered() {
    let metrics = Metrics::default();
    metrics.queue_capacity.with_label_values::<&str>(&[]).set(3.0);
    metrics.steps_total.with_label_values(&["m", "decode"]).inc();
    let text = metrics.render();
    for (name, kind) in [("queue_capacity", "gauge"), ("steps_total", "counter")] {
        let row = METRICS.iter().find(|metric| metric.name == format!("trefoil_{name}"));
        let row = row.expect("the table has it");
        assert!(text.contains(&format!("# HELP {} {}", row.name, row.help)), "{text}");
        assert!(text.contains(&format!("# TYPE {} {kind}", row.name)), "{text}");
    }
}
