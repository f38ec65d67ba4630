//! The document against the routes, its examples against its schemas, its text against the golden file.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::http::routes;

fn document() -> Value {
    serde_json::to_value(super::document()).expect("it is JSON")
}

/// Method and path of each operation.
fn documented() -> BTreeSet<(String, String)> {
    let document = document();
    let paths = document["paths"].as_object().expect("paths");
    let pairs = paths.iter().flat_map(|(path, item)| {
        let methods = item.as_object().expect("operations").keys();
        methods.map(move |method| (method.clone(), path.clone()))
    });
    pairs.collect()
}

#[test]
fn every_route_is_documented_and_every_document_routed() {
    let routed: BTreeSet<_> = routes::table()
        .iter()
        .map(|route| (route.method.to_owned(), route.documented_path()))
        .collect();
    assert_eq!(routed, documented());
}

#[test]
fn examples_are_what_the_schemas_say() {
    let document = document();
    let mut examples = 0;
    for (path, item) in document["paths"].as_object().expect("paths") {
        for operation in item.as_object().expect("operations").values() {
            let Some(content) = operation.pointer("/requestBody/content/application~1json") else {
                continue;
            };
            let schema = json!({
                "$ref": content["schema"]["$ref"], "components": document["components"],
            });
            let validator = jsonschema::validator_for(&schema).expect("schemas are valid");
            let errors: Vec<String> = validator
                .iter_errors(&content["example"])
                .map(|error| format!("{}: {error}", error.instance_path()))
                .collect();
            assert!(errors.is_empty(), "{path}: {errors:?}");
            assert!(!validator.is_valid(&json!({"model": 7})), "{path}: it takes anything");
            examples += 1;
        }
    }
    assert!(examples >= 6, "every route with a body has an example: {examples}");
}

#[test]
fn the_golden_file_is_the_document() {
    let path = trefoil_tests::golden::data().join("openapi.json");
    let text = format!("{}\n", super::document().to_pretty_json().expect("it is JSON"));
    if std::env::var_os("TREFOIL_UPDATE_DOCS").is_some() {
        std::fs::write(&path, &text).expect("it can be written");
    }
    let golden = std::fs::read_to_string(&path).expect("the golden file is there");
    assert!(golden == text, "openapi.json is old: TREFOIL_UPDATE_DOCS=1 writes it anew");
}
