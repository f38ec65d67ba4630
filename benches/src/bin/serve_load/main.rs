//! Drives OpenAI-compatible servers with 1, 4, 8, 16 streams at a time: tokens per second of all
//! streams together, time to the first text, time between texts. With several servers they take turns,
//! so that what disturbs the machine disturbs all of them.
//!
//! ```text
//! cargo run --release -p trefoil-benches --bin serve_load -- \
//!     --server trefoil=http://127.0.0.1:9378/v1 --server peer=http://127.0.0.1:8080/v1
//! ```

mod client;

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use client::{Answer, Ask, Server};

/// Measures OpenAI-compatible servers under several streams at once.
#[derive(Clone, Debug, Parser)]
struct Args {
    /// A server: NAME=http://HOST:PORT/v1; several take turns
    #[arg(long = "server", value_name = "NAME=URL", required = true)]
    servers: Vec<Server>,
    /// Model that requests name
    #[arg(long, default_value = "default")]
    model: String,
    /// Streams at a time
    #[arg(long, value_delimiter = ',', default_value = "1,4,8,16")]
    streams: Vec<usize>,
    /// Requests of each stream, one after another
    #[arg(long, default_value_t = 2)]
    requests: usize,
    /// Rounds; each server has one turn in each
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Words of each prompt; no two prompts begin alike
    #[arg(long, default_value_t = 100)]
    words: usize,
    /// Words that all prompts begin with, to see what a server keeps of them
    #[arg(long, default_value_t = 0)]
    shared_words: usize,
    /// Tokens of each reply
    #[arg(short = 'n', long, default_value_t = 128)]
    tokens: usize,
    /// Key that servers want
    #[arg(long)]
    api_key: Option<String>,
}

/// What a server did in all its turns with a number of streams.
#[derive(Debug, Default)]
struct Tally {
    /// Tokens per second of each turn.
    rates: Vec<f64>,
    first: Vec<Duration>,
    gaps: Vec<Duration>,
    prompt_tokens: usize,
    requests: usize,
}

const WORDS: [&str; 16] = [
    "the", "river", "runs", "under", "seven", "old", "bridges", "and", "every", "morning", "a",
    "grey", "cat", "counts", "them", "twice",
];

/// Text of `count` words; texts of different numbers differ from the first word on.
fn words(number: usize, count: usize) -> String {
    let mut text = format!("{number}");
    for at in 1..count {
        text.push(' ');
        text.push_str(WORDS[(at * 7 + at / 5 + number) % WORDS.len()]);
    }
    text
}

/// One turn: so many streams at a time, each with its requests one after another.
fn turn(
    args: &Args,
    server: &Server,
    streams: usize,
    numbers: &AtomicUsize,
) -> Result<(Vec<Answer>, Duration), String> {
    let answers = Mutex::new(Vec::new());
    let failure = Mutex::new(None);
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..streams {
            scope.spawn(|| {
                for _ in 0..args.requests {
                    let number = numbers.fetch_add(1, Ordering::Relaxed);
                    let mut prompt = words(number, args.words);
                    if args.shared_words > 0 {
                        prompt = format!("{} {prompt}", words(0, args.shared_words));
                    }
                    let ask = Ask {
                        model: args.model.clone(),
                        prompt,
                        tokens: args.tokens,
                        key: args.api_key.clone(),
                    };
                    match client::ask(server, &ask) {
                        Ok(answer) => answers.lock().expect("no panic").push(answer),
                        Err(error) => {
                            failure.lock().expect("no panic").get_or_insert(error);
                            return;
                        }
                    }
                }
            });
        }
    });
    let took = begin.elapsed();
    match failure.into_inner().expect("no panic") {
        Some(error) => Err(error),
        None => Ok((answers.into_inner().expect("no panic"), took)),
    }
}

/// The value below which `share` of the sorted values are; 0 of none.
fn percentile(sorted: &[Duration], share: f64) -> f64 {
    let at = (sorted.len().saturating_sub(1) as f64 * share).round() as usize;
    sorted.get(at).map_or(0.0, |value| value.as_secs_f64() * 1e3)
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

#[expect(clippy::print_stdout, reason = "the report is what the program is for")]
fn report(server: &Server, streams: usize, tally: &mut Tally) {
    tally.first.sort_unstable();
    tally.gaps.sort_unstable();
    let [low, high] = [f64::min, f64::max]
        .map(|pick| tally.rates.iter().copied().reduce(pick).unwrap_or_default());
    println!(
        "| {} | {streams} | {:.1} ({low:.1} to {high:.1}) | {} | {:.0} | {:.0} | {:.2} | {:.2} | {:.2} |",
        server.name,
        median(&tally.rates),
        tally.prompt_tokens / tally.requests.max(1),
        percentile(&tally.first, 0.5),
        percentile(&tally.first, 0.99),
        percentile(&tally.gaps, 0.5),
        percentile(&tally.gaps, 0.95),
        percentile(&tally.gaps, 0.99),
    );
}

#[expect(clippy::print_stdout, reason = "the report is what the program is for")]
fn run(args: &Args) -> Result<(), String> {
    let numbers = AtomicUsize::new(1);
    // Nobody's first request counts.
    for server in &args.servers {
        let short = Args { requests: 1, tokens: args.tokens.min(8), ..args.clone() };
        turn(&short, server, 1, &numbers)?;
    }
    println!(
        "| server | streams | tokens/s, median (range) | prompt | first ms p50 | p99 | between ms p50 | \
         p95 | p99 |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for &streams in &args.streams {
        let mut tallies: Vec<Tally> = args.servers.iter().map(|_| Tally::default()).collect();
        for round in 0..args.rounds {
            let mut order: Vec<usize> = (0..args.servers.len()).collect();
            // Who begins changes from round to round.
            order.rotate_left(round % args.servers.len());
            for index in order {
                let (answers, took) = turn(args, &args.servers[index], streams, &numbers)?;
                let tally = &mut tallies[index];
                let tokens: usize = answers.iter().map(|answer| answer.tokens).sum();
                tally.rates.push(tokens as f64 / took.as_secs_f64());
                tally.requests += answers.len();
                for answer in answers {
                    tally.prompt_tokens += answer.prompt_tokens;
                    tally.first.push(answer.first);
                    tally.gaps.extend(answer.gaps);
                }
            }
        }
        for (server, tally) in args.servers.iter().zip(&mut tallies) {
            report(server, streams, tally);
        }
    }
    Ok(())
}

#[expect(clippy::print_stderr, reason = "errors of a program go there")]
fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("serve_load: {error}");
            ExitCode::FAILURE
        }
    }
}
