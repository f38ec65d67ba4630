//! Traces in Chrome's JSON form, which `chrome://tracing` and Perfetto show: spans on named tracks.

use std::io::{self, Write};

use serde_json::{Value, json};

/// A row of the picture, made by [`ChromeTrace::track`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrackId(usize);

/// Spans of time on tracks. Tracks are shown in the order in which they were named, in groups.
#[derive(Clone, Debug)]
pub struct ChromeTrace {
    groups: Vec<String>,
    tracks: Vec<Track>,
    spans: Vec<Span>,
}

#[derive(Clone, Debug)]
struct Track {
    name: String,
    group: usize,
}

#[derive(Clone, Debug)]
struct Span {
    track: TrackId,
    name: String,
    category: String,
    start_seconds: f64,
    duration_seconds: f64,
    args: Value,
}

impl Default for ChromeTrace {
    fn default() -> Self {
        Self::new()
    }
}

impl ChromeTrace {
    /// A trace without spans; its tracks are in a group named `trefoil`.
    pub fn new() -> Self {
        Self { groups: vec!["trefoil".to_owned()], tracks: Vec::new(), spans: Vec::new() }
    }

    /// Begins a group (a process, in the form's words): tracks named from now on belong to it. A group
    /// without tracks is not written.
    pub fn group(&mut self, name: &str) {
        self.groups.push(name.to_owned());
    }

    /// The track of this name in the current group; the same name gives the same track.
    pub fn track(&mut self, name: &str) -> TrackId {
        let group = self.groups.len() - 1;
        let same = |track: &Track| track.group == group && track.name == name;
        let index = self.tracks.iter().position(same).unwrap_or_else(|| {
            self.tracks.push(Track { name: name.to_owned(), group });
            self.tracks.len() - 1
        });
        TrackId(index)
    }

    /// Adds a span: something that was busy on a track from `start_seconds` on. Times count from an
    /// arbitrary moment, the same for the whole trace. `args` is shown when the span is chosen: an
    /// object, or null for none. Spans of one track must not overlap, except that one may lie within
    /// another.
    pub fn span(
        &mut self,
        track: TrackId,
        name: &str,
        category: &str,
        start_seconds: f64,
        duration_seconds: f64,
        args: Value,
    ) {
        self.spans.push(Span {
            track,
            name: name.to_owned(),
            category: category.to_owned(),
            start_seconds,
            duration_seconds,
            args,
        });
    }

    /// Number of spans.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Are there no spans?
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Writes the trace as one JSON document: an object with `traceEvents`, one event per line. Times
    /// are microseconds. Errors are those of the writer.
    pub fn write(&self, mut out: impl Write) -> io::Result<()> {
        let about = |what: &str, pid: usize, tid: usize, name: &str| json!({"ph": "M", "name": what, "pid": pid, "tid": tid, "args": {"name": name}});
        let order = |what: &str, pid: usize, tid: usize, index: usize| json!({"ph": "M", "name": what, "pid": pid, "tid": tid, "args": {"sort_index": index}});
        let used = |group: &usize| self.tracks.iter().any(|track| track.group == *group);
        let groups = (0..self.groups.len()).filter(used).flat_map(|group| {
            let pid = group + 1;
            [
                about("process_name", pid, 0, &self.groups[group]),
                order("process_sort_index", pid, 0, group),
            ]
        });
        let tracks = self.tracks.iter().enumerate().flat_map(|(index, track)| {
            let (pid, tid) = (track.group + 1, index + 1);
            [
                about("thread_name", pid, tid, &track.name),
                order("thread_sort_index", pid, tid, index),
            ]
        });
        let spans = self.spans.iter().map(|span| {
            let mut event = json!({
                "ph": "X",
                "name": span.name,
                "cat": span.category,
                "pid": self.tracks[span.track.0].group + 1,
                "tid": span.track.0 + 1,
                "ts": microseconds(span.start_seconds),
                "dur": microseconds(span.duration_seconds),
            });
            if !span.args.is_null() {
                event["args"] = span.args.clone();
            }
            event
        });
        out.write_all(b"{\"displayTimeUnit\":\"ms\",\"traceEvents\":[")?;
        for (index, event) in groups.chain(tracks).chain(spans).enumerate() {
            out.write_all(if index == 0 { b"\n" } else { b",\n" })?;
            serde_json::to_writer(&mut out, &event)?;
        }
        out.write_all(b"\n]}\n")?;
        out.flush()
    }
}

/// Microseconds with three decimals: whole nanoseconds. What is no number becomes 0, which JSON can say.
fn microseconds(seconds: f64) -> f64 {
    let nanoseconds = (seconds * 1e9).round();
    if nanoseconds.is_finite() { nanoseconds / 1e3 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(trace: &ChromeTrace) -> Value {
        let mut bytes = Vec::new();
        trace.write(&mut bytes).expect("memory takes all");
        serde_json::from_slice(&bytes).expect("JSON")
    }

    fn events<'a>(document: &'a Value, phase: &str) -> Vec<&'a Value> {
        let all = document["traceEvents"].as_array().expect("a list");
        all.iter().filter(|event| event["ph"] == phase).collect()
    }

    #[test]
    fn spans_lie_on_named_tracks_in_microseconds() {
        let mut trace = ChromeTrace::new();
        assert!(trace.is_empty());
        let cpu = trace.track("cpu0");
        let gpu = trace.track("gpu0");
        assert_eq!(trace.track("cpu0"), cpu);
        trace.span(gpu, "blk.0", "prefill", 0.5, 1.25e-3, json!({"tokens": 4}));
        trace.span(cpu, "he said \"go\"", "decode", 0.0, 1e-9, Value::Null);
        assert_eq!(trace.len(), 2);
        let document = written(&trace);
        let spans = events(&document, "X");
        assert_eq!(spans[0]["ts"], 500_000.0);
        assert_eq!(spans[0]["dur"], 1250.0);
        assert_eq!(spans[0]["args"]["tokens"], 4);
        assert_eq!(spans[1]["dur"], 0.001);
        assert_eq!(spans[1]["name"], "he said \"go\"");
        assert!(spans[1].get("args").is_none());
        let names = events(&document, "M");
        let name_of = |tid: &Value| {
            let named = |event: &&&Value| event["name"] == "thread_name" && event["tid"] == *tid;
            names.iter().find(named).expect("every track has a name")["args"]["name"].clone()
        };
        assert_eq!(name_of(&spans[0]["tid"]), "gpu0");
        assert_eq!(name_of(&spans[1]["tid"]), "cpu0");
    }

    #[test]
    fn groups_keep_tracks_of_one_name_apart() {
        let mut trace = ChromeTrace::new();
        trace.group("simulated");
        let first = trace.track("gpu0");
        trace.group("measured");
        let second = trace.track("gpu0");
        assert_ne!(first, second);
        trace.span(first, "a", "x", 0.0, 1.0, Value::Null);
        trace.span(second, "b", "x", f64::NAN, 1.0, Value::Null);
        let document = written(&trace);
        let spans = events(&document, "X");
        assert_ne!(spans[0]["pid"], spans[1]["pid"]);
        assert_eq!(spans[1]["ts"], 0.0);
        let names = events(&document, "M");
        let groups = names.iter().filter(|event| event["name"] == "process_name");
        let groups: Vec<_> = groups.map(|event| event["args"]["name"].clone()).collect();
        assert_eq!(groups, ["simulated", "measured"]);
    }

    #[test]
    fn an_empty_trace_is_a_document_too() {
        assert_eq!(written(&ChromeTrace::new())["traceEvents"], json!([]));
    }
}
