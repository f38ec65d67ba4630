//! The plan's JSON form: the schema in the docs is the code's, and a plan survives the round trip.

use trefoil_engine::backends::{BackendOptions, Backends};
use trefoil_engine::model::{Lowered, ModelOptions, open_file};
use trefoil_scheduler::{Plan, PlanError};
use trefoil_tests::golden;

fn demo_plan() -> (Lowered, Backends, Plan) {
    let options = ModelOptions {
        pins: vec!["decode:blk.*.ffn=ref0".parse().expect("valid")],
        ..ModelOptions::default()
    };
    let lowered = Lowered::new(open_file("demo").expect("opens"), options.lower).expect("lowers");
    let backends = Backends::detect(BackendOptions::default());
    let plan = lowered.plan(&backends, &options).expect("places");
    (lowered, backends, plan)
}

#[test]
fn the_schema_in_the_docs_is_up_to_date() {
    let path = golden::data().join("../../docs/plan.schema.json");
    let text = serde_json::to_string_pretty(&Plan::schema()).expect("plain data") + "\n";
    if std::env::var_os("TREFOIL_UPDATE_DOCS").is_some() {
        std::fs::write(&path, &text).expect("docs can be written");
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == text, "run with TREFOIL_UPDATE_DOCS=1 to write docs/plan.schema.json");
}

#[test]
fn a_plan_survives_json_and_is_checked_against_its_model() {
    let (lowered, backends, plan) = demo_plan();
    let read = Plan::from_json(&plan.to_json()).expect("reads");
    assert_eq!(read, plan);
    assert_eq!(plan.pins[0].placed, 8, "one feed-forward unit per block, in decode only");
    let options = ModelOptions { plan: Some(read), ..ModelOptions::default() };
    assert_eq!(lowered.plan(&backends, &options).expect("accepted"), plan);

    let mut other = plan.clone();
    other.model.fingerprint = "0".repeat(64);
    let names = ["cpu0", "ref0"];
    let check = |plan: &Plan| plan.check(&lowered.fingerprint, &lowered.graph, &names);
    assert!(matches!(check(&other), Err(PlanError::Model { .. })));
    let mut unknown = plan.clone();
    unknown.buckets[0].units[3].device = "gpu7".to_owned();
    assert!(matches!(check(&unknown), Err(PlanError::Device { .. })));
    let mut short = plan.clone();
    short.buckets[1].units.pop();
    assert!(matches!(check(&short), Err(PlanError::Units { .. })));
    let newer = plan.to_json().replacen("\"version\": 1", "\"version\": 9", 1);
    assert!(matches!(Plan::from_json(&newer), Err(PlanError::Version { got: 9 })));
}
