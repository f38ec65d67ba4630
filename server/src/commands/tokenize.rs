//! `trefoil tokenize`.

use std::io::{Read, Write, stdout};
use std::path::Path;

use serde_json::json;
use trefoil_engine::model::open_file;
use trefoil_engine::text::{DecodeOptions, EncodeOptions, Tokenizer};

use crate::cli::TokenizeArgs;
use crate::exit::{Failure, Outcome, Status};

/// A tokenizer needs no weights: a folder may hold nothing but its files.
fn tokenizer(model: &str) -> Result<Tokenizer, Failure> {
    let folder = Path::new(model);
    if folder.join("tokenizer.json").exists() {
        return Ok(Tokenizer::from_folder(folder)?);
    }
    Ok(Tokenizer::from_metadata(&open_file(model)?.metadata)?)
}

pub(crate) fn run(args: &TokenizeArgs) -> Outcome {
    let tokenizer = tokenizer(&args.model)?;
    let text = match &args.text {
        Some(text) => text.clone(),
        None => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text)?;
            text
        }
    };
    if args.decode {
        let ids = parse_ids(&text, tokenizer.vocab_size())?;
        writeln!(stdout(), "{}", tokenizer.decode(&ids, DecodeOptions { special: true }))?;
        return Ok(());
    }
    let options =
        EncodeOptions { add_special: args.add_special, parse_special: !args.no_parse_special };
    let ids = tokenizer.encode(&text, options);
    if args.json {
        let pieces = ids.iter().map(|&id| {
            let bytes = tokenizer.token_bytes(id);
            let piece =
                std::str::from_utf8(bytes).map_or_else(|_| json!(bytes), |text| json!(text));
            json!({"id": id, "piece": piece})
        });
        writeln!(
            stdout(),
            "{}",
            json!({"tokens": pieces.collect::<Vec<_>>(), "count": ids.len()})
        )?;
        return Ok(());
    }
    for &id in &ids {
        writeln!(stdout(), "{id:>7}  {:?}", String::from_utf8_lossy(tokenizer.token_bytes(id)))?;
    }
    writeln!(stdout(), "{} tokens", ids.len())?;
    Ok(())
}

fn parse_ids(text: &str, vocabulary: usize) -> Result<Vec<u32>, Failure> {
    let words = text.split([',', ' ', '\n', '\t', '[', ']']).filter(|word| !word.is_empty());
    let ids = words.map(|word| match word.parse::<u32>() {
        Ok(id) if (id as usize) < vocabulary => Ok(id),
        _ => Err(Failure::new(
            Status::Usage,
            format!("expected token ids below {vocabulary}, got {word:?}"),
        )),
    });
    ids.collect()
}
