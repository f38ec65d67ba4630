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

## Placement

The layers of a model run in *segments*: parts next to each other on one device. Segments have numbers per
model and phase; `placement_segment_info` says what each holds (`layers=\"0-5\"`, sorts of ops), of the first 64
of a phase; `GET /v1/plan` has all, with every part of the model. `segment_duration_seconds` has every
step. `segment_predicted_seconds` and `segment_prediction_error_ratio` are of the last 8 steps of the phase:
what they should have taken at their own tokens and context, and how far they were from it. They are there
where the devices' costs are known (`trefoil calibrate`), and not for segments that are cut (products split
over devices, streamed weights). Where several models run on one device at the same time, some of their
steps are not measured; those that are, are right.

`device_busy_seconds_total` is the device's own sum, with self-test and calibration; its rate is the busy
share. Devices over one memory (`pool`) show the same sizes: do not add them up. The pool `ram` is the
machine's memory; `vram0` and so on are those of cards. `transfer_*` count copies between pools.

## Scraping

```yaml
scrape_configs:
  - job_name: trefoil
    scrape_interval: 5s
    # authorization: { credentials: KEY }   # where the server has a key
    static_configs:
      - targets: [\"127.0.0.1:9378\"]
```

[grafana.json](grafana.json) is a dashboard of all this in the form of Grafana 10: Dashboards, New, Import.

## All metrics

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
