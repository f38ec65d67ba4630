//! Damaged plans: each is refused, or checked and run, without a panic, in bounded memory and time.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use trefoil_engine::backends::{BackendOptions, Backends};
use trefoil_engine::model::{Lowered, ModelError, ModelOptions};
use trefoil_engine::runner::Outputs;
use trefoil_graph::{LowerOptions, ModelFile};
use trefoil_scheduler::{LinearSplit, Plan, PlanError, Share};
use trefoil_tests::golden;
use trefoil_tests::memory::{Counting, peak_of};
use trefoil_tests::mutation::{SplitMix64, damaged};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Memory of reading and checking a plan, as a multiple of its text: JSON's values and a growing
/// list of them.
const FACTOR: usize = 32;
const FIXED: usize = 16 << 10;
const MOST_TIME: Duration = Duration::from_secs(10);
/// Plans of a longer context are checked but not run: they may take memory that is not there.
const MOST_CONTEXT: usize = 1024;

struct Setting {
    lowered: Lowered,
    backends: Backends,
    options: ModelOptions,
    plan: Plan,
}

impl Setting {
    fn new() -> Self {
        let file = golden::data().join("models/smollm/model-f32.gguf");
        let file = ModelFile::open(&file).expect("opens");
        let lowered = Lowered::new(file, LowerOptions::default()).expect("lowers");
        let backends = Backends::detect(BackendOptions::default());
        let options = ModelOptions { device: Some("ref0".to_owned()), ..ModelOptions::default() };
        let mut plan = lowered.plan(&backends, &options).expect("places");
        // All parts that a plan may have.
        plan.kv_decode = Some(plan.kv.clone());
        let share = |rows| Share { device: "ref0".to_owned(), rows };
        let op = "blk.0.ffn_down".to_owned();
        let shares = vec![share(40), share(32)];
        plan.buckets[0].splits = vec![LinearSplit { op, shares }];
        Self { lowered, backends, options, plan }
    }

    /// Reads and checks a plan; the outcome is what a user would see.
    fn read(&self, text: &str) -> Result<Plan, PlanError> {
        let plan = Plan::from_json(text)?;
        Plan::from_json(&plan.to_json()).expect("what is written can be read");
        let facts = self.backends.facts();
        let names: Vec<&str> = facts.iter().map(|device| device.name.as_str()).collect();
        plan.check(&self.lowered.fingerprint, &self.lowered.graph, &names)?;
        for bucket in &plan.buckets {
            let units: usize = bucket.segments().iter().map(|segment| segment.units.len()).sum();
            assert_eq!(units, bucket.units_per_device().values().sum::<usize>());
        }
        Ok(plan)
    }

    /// Three tokens of a prompt and one after them.
    fn run(&self, plan: Plan) -> Result<(), ModelError> {
        let options = ModelOptions { plan: Some(plan), ..self.options.clone() };
        let plan = self.lowered.plan(&self.backends, &options)?;
        let mut runner = self.lowered.runner(&self.backends, &plan, &options)?;
        let mut sequence = runner.begin(plan.context);
        for tokens in [&[1, 2, 3][..], &[4]] {
            // Too short a context is an error, not a failure.
            let _ = runner.feed(&mut sequence, tokens, Outputs::All, |_, row| {
                assert!(row.iter().all(|logit| logit.is_finite()));
            });
        }
        Ok(())
    }
}

#[derive(Default)]
struct Tally {
    run: usize,
    checked: usize,
    refused: usize,
}

impl Tally {
    fn one(&mut self, setting: &Setting, what: &dyn Fn() -> String, text: &str) {
        let start = Instant::now();
        let (result, peak) = peak_of(|| catch_unwind(AssertUnwindSafe(|| setting.read(text))));
        let bound = FACTOR * text.len() + FIXED;
        assert!(peak <= bound, "{}: {peak} bytes of at most {bound}", what());
        match result {
            Err(_) => panic!("{}: reading panics", what()),
            Ok(Err(error)) => {
                assert!(!error.to_string().is_empty());
                self.refused += 1;
            }
            Ok(Ok(plan)) if plan.context > MOST_CONTEXT => self.checked += 1,
            Ok(Ok(plan)) => {
                let result = catch_unwind(AssertUnwindSafe(|| setting.run(plan)));
                assert!(result.is_ok(), "{}: running panics", what());
                self.run += 1;
            }
        }
        assert!(start.elapsed() < MOST_TIME, "{}: {:?}", what(), start.elapsed());
    }
}

