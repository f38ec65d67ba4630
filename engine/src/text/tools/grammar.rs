//! Grammars of replies that call tools.

use std::fmt::Write;

use serde_json::{Value, json};

use super::{CallForm, CallStyle};
use crate::grammar::{CheckedSchema, GrammarSource, json_part};
use crate::text::Tokenizer;

/// Most calls of a reply that must be calls.
const CALLS_MAX: usize = 16;

/// A function that may be called.
#[derive(Clone, Debug, PartialEq)]
pub struct Function {
    /// Letters, digits, `_` and `-`.
    pub name: String,
    /// What its arguments are valid by.
    pub parameters: CheckedSchema,
}

/// What a reply is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// It is calls, and nothing else.
    Calls,
    /// It is text, perhaps with calls after it; these are valid.
    TextOrCalls,
}

/// The grammar of replies in a model's form. `parallel`: may there be several calls?
pub fn call_grammar(
    style: &CallStyle,
    tokenizer: &Tokenizer,
    functions: &[Function],
    bound: Bound,
    parallel: bool,
) -> GrammarSource {
    // A mark that is a control token is named by its id, any other is text.
    let mark = |text: &str| match tokenizer.id_of(text).filter(|id| style.shown.contains(id)) {
        Some(id) => format!("<[{id}]>"),
        None => quoted(text),
    };
    let open = |name: &str, key: &str| quoted(&format!("{{\"name\": \"{name}\", \"{key}\": "));
    let (mut before, mut between, mut after) = (String::new(), quoted("\n"), String::new());
    match style.form {
        CallForm::List => {
            (before, between, after) = (quoted("["), quoted(", "), quoted("]"));
        }
        CallForm::Named => between = mark("[TOOL_CALLS]"),
        CallForm::Tagged => between = format!("\"\\n\" {}", mark("<tool_call>")),
        CallForm::Bare => {}
    }
    let mut out = String::new();
    let head = match style.form {
        CallForm::Bare => None,
        CallForm::Tagged => Some("<tool_call>"),
        CallForm::List | CallForm::Named => Some("[TOOL_CALLS]"),
    };
    let start = match (bound, head) {
        (Bound::Calls, None) => "start: calls".to_owned(),
        (Bound::Calls, Some(head)) => format!("start: {} calls", mark(head)),
        // Text that is no call, or a call from the first character on.
        (Bound::TextOrCalls, None) => "start: FREE | calls\nFREE: /([^{](?s:.*))?/".to_owned(),
        (Bound::TextOrCalls, Some(head)) if mark(head).starts_with('<') => {
            format!("start: FREE | FREE {} calls\nFREE: /(?s:.*)/", mark(head))
        }
        (Bound::TextOrCalls, Some(head)) => {
            let mark: String = head.chars().map(crate::grammar::escaped).collect();
            format!(
                "start: FREE | head calls\nFREE: /(?s:.*)/ & ~/(?s:.*){mark}(?s:.*)/\n\
                 head[lazy]: /(?s:.*){mark}/"
            )
        }
    };
    let _ = writeln!(out, "{start}");
    let more = match parallel && style.form != CallForm::Bare {
        true => format!(" ({between} call){{0,{}}}", CALLS_MAX - 1),
        false => String::new(),
    };
    let _ = writeln!(out, "calls: {before} call{more} {after}");
    let names: Vec<String> = (0..functions.len()).map(|n| format!("call{n}")).collect();
    let _ = writeln!(out, "call: {}", names.join(" | "));
    for (number, function) in functions.iter().enumerate() {
        let name = &function.name;
        let (open, close) = match style.form {
            CallForm::Tagged => (
                format!("\"\\n\" {}", open(name, "arguments")),
                format!("\"}}\\n\" {}", mark("</tool_call>")),
            ),
            CallForm::Bare => (open(name, "parameters"), quoted("}")),
            CallForm::List => (open(name, "arguments"), quoted("}")),
            CallForm::Named => (format!("{} {}", quoted(name), mark("[ARGS]")), String::new()),
        };
        let _ = writeln!(out, "call{number}: {open} arguments{number} {close}");
        let schema = json_part(object(function.parameters.value()));
        let _ = writeln!(out, "arguments{number}: %json {schema}");
    }
    GrammarSource::Lark(out)
}

/// The schema, of objects only.
fn object(schema: &Value) -> Value {
    let mut schema = match schema {
        Value::Object(_) => schema.clone(),
        other => json!({"allOf": [other]}),
    };
    if schema.get("type").is_none() && schema.get("$ref").is_none() {
        schema["type"] = json!("object");
    }
    schema
}

