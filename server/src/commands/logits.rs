//! `trefoil logits`.

use std::io::{Write, stdout};

use serde_json::json;
use trefoil_engine::evaluate::{compare, log_sum_exp, top};
use trefoil_engine::runner::Outputs;

use super::common;
use crate::cli::LogitsArgs;
use crate::exit::{Failure, Outcome, Status};
use crate::npy;

pub(crate) fn run(args: &LogitsArgs) -> Outcome {
    if let [a, b] = args.compare.as_slice() {
        return difference(args, a, b);
    }
    let model = args.model.as_deref().unwrap_or_default();
    let (_, mut model) = common::load(model, &args.placement, None)?;
    let tokens = match &args.prompt {
        Some(text) => model.text.encode_raw(text),
        None => args.tokens.clone(),
    };
    if tokens.is_empty() {
        return Err(Failure::new(Status::Usage, "expected a text (-p) or token ids (--tokens)"));
    }
    if args.output.is_none() && args.top.is_none() {
        return Err(Failure::new(Status::Usage, "expected -o FILE or --top K"));
    }
    let mut sequence = model.runner.begin(model.plan.context);
    let (mut all, mut best) = (Vec::new(), Vec::new());
    model.runner.feed(&mut sequence, &tokens, Outputs::All, |position, logits| {
        if args.output.is_some() {
            all.extend_from_slice(logits);
        }
        if let Some(k) = args.top {
            let top: Vec<_> =
                top(logits, k).into_iter().map(|id| (id, logits[id as usize])).collect();
            best.push((position, top, log_sum_exp(logits)));
        }
    })?;
    if let Some(path) = &args.output {
        npy::write(path, tokens.len(), all.len() / tokens.len(), &all)?;
    }
    if args.json {
        let positions = best.iter().map(
            |(position, top, sum)| json!({"position": position, "top": top, "logsumexp": sum}),
        );
        writeln!(
            stdout(),
            "{}",
            json!({"tokens": tokens, "positions": positions.collect::<Vec<_>>()})
        )?;
        return Ok(());
    }
    for (position, top, _) in best {
        let words = top.iter().map(|(id, logit)| {
            let bytes = model.text.tokenizer.token_bytes(*id);
            format!("{id} {:?} {logit:.3}", String::from_utf8_lossy(bytes))
        });
        writeln!(stdout(), "{position:>5}  {}", words.collect::<Vec<_>>().join("   "))?;
    }
    Ok(())
}

fn difference(args: &LogitsArgs, a: &std::path::Path, b: &std::path::Path) -> Outcome {
    let read = |path| npy::read(path).map_err(|error| Failure::new(Status::Usage, error));
    let ((rows_a, cols_a, a), (rows_b, cols_b, b)) = (read(a)?, read(b)?);
    if (rows_a, cols_a) != (rows_b, cols_b) {
        let error = format!(
            "expected two files of one shape, got {rows_a} x {cols_a} and {rows_b} x {cols_b}"
        );
        return Err(Failure::new(Status::Usage, error));
    }
    let difference = compare(&a, &b, cols_a);
    if args.json {
        writeln!(stdout(), "{}", serde_json::to_string(&difference)?)?;
    } else {
        writeln!(stdout(), "positions           {}", difference.positions)?;
        writeln!(stdout(), "largest difference  {:.6}", difference.max_abs)?;
        writeln!(stdout(), "mean KL(A || B)     {:.3e}", difference.mean_kl)?;
        writeln!(stdout(), "same best token     {:.2} %", difference.top1 * 100.0)?;
        writeln!(stdout(), "best five shared    {:.2} %", difference.top5 * 100.0)?;
    }
    Ok(())
}
