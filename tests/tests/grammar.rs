//! Replies that follow grammars: valid whatever the model would say, and the same alone and in a batch.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use trefoil_engine::generate::{Finish, Request};
use trefoil_engine::grammar::{GrammarError, GrammarSource, check_schema};
use trefoil_engine::loaded::Loaded;
use trefoil_engine::service::{Order, ServiceError, ServiceOptions};
use trefoil_kernels::cases::Random;
use trefoil_tests::schemas::{check, schema};
use trefoil_tests::serving::{Place, Reply, Sent, alone, request, send};

/// Cases in a usual run, and where more are asked for.
const CASES: usize = 100;
/// Set to the number of cases wanted.
const MORE: &str = "TREFOIL_GRAMMAR_CASES";

/// Time after which an update counts as not coming, where many replies wait for their turn.
const PATIENCE: Duration = Duration::from_secs(600);

fn cases() -> usize {
    std::env::var(MORE).map_or(CASES, |count| count.parse().expect("a number"))
}

fn source(schema: &Value) -> GrammarSource {
    let checked = check_schema(schema, true).unwrap_or_else(|error| panic!("{schema}: {error}"));
    GrammarSource::JsonSchema(checked)
}

/// A request for a reply by a grammar, of a prompt that has nothing to do with it.
fn by(model: &Loaded, source: &GrammarSource, temperature: f32, seed: i64) -> Request {
    let grammar = model.text.grammars.compile(source);
    let grammar = grammar.unwrap_or_else(|error| panic!("{source:?}: {error}"));
    let prompt = model.text.encode_raw("Tell me something about yourself.");
    let mut request = request(prompt, temperature, seed, 160);
    request.sampling.ignore_eos = false;
    request.grammar = Some(grammar);
    request
}

fn ended(reply: &Reply) -> bool {
    matches!(reply.summary().finish, Finish::EndToken(_))
}

fn demo() -> Loaded {
    let place = Place::demo();
    place.load(&place.options)
}

/// Replies by random schemas, by any object and by a fixed recursive schema, many at a time.
fn all_valid(place: &Place, count: usize) {
    let model = place.load(&place.options);
    let options = ServiceOptions { sequences: 8, queue: count, ..ServiceOptions::default() };
    let (service, _) = place.serve(8 * 256, options);
    let mut random = Random::new(11);
    let tree = json!({
        "type": "object", "required": ["value"], "additionalProperties": false,
        "properties": {"value": {"type": "integer"}, "next": {"$ref": "#"}},
    });
    let sent: Vec<(Value, Sent)> = (0..count)
        .map(|case| {
            let (schema, source) = match case % 25 {
                8 => (json!({"type": "object"}), GrammarSource::JsonObject),
                9 => (tree.clone(), source(&tree)),
                _ => {
                    let schema = schema(&mut random);
                    let source = source(&schema);
                    (schema, source)
                }
            };
            let temperature = if case % 5 == 0 { 0.0 } else { 1.0 };
            let request = by(&model, &source, temperature, case as i64);
            (schema, send(&service, Order::new(request)))
        })
        .collect();
    let mut finished = 0;
    for (schema, sent) in sent {
        let reply = sent.wait(PATIENCE).remove(0);
        if !ended(&reply) {
            assert_eq!(reply.summary().finish, Finish::MaxTokens, "{schema}: {}", reply.text);
            continue;
        }
        finished += 1;
        let document: Value = serde_json::from_str(&reply.text)
            .unwrap_or_else(|error| panic!("{schema}: {error}: {}", reply.text));
        check(&schema, &document)
            .unwrap_or_else(|error| panic!("{schema}: {error}: {}", reply.text));
    }
    println!("{finished} of {count} replies came to their end, all of them valid");
    assert!(finished * 10 >= count * 7, "{finished} of {count}");
}

#[test]
fn replies_are_valid_by_their_schemas() {
    all_valid(&Place::demo(), cases());
}

#[test]
fn replies_of_a_real_model_are_valid_by_their_schemas() {
    let Some(folder) = std::env::var_os("TREFOIL_REAL_MODELS") else { return };
    let file = std::path::PathBuf::from(folder).join("SmolLM2-135M-Instruct.Q4_1.gguf");
    let place = Place { name: file.to_string_lossy().into_owned(), ..Place::demo() };
    all_valid(&place, cases());
}

