//! `trefoil run`.

use std::fs::File;
use std::io::{BufWriter, IsTerminal, Read, Write};
use std::path::Path;

use serde_json::json;
use trefoil_devices_api::Phase;
use trefoil_engine::generate::{Cancel, Event, Finish, Request, Summary, generate};
use trefoil_engine::loaded::Loaded;
use trefoil_engine::records::StepRecord;
use trefoil_engine::text::sampling::SamplingParams;
use trefoil_engine::trace::chrome_trace;
use trefoil_engine::usage::Usage;
use trefoil_scheduler::cost::OpClass;

use super::form::form;
use super::{chat, common};
use crate::cli::{ChatArgs, Global, RunArgs, SamplingArgs};
use crate::exit::{Failure, Outcome, Status};
use crate::sampling::Overrides;

/// Sampling parameters from flags, over what the model recommends.
pub(crate) fn sampling(args: &SamplingArgs, model: &Loaded) -> Result<SamplingParams, Failure> {
    let overrides = Overrides {
        temperature: args.temp,
        top_p: args.top_p,
        top_k: args.top_k,
        min_p: args.min_p,
        typical_p: args.typical_p,
        repeat_penalty: args.repeat_penalty,
        repeat_last_n: args.repeat_last_n,
        frequency_penalty: args.frequency_penalty,
        presence_penalty: args.presence_penalty,
        ignore_eos: args.ignore_eos,
        ..Overrides::default()
    };
    let params = overrides.params(model.text.sampling);
    let vocabulary = model.lowered.vocabulary();
    params.validate(vocabulary).map_err(|error| Failure::new(Status::Usage, error))?;
    Ok(params)
}

/// The line at the end: speeds, first token, what ran where.
pub(crate) fn statistics(model: &Loaded, summary: &Summary) -> String {
    let devices = |phase| {
        let list = model.devices(phase);
        let total: usize = list.iter().map(|(_, units)| units).sum();
        let parts = list.iter().map(|(name, units)| match list.len() {
            1 => name.clone(),
            _ => format!("{name} {:.0}%", *units as f64 * 100.0 / total as f64),
        });
        parts.collect::<Vec<_>>().join(" ")
    };
    format!(
        "prompt {} tokens {:.1}/s · generated {} tokens {:.1}/s · first token {:.0} ms · \
         prefill {} · decode {}",
        summary.prompt_tokens,
        summary.prompt_per_second(),
        summary.generated_tokens,
        summary.generated_per_second(),
        summary.prefill.as_secs_f64() * 1e3,
        devices(Phase::Prefill),
        devices(Phase::Decode),
    )
}

/// The request of one prompt, checked against the context.
pub(crate) fn request(
    model: &Loaded,
    prompt: Vec<u32>,
    args: &SamplingArgs,
) -> Result<Request, Failure> {
    let context = model.runner.context();
    if prompt.len() >= context {
        let error = format!(
            "the prompt has {} tokens, the context {context}: expected fewer; --ctx-size raises it \
             up to what the model was trained for, {}",
            prompt.len(),
            model.lowered.hyper.context
        );
        return Err(Failure::new(Status::Usage, error));
    }
    Ok(Request {
        prompt,
        sampling: sampling(args, model)?,
        max_tokens: args.max_tokens.map(|n| n as usize),
        stop: args.stop.clone(),
        seed: args.seed.unwrap_or_else(crate::random_seed),
        grammar: None,
        shown: [].into(),
    })
}

/// Generates with text going to `out` as it comes; returns ids, text and figures.
pub(crate) fn stream(
    model: &mut Loaded,
    request: &Request,
    cancel: &Cancel,
    mut out: Option<&mut dyn Write>,
) -> Result<(Vec<u32>, String, Summary), Failure> {
    let (mut ids, mut text) = (Vec::new(), String::new());
    let summary = generate(&mut model.runner, &model.text, request, cancel, &mut |event| {
        let piece = match event {
            Event::PromptRead(_) => return true,
            Event::Token { id, text, .. } => {
                ids.push(id);
                text
            }
            Event::Text(text) => text,
        };
        text.push_str(&piece);
        match &mut out {
            // A closed pipe ends the reply quietly.
            Some(out) => out.write_all(piece.as_bytes()).and_then(|()| out.flush()).is_ok(),
            None => true,
        }
    })
    .map_err(|error| Failure::new(Status::Failed, error))?;
    Ok((ids, text, summary))
}

