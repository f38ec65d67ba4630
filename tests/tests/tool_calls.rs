//! The form of calls that templates show, and replies that are bound to calls.

use serde_json::{Value, json};
use trefoil_engine::grammar::check_schema;
use trefoil_engine::loaded::Loaded;
use trefoil_engine::text::ChatTemplate;
use trefoil_engine::text::tools::{
    Bound, CallEvent, CallForm, CallParser, CallStyle, Function, call_grammar,
};
use trefoil_tests::golden;
use trefoil_tests::schemas::check;
use trefoil_tests::serving::{Place, alone, request};

fn demo() -> Loaded {
    let place = Place::demo();
    place.load(&place.options)
}

#[test]
fn templates_tell_the_form_of_calls() {
    let model = demo();
    let folder = golden::part("templates").join("templates");
    let mut found = 0;
    for (name, form, told) in [
        ("Qwen-Qwen2.5-7B-Instruct", CallForm::Tagged, true),
        ("Qwen-Qwen3-0.6B", CallForm::Tagged, true),
        ("NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use", CallForm::Tagged, true),
        ("meta-llama-Llama-3.1-8B-Instruct", CallForm::Bare, true),
        ("meta-llama-Llama-3.2-3B-Instruct", CallForm::Bare, true),
        ("mistralai-Mistral-Nemo-Instruct-2407", CallForm::List, true),
        ("Mistral-Small-3.2-24B-Instruct-2506", CallForm::Named, true),
        ("gguf-smollm2-135m-instruct", CallForm::Tagged, false),
        ("google-gemma-2-2b-it", CallForm::Tagged, false),
    ] {
        // The repository carries some of them.
        let file = std::fs::read_to_string(folder.join(format!("{name}.jinja")));
        let Ok(source) = file else { continue };
        found += 1;
        let template = ChatTemplate::new(&source, "<s>", "</s>").expect("compiles");
        let style = CallStyle::of(&template, &model.text.tokenizer);
        assert_eq!((style.form, style.told_by_template), (form, told), "{name}");
    }
    assert!(found >= 4, "{found} templates");
    for (source, form) in [
        ("{% if tools %}{{ tools }}<|python_tag|>{% endif %}", CallForm::Bare),
        ("{% if tools %}[TOOL_CALLS]{{ tools }}[ARGS]{% endif %}", CallForm::Named),
        ("{{ messages }}[TOOL_CALLS]", CallForm::Tagged),
    ] {
        let template = ChatTemplate::new(source, "<s>", "</s>").expect("compiles");
        assert_eq!(CallStyle::of(&template, &model.text.tokenizer).form, form, "{source}");
    }
}

#[test]
fn calls_that_a_reply_is_bound_to_are_valid() {
    let mut model = demo();
    let schema = json!({
        "type": "object", "required": ["city"], "additionalProperties": false,
        "properties": {"city": {"type": "string", "maxLength": 10}, "on": {"type": "boolean"}},
    });
    let function = |name: &str, schema: &Value| Function {
        name: name.to_owned(),
        parameters: check_schema(schema, true).expect("plain"),
    };
    let functions = [function("a", &schema), function("b", &json!({"properties": {}}))];
    let names = || vec!["a".to_owned(), "b".to_owned()];
    let (mut found, mut ended) = (0, 0);
    for form in [CallForm::Tagged, CallForm::Bare, CallForm::List, CallForm::Named] {
        for bound in [Bound::Calls, Bound::TextOrCalls] {
            let style = CallStyle { form, told_by_template: true, shown: [].into() };
            let tokenizer = &model.text.tokenizer;
            let source = call_grammar(&style, tokenizer, &functions[..1], bound, false);
            let grammar = model.text.grammars.compile(&source);
            let grammar = grammar.unwrap_or_else(|error| panic!("{source:?}: {error}"));
            for seed in 0..8 {
                let prompt = model.text.encode_raw("Call the function.");
                let mut request = request(prompt, 1.0, seed, 80);
                request.sampling.ignore_eos = false;
                request.grammar = Some(grammar.clone());
                let reply = alone(&mut model, &request);
                let mut parser = CallParser::new(form, names(), 9);
                let mut events = Vec::new();
                parser.push(&reply.text, &mut events);
                parser.finish(&mut events);
                if !matches!(reply.summary().finish.name(), "stop") {
                    continue;
                }
                ended += 1;
                let mut calls = 0;
                for event in events {
                    let CallEvent::Call { arguments, .. } = event else { continue };
                    let arguments: Value = serde_json::from_str(&arguments).expect("JSON");
                    check(&schema, &arguments).unwrap_or_else(|error| panic!("{error}"));
                    calls += 1;
                }
                assert!(calls == 1 || bound == Bound::TextOrCalls, "{form:?}: {:?}", reply.text);
                found += calls;
            }
        }
    }
    assert!(found >= 20 && ended >= 40, "{found} calls in {ended} replies");
}