const ARITHMETIC: &str = r#"
root  ::= expr "=" ws num "\n"
expr  ::= term ([-+*/] term)*   # no spaces
term  ::= num | "(" ws expr ")" ws
num   ::= [0-9]{1,3} ws
ws    ::= ([ \t] ws)?
"#;

#[test]
fn replies_follow_gbnf_lark_and_regular_expressions() {
    let mut model = demo();
    let expression = fancy_regex::Regex::new(r"\A[-+*/()0-9 \t]+=[ \t]*[0-9]{1,3}[ \t]*\n\z");
    let expression = expression.expect("valid");
    let word = fancy_regex::Regex::new(r"\A(?:yes|no|[äöü]{3}[^a-z]?)\z").expect("valid");
    let mut ends = 0;
    for seed in 0..20 {
        let reply = {
            let request = by(&model, &GrammarSource::Gbnf(ARITHMETIC.to_owned()), 1.0, seed);
            alone(&mut model, &request)
        };
        if ended(&reply) {
            ends += 1;
            assert!(expression.is_match(&reply.text).expect("it ends"), "{:?}", reply.text);
            let open = reply.text.matches('(').count();
            assert_eq!(open, reply.text.matches(')').count(), "{:?}", reply.text);
        }
        for source in [
            GrammarSource::Gbnf("root ::= \"yes\" | \"no\" | [äöü]{3} [^a-z]?".to_owned()),
            GrammarSource::Lark("start: /yes|no/ | UML\nUML: /[äöü]{3}[^a-z]?/".to_owned()),
            GrammarSource::Regex("yes|no|[äöü]{3}[^a-z]?".to_owned()),
        ] {
            let request = by(&model, &source, 1.0, seed);
            let reply = alone(&mut model, &request);
            assert!(ended(&reply), "{source:?}: {:?}", reply.text);
            assert!(word.is_match(&reply.text).expect("it ends"), "{source:?}: {:?}", reply.text);
        }
    }
    assert!(ends > 0, "some expressions come to an end");
}

#[test]
fn the_end_of_the_grammar_is_the_end_of_the_reply() {
    let mut model = demo();
    let source = source(&json!({"const": {"a": [1, 2]}}));
    let mut request = by(&model, &source, 0.0, 0);
    // Whatever else is asked for.
    request.sampling.ignore_eos = true;
    request.sampling.min_tokens = 100;
    let reply = alone(&mut model, &request);
    assert!(ended(&reply), "{:?}", reply.summary());
    let document: Value = serde_json::from_str(&reply.text).expect("JSON");
    assert_eq!(document, json!({"a": [1, 2]}));
}

/// Many replies, some by grammars, in a small cache where sequences give way to others; several to one
/// prompt.
#[test]
fn a_reply_by_a_grammar_is_the_same_alone_and_in_any_mix() {
    let mut model = demo();
    let mut random = Random::new(5);
    let requests: Vec<Request> = (0..16)
        .map(|index| match index % 4 {
            3 => request(model.text.encode_raw("Who are you?"), 1.0, index, 30),
            _ => by(&model, &source(&schema(&mut random)), (index % 2) as f32, index),
        })
        .collect();
    let want: Vec<Reply> = requests.iter().map(|request| alone(&mut model, request)).collect();
    for (kv_tokens, sequences) in [(4096, 8), (256, 8)] {
        let options = ServiceOptions { sequences, ..ServiceOptions::default() };
        let (service, _) = Place::demo().serve(kv_tokens, options);
        let sent: Vec<_> = requests
            .iter()
            .map(|request| {
                // The second of the replies is not looked at: it only must not disturb the first.
                send(&service, Order { choices: 2, ..Order::new(request.clone()) })
            })
            .collect();
        for (sent, want) in sent.into_iter().zip(&want) {
            let replies = sent.replies();
            assert_eq!(replies[0].tokens, want.tokens);
            assert_eq!(replies[0].summary().finish, want.summary().finish);
        }
    }
}