/// Says how far devices are from what their calibration predicts, as this run taught it.
fn drift(model: &Loaded, records: &[StepRecord]) {
    let Some(predictor) = model.predictor() else { return };
    let mut costs = predictor.costs.clone();
    costs.observe(predictor.graph, &model.plan, records, predictor.kv_element_bytes);
    let factors = costs.profile.devices.iter().map(|device| {
        let factor = costs.corrections.factor(&device.name, OpClass::Linear);
        format!("{} takes {factor:.2} of the predicted time", device.name)
    });
    eprintln!("learned: {}", factors.collect::<Vec<_>>().join(", "));
}

fn trace_failure(path: &Path, error: &std::io::Error) -> Failure {
    let error = format!("{}: cannot write the trace: {error}", path.display());
    Failure::new(Status::Failed, error)
}

fn create_trace(path: &Path) -> Result<File, Failure> {
    File::create(path).map_err(|error| trace_failure(path, &error))
}

pub(crate) fn run(args: RunArgs, global: &Global) -> Outcome {
    let prompt = match &args.prompt {
        Some(prompt) => prompt.clone(),
        None if std::io::stdin().is_terminal() => {
            if args.trace.is_some() {
                let error = "--trace: expected a prompt; a chat has no trace";
                return Err(Failure::new(Status::Usage, error));
            }
            if args.form.json_schema.is_some() || args.form.grammar.is_some() {
                let error = "--json-schema, --grammar: expected a prompt; a chat has no form";
                return Err(Failure::new(Status::Usage, error));
            }
            return chat::run(
                &ChatArgs {
                    model: args.model,
                    system: args.system,
                    chat_template: args.chat_template,
                    sampling: args.sampling,
                    placement: args.placement,
                },
                global,
            );
        }
        None => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text)?;
            text
        }
    };
    let (_, mut model) = common::load(&args.model, &args.placement, args.chat_template.as_deref())?;
    if !model.lowered.hyper.causal {
        let error = format!("{} makes embeddings and cannot answer", args.model);
        return Err(Failure::new(Status::Usage, error));
    }
    let ids = if args.raw {
        model.text.encode_raw(&prompt)
    } else {
        let system = args.system.iter().map(|text| json!({"role": "system", "content": text}));
        let user = json!({"role": "user", "content": prompt});
        let messages = system.chain([user]).collect();
        model.text.encode_rendered(&model.text.render(&serde_json::Value::Array(messages), None)?)
    };
    let mut request = request(&model, ids, &args.sampling)?;
    request.grammar = form(&args.form, &model)?;
    let cancel = Cancel::default();
    crate::signals::cancel_on_signal(&cancel);
    let mut stdout = std::io::stdout();
    let out: Option<&mut dyn Write> = if args.json { None } else { Some(&mut stdout) };
    // A path that cannot be written is said before the work, not after it.
    let trace = args.trace.as_deref().map(create_trace).transpose()?;
    let recorded = args.trace.is_some() || global.verbose > 0;
    model.runner.executor.record(recorded);
    let (ids, text, summary) = stream(&mut model, &request, &cancel, out)?;
    let (records, dropped) = model.runner.executor.take_records();
    if let (Some(file), Some(path)) = (trace, &args.trace) {
        let trace = chrome_trace(&records, &model.plan, model.predictor());
        trace.write(BufWriter::new(file)).map_err(|error| trace_failure(path, &error))?;
    }
    if args.json {
        let document = json!({
            "text": text,
            "tokens": ids,
            "prompt_tokens": request.prompt,
            "finish_reason": summary.finish.name(),
            "seed": request.seed,
            "timings": {
                "prompt_n": summary.prompt_tokens,
                "prompt_ms": summary.prefill.as_secs_f64() * 1e3,
                "prompt_per_second": summary.prompt_per_second(),
                "predicted_n": summary.generated_tokens,
                "predicted_ms": summary.decode.as_secs_f64() * 1e3,
                "predicted_per_second": summary.generated_per_second(),
            },
            "prefill_devices": model.devices(Phase::Prefill),
            "decode_devices": model.devices(Phase::Decode),
        });
        writeln!(stdout, "{document}")?;
    } else {
        // A closed pipe is no failure.
        let _ = writeln!(stdout);
    }
    if !global.quiet && !args.json {
        eprintln!("{}", statistics(&model, &summary));
    }
    if recorded && !global.quiet {
        eprintln!("{}", Usage::predicted(&records, &model.plan, model.predictor()));
        drift(&model, &records);
        if dropped > 0 {
            eprintln!("the first {dropped} steps are left out: too many to keep");
        }
    }
    if summary.finish == Finish::Cancelled
        && let Some(code) = crate::signals::caught()
    {
        std::process::exit(code);
    }
    Ok(())
}