fn quoted(text: &str) -> String {
    Value::String(text.to_owned()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grammar::{Constraint, Grammars, check_schema};

    /// A tokenizer of single characters, with marks that are control tokens.
    fn tokenizer() -> Tokenizer {
        let mut vocabulary = serde_json::Map::new();
        for byte in b'!'..=b'~' {
            vocabulary.insert(char::from(byte).to_string(), json!(vocabulary.len()));
        }
        for blank in ["Ġ", "Ċ"] {
            vocabulary.insert(blank.to_owned(), json!(vocabulary.len()));
        }
        let special = ["<eos>", "[TOOL_CALLS]", "[ARGS]", "<tool_call>", "</tool_call>"];
        let added: Vec<Value> = (vocabulary.len()..)
            .zip(special)
            .map(|(id, content)| {
                json!({"id": id, "content": content, "special": true, "single_word": false,
                    "lstrip": false, "rstrip": false, "normalized": false})
            })
            .collect();
        let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
            "use_regex": true});
        let file = json!({
            "version": "1.0", "added_tokens": added, "pre_tokenizer": level, "decoder": level,
            "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
        });
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, value: Value| {
            std::fs::write(folder.path().join(name), value.to_string()).expect("writes");
        };
        write("tokenizer.json", file);
        write("tokenizer_config.json", json!({"eos_token": "<eos>"}));
        Tokenizer::from_folder(folder.path()).expect("loads")
    }

    fn functions() -> Vec<Function> {
        let schema = json!({"type": "object", "required": ["a"], "additionalProperties": false,
            "properties": {"a": {"type": "integer"}}});
        let parameters = check_schema(&schema, true).expect("plain");
        let name = "add".to_owned();
        let any = check_schema(&json!(true), true).expect("plain");
        vec![Function { name, parameters }, Function { name: "any".to_owned(), parameters: any }]
    }

    /// How much of a reply the grammar takes, in tokens, and may it end there?
    fn taken(style: &CallStyle, bound: Bound, parallel: bool, reply: &str) -> (usize, bool) {
        let tokenizer = tokenizer();
        let source = call_grammar(style, &tokenizer, &functions(), bound, parallel);
        let grammar = Grammars::new(tokenizer.clone()).compile(&source);
        let grammar = grammar.unwrap_or_else(|error| panic!("{source:?}: {error}"));
        let mut constraint = Constraint::new(&grammar);
        let options = crate::text::EncodeOptions { add_special: false, parse_special: true };
        let ids = tokenizer.encode(reply, options);
        let allows = |mask: &[u32], id: u32| mask[id as usize / 32] >> (id % 32) & 1 == 1;
        for (count, &id) in ids.iter().enumerate() {
            if !allows(constraint.mask().expect("goes on"), id) {
                return (count, false);
            }
            constraint.advance(id);
        }
        let eos = tokenizer.eos().expect("there is one");
        (ids.len(), allows(constraint.mask().expect("goes on"), eos))
    }

    fn style(form: CallForm, control: bool) -> CallStyle {
        let tokenizer = tokenizer();
        let marks = ["[TOOL_CALLS]", "[ARGS]", "<tool_call>", "</tool_call>"];
        let shown = marks.iter().filter(|_| control).filter_map(|mark| tokenizer.id_of(mark));
        CallStyle { form, told_by_template: true, shown: shown.collect() }
    }

    #[test]
    fn calls_in_every_form_are_taken_and_others_are_not() {
        let call = |key: &str, value: &str| format!("{{\"name\": \"add\", \"{key}\": {value}}}");
        for (form, right, wrong) in [
            (
                CallForm::Tagged,
                format!("<tool_call>\n{}\n</tool_call>", call("arguments", "{\"a\": 1}")),
                format!("<tool_call>\n{}\n</tool_call>", call("arguments", "{\"b\": 1}")),
            ),
            (CallForm::Bare, call("parameters", "{\"a\":1}"), call("parameters", "{}")),
            (
                CallForm::List,
                format!("[TOOL_CALLS][{}]", call("arguments", "{\"a\": 1}")),
                format!("[TOOL_CALLS][{}]", call("arguments", "[]")),
            ),
            (
                CallForm::Named,
                "[TOOL_CALLS]add[ARGS]{\"a\": -12}".to_owned(),
                "[TOOL_CALLS]sub[ARGS]{\"a\": 1}".to_owned(),
            ),
        ] {
            let style = style(form, true);
            for bound in [Bound::Calls, Bound::TextOrCalls] {
                let (count, end) = taken(&style, bound, false, &right);
                assert!(end, "{form:?} {bound:?} {right}: {count} tokens");
                let (count, end) = taken(&style, bound, false, &wrong);
                assert!(!end && count > 0, "{form:?} {bound:?} {wrong}: {count} tokens");
            }
            assert_eq!(taken(&style, Bound::Calls, true, "Hello.").0, 0, "{form:?}");
            assert_eq!(taken(&style, Bound::TextOrCalls, true, "Hello.\n"), (7, true), "{form:?}");
            let text = match form {
                CallForm::Bare => continue,
                CallForm::Tagged => format!("Yes\n{right}\n{right}"),
                CallForm::List => format!("{}, {}", &right[..right.len() - 1], &right[13..]),
                CallForm::Named => format!("{right}{right}"),
            };
            assert!(taken(&style, Bound::TextOrCalls, true, &text).1, "{form:?} {text}");
            assert!(!taken(&style, Bound::TextOrCalls, false, &text).1, "{form:?} {text}");
        }
    }

    #[test]
    fn marks_may_be_text() {
        let tokenizer = tokenizer();
        let style = style(CallForm::Tagged, false);
        let source = call_grammar(&style, &tokenizer, &functions(), Bound::TextOrCalls, true);
        let GrammarSource::Lark(text) = &source else { panic!("not Lark") };
        assert!(text.contains("head[lazy]") && !text.contains("<["), "{text}");
        Grammars::new(tokenizer).compile(&source).expect("compiles");
    }
}
