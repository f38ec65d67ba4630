//! Speed of a whole model: `models FILE [--device NAME] [--threads N] [--prompt N] [--generate N]
//! [--runs N] [--json] [--wait]`.
//!
//! A run reads a prompt of `--prompt` tokens (512) and then, in a new sequence, generates
//! `--generate` tokens (128) one by one from an empty context; both rates are tokens a second. The
//! first run is not counted. With `--wait` each run begins when a line comes in on the standard
//! input and prints its two rates at once, so that another program can take turns with this one.

use std::io::BufRead;
use std::time::Instant;

use trefoil_benches::stats::Spread;
use trefoil_engine::backends::{BackendOptions, Backends};
use trefoil_engine::model::{Lowered, ModelOptions, open_file};
use trefoil_engine::runner::{Outputs, Runner};

struct Arguments {
    file: String,
    device: Option<String>,
    threads: usize,
    prompt: usize,
    generate: usize,
    runs: usize,
    json: bool,
    wait: bool,
}

fn arguments() -> Arguments {
    let mut args = std::env::args().skip(1);
    let mut out = Arguments {
        file: String::new(),
        device: None,
        threads: 0,
        prompt: 512,
        generate: 128,
        runs: 5,
        json: false,
        wait: false,
    };
    while let Some(arg) = args.next() {
        let mut value = || args.next().unwrap_or_else(|| panic!("{arg} needs a value"));
        let number = |text: String| text.parse().unwrap_or_else(|_| panic!("no number: {text}"));
        match arg.as_str() {
            "--device" => out.device = Some(value()),
            "--threads" => out.threads = number(value()),
            "--prompt" => out.prompt = number(value()),
            "--generate" => out.generate = number(value()),
            "--runs" => out.runs = number(value()),
            "--json" => out.json = true,
            "--wait" => out.wait = true,
            file => out.file = file.to_owned(),
        }
    }
    assert!(!out.file.is_empty(), "usage: models FILE [options]; see the source");
    out
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = arguments();
    let backends =
        Backends::detect(BackendOptions { threads: arguments.threads, ..Default::default() });
    let options = ModelOptions {
        device: arguments.device.clone(),
        context: Some(arguments.prompt.max(arguments.generate).max(1)),
        ..Default::default()
    };
    let lowered = Lowered::new(open_file(&arguments.file)?, options.lower)?;
    let plan = lowered.plan(&backends, &options)?;
    let mut runner = lowered.runner(&backends, &plan, &options)?;
    let vocabulary = lowered.vocabulary();

    run(&mut runner, &arguments, vocabulary)?;
    if arguments.wait {
        for line in std::io::stdin().lock().lines() {
            line?;
            let (prompt, generate) = run(&mut runner, &arguments, vocabulary)?;
            println!("{prompt} {generate}");
        }
        return Ok(());
    }
    let mut rates = (Vec::new(), Vec::new());
    for _ in 0..arguments.runs.max(1) {
        let (prompt, generate) = run(&mut runner, &arguments, vocabulary)?;
        rates.0.push(prompt);
        rates.1.push(generate);
    }
    let (prompt, generate) = (Spread::of(rates.0), Spread::of(rates.1));
    if arguments.json {
        let json =
            |s: Spread| serde_json::json!({"low": s.low, "median": s.median, "high": s.high});
        let report = serde_json::json!({
            "model": arguments.file,
            "prompt_tokens": arguments.prompt,
            "generated_tokens": arguments.generate,
            "prompt_rate": json(prompt),
            "generate_rate": json(generate),
        });
        println!("{report}");
    } else {
        for (name, count, s) in
            [("pp", arguments.prompt, prompt), ("tg", arguments.generate, generate)]
        {
            let Spread { low, median, high, .. } = s;
            println!("{name}{count}: {median:.1} tokens/s ({low:.1} to {high:.1})");
        }
    }
    Ok(())
}

/// Tokens a second of a prompt, and of generation.
fn run(
    runner: &mut Runner,
    arguments: &Arguments,
    vocabulary: usize,
) -> Result<(f64, f64), Box<dyn std::error::Error>> {
    let token = |i: usize| ((i * 7919 + 13) % vocabulary) as u32;
    let mut rates = [f64::NAN; 2];
    if arguments.prompt > 0 {
        let tokens: Vec<u32> = (0..arguments.prompt).map(token).collect();
        let mut sequence = runner.begin(arguments.prompt);
        let start = Instant::now();
        runner.feed(&mut sequence, &tokens, Outputs::Last, |_, logits| {
            std::hint::black_box(logits);
        })?;
        rates[0] = arguments.prompt as f64 / start.elapsed().as_secs_f64();
        runner.end(sequence);
    }
    if arguments.generate > 0 {
        let mut sequence = runner.begin(arguments.generate);
        let start = Instant::now();
        for i in 0..arguments.generate {
            runner.feed(&mut sequence, &[token(i)], Outputs::Last, |_, logits| {
                std::hint::black_box(logits);
            })?;
        }
        rates[1] = arguments.generate as f64 / start.elapsed().as_secs_f64();
        runner.end(sequence);
    }
    Ok((rates[0], rates[1]))
}