/// Paths of all values within `value`.
fn paths(value: &Value, at: String, found: &mut Vec<String>) {
    match value {
        Value::Array(list) => {
            for (index, value) in list.iter().enumerate() {
                paths(value, format!("{at}/{index}"), found);
            }
        }
        Value::Object(table) => {
            for (key, value) in table {
                paths(value, format!("{at}/{key}"), found);
            }
        }
        _ => {}
    }
    found.push(at);
}

fn hostile_values() -> Vec<Value> {
    let mut values = vec![json!(null), json!([]), json!({}), json!(""), json!("cpu0"), json!(-1)];
    values.extend([0, 1, 2, 3, 511, 513, 1 << 24, 1 << 40, u64::MAX].map(|n| json!(n)));
    values.extend([json!(0.5), json!(1e300), json!(true), json!("prefill"), json!("ref0")]);
    values
}

#[test]
fn damaged_plans_are_refused_or_run() {
    // One test: the counters see the whole process.
    let setting = Setting::new();
    sizes_that_cannot_be_meant_are_named(&setting);
    let text = setting.plan.to_json();
    assert_eq!(setting.read(&text).expect("the undamaged plan"), setting.plan);
    setting.run(setting.plan.clone()).expect("the undamaged plan runs");
    let mut tally = Tally::default();
    for seed in 0..3_000 {
        let bytes = damaged(text.as_bytes(), &mut SplitMix64::new(seed));
        tally.one(&setting, &|| format!("seed {seed}"), &String::from_utf8_lossy(&bytes));
    }
    let whole: Value = serde_json::from_str(&text).expect("JSON");
    let mut places = Vec::new();
    paths(&whole, String::new(), &mut places);
    for place in &places {
        for value in hostile_values() {
            let mut plan = whole.clone();
            *plan.pointer_mut(place).expect("it is there") = value.clone();
            tally.one(&setting, &|| format!("{place} = {value}"), &plan.to_string());
        }
        let mut plan = whole.clone();
        let (parent, last) = place.rsplit_once('/').unwrap_or(("", ""));
        match plan.pointer_mut(parent) {
            Some(Value::Object(table)) => drop(table.remove(last)),
            Some(Value::Array(list)) => drop(list.remove(last.parse().expect("an index"))),
            _ => {}
        }
        tally.one(&setting, &|| format!("without {place}"), &plan.to_string());
    }
    let Tally { run, checked, refused } = tally;
    println!("{run} run, {checked} checked, {refused} refused of {} places", places.len());
    assert!(run > 50 && refused > 1_000 && run + checked + refused > 4_000);
}

fn sizes_that_cannot_be_meant_are_named(setting: &Setting) {
    type Change = fn(&mut Plan);
    let cases: [(Change, &str); 6] = [
        (|plan| plan.context = 0, "context: expected 1 to 16777216, got 0"),
        (|plan| plan.context = usize::MAX, "got 18446744073709551615"),
        (|plan| plan.buckets[0].bucket.max_tokens = 0, "bucket 0: max_tokens: expected 1 to"),
        (|plan| plan.buckets[1].bucket.max_outputs = 0, "bucket 1: max_outputs"),
        (|plan| plan.buckets[1].bucket.max_outputs = 2, "expected 1, got 2"),
        (|plan| plan.kv.truncate(1), "number of KV layers: expected 2, got 1"),
    ];
    for (change, named) in cases {
        let mut plan = setting.plan.clone();
        change(&mut plan);
        let error = setting.read(&plan.to_json()).expect_err("refused").to_string();
        assert!(error.contains(named), "{error}");
    }
}