#[test]
fn hostile_grammars_are_refused_in_time() {
    let model = demo();
    let nested = (0..60).fold(json!({"type": "string"}), |inner, _| json!({"items": inner}));
    let wide: Vec<Value> = (0..3000).map(|i| json!({"const": format!("{i:05}x")})).collect();
    let many: serde_json::Map<String, Value> =
        (0..4000).map(|i| (format!("p{i}"), json!({"type": "integer"}))).collect();
    let alike = |i: u32| json!({"anyOf": [{"properties": {"a": {"const": i}}}, {"type": "null"}]});
    let product: Vec<Value> = (0..40).map(alike).collect();
    let schemas = [
        json!({"type": "string", "pattern": "(((a{1000}){1000}){1000}){1000}"}),
        json!({"type": "string", "pattern": format!("{}a{}", "(".repeat(5000), ")".repeat(5000))}),
        json!({"type": "string", "pattern": "("}),
        json!({"type": "string", "pattern": "(.*a.{40}){40}"}),
        json!({"type": "string", "maxLength": 4294967295_u64}),
        json!({"type": "array", "minItems": 4000000000_u64, "items": {"type": "null"}}),
        json!({"$ref": "#"}),
        json!({"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}),
        json!({"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"allOf": [{"$ref": "#"}]}}}),
        json!({"type": "object", "required": ["a"], "additionalProperties": false}),
        json!(false),
        json!({"type": "object", "required": ["a"], "properties": {"a": {"$ref": "#"}}}),
        json!({"type": "integer", "minimum": 5, "maximum": 4}),
        json!({"type": "number", "minimum": 1e300, "maximum": 1e308}),
        nested,
        json!({ "anyOf": wide }),
        json!({"properties": many, "type": "object"}),
        json!({ "allOf": product }),
    ];
    for schema in schemas {
        try_out(&model, &source(&schema));
    }
    for grammar in [
        "root ::= root",
        "root ::= root root | \"a\"",
        "root ::= \"a\"{100000}{100000}",
        "root ::= a a a a a a a a\na ::= b b b b b b b b\nb ::= c c c c c c c c\nc ::= [a-z]{1000}",
        "root ::= ((\"a\"*)*)* \"b\"",
        "root ::= \"\"",
    ] {
        try_out(&model, &GrammarSource::Gbnf(grammar.to_owned()));
    }
    for grammar in
        ["", "start: start", "start: %json {\"$ref\": \"#\"}", "start: \u{0}", "%import x"]
    {
        try_out(&model, &GrammarSource::Lark(grammar.to_owned()));
    }
    let deep = format!("start: {}\"a\"", "(".repeat(100_000));
    try_out(&model, &GrammarSource::Lark(deep));
    try_out(&model, &GrammarSource::Regex("(a|b|ab)*{9}".repeat(2000)));
    let long = GrammarSource::Gbnf(format!("root ::= \"{}\"", "a".repeat(300_000)));
    assert!(matches!(model.text.grammars.compile(&long), Err(GrammarError::TooComplex(_))));
}

/// Compiles a grammar, and makes a few tokens by it if it is taken: each in bounded time, without a
/// panic.
fn try_out(model: &Loaded, source: &GrammarSource) {
    let begin = Instant::now();
    let result = model.text.grammars.compile(source);
    let took = begin.elapsed();
    let shown = format!("{source:?}").chars().take(120).collect::<String>();
    assert!(took < Duration::from_secs(20), "{shown}: {took:?}");
    let Ok(grammar) = result else {
        println!("{took:?} {shown}: {}", result.expect_err("refused"));
        return;
    };
    println!("{took:?} {shown}: taken");
    let (service, _) = Place::demo().serve(512, ServiceOptions::default());
    let mut request = request(vec![1], 1.0, 3, 20);
    request.grammar = Some(grammar);
    let begin = Instant::now();
    let reply = send(&service, Order::new(request)).reply();
    let took = begin.elapsed();
    println!("    {took:?} {:?} {:?}", reply.end, reply.text);
    let end = reply.end.expect("it ended");
    assert!(!matches!(end, Err(ServiceError::Panicked)), "{shown}: {end:?}");
    assert!(took < Duration::from_secs(30), "{shown}: {took:?}");
}
