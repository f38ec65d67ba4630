//! Tokenizers and chat templates against the reference data.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};
use trefoil_engine::text::template::{ChatTemplate, CivilTime, Conversation, TemplateError};
use trefoil_tests::golden;

/// The lines of a file of JSON objects.
fn json_lines<T: for<'a> Deserialize<'a>>(path: &Path) -> Vec<T> {
    let text =
        std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.lines()
        .enumerate()
        .map(|(index, line)| {
            serde_json::from_str(line)
                .unwrap_or_else(|error| panic!("{}:{}: {error}", path.display(), index + 1))
        })
        .collect()
}

#[derive(Deserialize)]
struct TemplateCase {
    template: String,
    messages: Value,
    tools: Option<Value>,
    add_generation_prompt: bool,
    bos_token: String,
    eos_token: String,
    date: String,
    #[serde(default)]
    extra: Map<String, Value>,
    expected: Option<String>,
    error: Option<String>,
    error_kind: Option<String>,
}

/// Number of characters that two texts share from the start.
fn common_prefix(a: &str, b: &str) -> usize {
    a.chars().zip(b.chars()).take_while(|(a, b)| a == b).count()
}

/// A hundred characters from `from` on.
fn excerpt(text: &str, from: usize) -> String {
    text.chars().skip(from).take(100).collect()
}

fn civil_time(text: &str) -> CivilTime {
    let fields: Vec<u32> = text
        .split(['-', 'T', ':'])
        .map(|field| field.parse().expect("a date such as 2026-02-03T14:15:16"))
        .collect();
    let [year, month, day, hour, minute, second] = fields[..] else { panic!("a date: {text}") };
    CivilTime::new([year, month, day], [hour, minute, second]).expect("a date that exists")
}

/// Every case renders to the reference text, byte for byte; a template's own refusal has its
/// words; where Python fails for another reason, rendering fails too.
#[test]
fn chat_templates_render_as_the_reference_does() {
    let folder = golden::part("templates");
    let cases: Vec<TemplateCase> = json_lines(&folder.join("cases.jsonl"));
    assert!(!cases.is_empty());
    let mut sources = BTreeMap::new();
    let mut wrong = Vec::new();
    for (index, case) in cases.iter().enumerate() {
        let source = sources.entry(&case.template).or_insert_with(|| {
            std::fs::read_to_string(folder.join("templates").join(&case.template))
                .expect("the template of a case is there")
        });
        let result = ChatTemplate::new(source, &case.bos_token, &case.eos_token).and_then(|t| {
            t.render(&Conversation {
                messages: &case.messages,
                tools: case.tools.as_ref(),
                add_generation_prompt: case.add_generation_prompt,
                variables: Some(&case.extra),
                now: civil_time(&case.date),
            })
        });
        let right = match (&result, &case.expected, case.error_kind.as_deref()) {
            (Ok(text), Some(expected), None) => text == expected,
            (Err(TemplateError::Refused { message }), None, Some("raise_exception")) => {
                Some(message) == case.error.as_ref()
            }
            (Err(TemplateError::Failed { .. }), None, Some(kind)) => kind != "raise_exception",
            _ => false,
        };
        if !right {
            let expected = case.expected.as_ref().or(case.error.as_ref());
            let from = match (expected, &result) {
                (Some(expected), Ok(text)) => common_prefix(expected, text).saturating_sub(20),
                _ => 0,
            };
            wrong.push(format!(
                "case {} of {}, from character {from}\n  expected {:?}\n  got      {:?}",
                index + 1,
                case.template,
                expected.map(|text| excerpt(text, from)),
                result.as_ref().map(|text| excerpt(text, from)),
            ));
        }
    }
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}
