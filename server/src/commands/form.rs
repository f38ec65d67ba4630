//! The form that `run` holds a reply to: `--json-schema`, `--grammar`.

use trefoil_engine::grammar::{Grammar, GrammarSource, check_schema};
use trefoil_engine::loaded::Loaded;

use crate::cli::FormArgs;
use crate::exit::{Failure, Status};

/// Compiles what the flags ask for.
pub(crate) fn form(args: &FormArgs, model: &Loaded) -> Result<Option<Grammar>, Failure> {
    let usage = |error: String| Failure::new(Status::Usage, error);
    let read = |flag: &str, path: &str| {
        std::fs::read_to_string(path)
            .map_err(|error| usage(format!("{flag}: expected a file, {path}: {error}")))
    };
    let source = match (&args.json_schema, &args.grammar) {
        (Some(schema), _) => {
            let text = match schema.trim_start().starts_with('{') {
                true => schema.clone(),
                false => read("--json-schema", schema)?,
            };
            let schema = serde_json::from_str(&text)
                .map_err(|error| usage(format!("--json-schema: not JSON: {error}")))?;
            let checked = check_schema(&schema, false)
                .map_err(|error| usage(format!("--json-schema: {error}")))?;
            for pointer in checked.ignored() {
                eprintln!("the schema's {pointer} is not enforced");
            }
            GrammarSource::JsonSchema(checked)
        }
        (None, Some(path)) => {
            let text = read("--grammar", path)?;
            match text.trim_start().starts_with("%llguidance") {
                true => GrammarSource::Lark(text),
                false => GrammarSource::Gbnf(text),
            }
        }
        (None, None) => return Ok(None),
    };
    let flag = if args.json_schema.is_some() { "--json-schema" } else { "--grammar" };
    let grammar = model.text.grammars.compile(&source);
    grammar.map(Some).map_err(|error| usage(format!("{flag}: {error}")))
}
