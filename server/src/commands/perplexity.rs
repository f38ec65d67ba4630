//! `trefoil perplexity`.

use std::io::{Write, stdout};

use trefoil_engine::evaluate::{WINDOW, perplexity};
use trefoil_engine::text::EncodeOptions;

use super::common;
use crate::cli::PerplexityArgs;
use crate::exit::{Failure, Outcome, Status};

pub(crate) fn run(args: &PerplexityArgs) -> Outcome {
    let text = common::read_text(&args.file, Status::Usage)?;
    let mut placement = args.placement.clone();
    placement.ctx_size = Some(WINDOW as u32);
    let (_, mut model) = common::load(&args.model, &placement, None)?;
    let options = EncodeOptions { add_special: true, parse_special: false };
    let tokenizer = &model.text.tokenizer;
    let tokens = tokenizer.encode(&text, options);
    let bos = tokenizer.bos().filter(|_| tokenizer.add_bos());
    let bar = common::bar(
        (tokens.len() / WINDOW) as u64,
        "{bar:40} window {pos}/{len}  perplexity {msg}  {eta} left",
    );
    let result = perplexity(&mut model.runner, &tokens, bos, |done, _, so_far| {
        bar.set_position(done as u64);
        bar.set_message(format!("{so_far:.4}"));
    });
    bar.finish_and_clear();
    let result = result?;
    if args.json {
        writeln!(stdout(), "{}", serde_json::to_string(&result)?)?;
    } else {
        writeln!(stdout(), "perplexity {:.4} ± {:.4}", result.ppl, result.stderr)?;
        writeln!(
            stdout(),
            "loss {:.6} over {} windows of {WINDOW} tokens",
            result.nll,
            result.windows
        )?;
    }
    match args.max {
        Some(max) if result.ppl > max => {
            let got = result.ppl;
            let error = format!("perplexity: expected at most {max}, got {got:.4}");
            Err(Failure::new(Status::Check, error))
        }
        _ => Ok(()),
    }
}
