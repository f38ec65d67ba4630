//! Speed of replies that follow a JSON schema over that of replies that follow nothing.
//!
//! `cargo run --release -p trefoil-benches --bin constrained -- demo --streams 1,8`
//!
//! Both kinds take turns on one service, with the same prompts and as many tokens each; the time counts
//! from the first token of the last reply to begin until the first reply ends.

use std::sync::mpsc::channel;
use std::time::Instant;

use clap::Parser;
use serde_json::json;
use trefoil_engine::backends::{BackendOptions, Backends};
use trefoil_engine::generate::{Event, Request};
use trefoil_engine::grammar::{Grammar, GrammarSource, check_schema};
use trefoil_engine::loaded::{Loaded, TextSide};
use trefoil_engine::model::ModelOptions;
use trefoil_engine::service::{Order, Service, ServiceOptions, Update};
use trefoil_engine::text::sampling::SamplingParams;

#[derive(Debug, Parser)]
#[command(about = "Speed under a JSON schema, as a ratio to free replies")]
struct Args {
    /// Model file or folder, or `demo`
    model: String,
    /// Device; the plan decides without
    #[arg(long)]
    device: Option<String>,
    /// Replies at a time
    #[arg(long, value_delimiter = ',', default_value = "1,8")]
    streams: Vec<usize>,
    /// Turns of each kind
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Tokens of each reply
    #[arg(short = 'n', long, default_value_t = 128)]
    tokens: usize,
}

/// A schema whose documents never end before the tokens do: objects with texts and numbers.
fn schema() -> GrammarSource {
    let person = json!({
        "type": "object", "additionalProperties": false, "required": ["name", "age", "tags"],
        "properties": {
            "name": {"type": "string", "minLength": 3, "maxLength": 60},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 3},
        },
    });
    let schema = json!({"type": "array", "items": person, "minItems": 10_000});
    GrammarSource::JsonSchema(check_schema(&schema, true).expect("the schema is plain"))
}

/// Tokens per second of `streams` replies at a time, seed by seed.
fn turn(
    service: &Service,
    text: &TextSide,
    args: &Args,
    streams: usize,
    grammar: Option<&Grammar>,
) -> f64 {
    let (sender, updates) = channel();
    for stream in 0..streams {
        let mut sampling = SamplingParams::default();
        sampling.ignore_eos = true;
        let request = Request {
            prompt: text.encode_raw(&format!("{stream} people, as a list in JSON:")),
            sampling,
            max_tokens: Some(args.tokens),
            stop: Vec::new(),
            seed: stream as i64,
            grammar: grammar.cloned(),
            shown: [].into(),
        };
        let sender = sender.clone();
        let sink = Box::new(move |_, update| sender.send((stream, update)).is_ok());
        service.submit(Order::new(request), sink).expect("there is room in the queue");
    }
    drop(sender);
    let mut begun = vec![false; streams];
    let (mut start, mut tokens) = (None, 0_usize);
    for (stream, update) in updates {
        match update {
            Update::Event(Event::Token { .. }) => {
                tokens += usize::from(start.is_some());
                begun[stream] = true;
                if start.is_none() && begun.iter().all(|begun| *begun) {
                    start = Some(Instant::now());
                }
            }
            Update::Done(result) => {
                result.expect("the reply is made");
                break;
            }
            _ => {}
        }
    }
    let start = start.expect("all begin before the first ends");
    tokens as f64 / start.elapsed().as_secs_f64()
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let args = Args::parse();
    let backends = Backends::detect(BackendOptions::default());
    let most = args.streams.iter().copied().max().unwrap_or(1);
    let options = ModelOptions {
        device: args.device.clone(),
        context: Some(args.tokens + 64),
        decode_batch: most.min(8),
        kv_tokens: Some((args.tokens + 64) * most),
        ..ModelOptions::default()
    };
    let loaded = Loaded::open(&args.model, &backends, &options, None).unwrap_or_else(|error| {
        eprintln!("{}: {error}", args.model);
        std::process::exit(3);
    });
    let text = loaded.text.clone();
    let options = ServiceOptions { sequences: most, ..ServiceOptions::default() };
    let service = Service::start(loaded.runner, loaded.text, options).expect("a thread starts");
    let begin = Instant::now();
    let grammar = text.grammars.compile(&schema()).expect("the schema compiles");
    println!("vocabulary and schema: {:.0} ms", begin.elapsed().as_secs_f64() * 1e3);
    let begin = Instant::now();
    let source = GrammarSource::Regex("[a-z]+".to_owned());
    text.grammars.compile(&source).expect("the expression compiles");
    println!("another grammar: {:.2} ms", begin.elapsed().as_secs_f64() * 1e3);
    println!("streams  free tokens/s  by schema tokens/s  ratio (of each pair: least, most)");
    for &streams in &args.streams {
        turn(&service, &text, &args, streams, Some(&grammar));
        let (mut free, mut bound, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..args.rounds {
            free.push(turn(&service, &text, &args, streams, None));
            bound.push(turn(&service, &text, &args, streams, Some(&grammar)));
            ratios.push(bound[bound.len() - 1] / free[free.len() - 1]);
        }
        let ratio = median(&mut ratios);
        let (least, most) = (ratios[0], ratios[ratios.len() - 1]);
        let (free, bound) = (median(&mut free), median(&mut bound));
        println!("{streams:7}  {free:13.1}  {bound:18.1}  {ratio:.3} ({least:.3}, {most:.3})");
    }
}
