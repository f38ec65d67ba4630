//! `trefoil chat`: a conversation in the terminal.

use std::io::{BufRead, IsTerminal, Write};
use std::path::Path;

use serde_json::{Value, json};
use trefoil_engine::generate::{Cancel, Finish, Summary};
use trefoil_engine::loaded::Loaded;

use super::{common, run};
use crate::cli::{ChatArgs, Global, SamplingArgs};
use crate::exit::{Failure, Outcome, Status};

const HELP: &str = "\
/help              this list
/system TEXT       set the system message (without TEXT: remove it)
/set NAME VALUE    set temp, top-k, top-p, min-p, repeat-penalty, seed or max-tokens
/show              model, messages and settings
/plan              what runs where
/stats             figures of the last reply
/save FILE         write the conversation as JSON
/load FILE         read such a file
/clear             forget the conversation
/bye               leave (so does Ctrl-D)
\"\"\" begins and ends a message of several lines; Ctrl-C stops a reply.";

/// A conversation under way.
struct Chat {
    model: Loaded,
    system: Option<String>,
    messages: Vec<Value>,
    sampling: SamplingArgs,
    last: Option<Summary>,
    quiet: bool,
}

/// What a line asks for.
enum Next {
    GoOn,
    Leave,
}

pub(crate) fn run(args: &ChatArgs, global: &Global) -> Outcome {
    let (_, model) = common::load(&args.model, &args.placement, args.chat_template.as_deref())?;
    if !model.lowered.hyper.causal {
        let error = format!("{} makes embeddings and cannot chat", args.model);
        return Err(Failure::new(Status::Usage, error));
    }
    let terminal = std::io::stdin().is_terminal();
    if terminal {
        let name = model.lowered.hyper.name.as_deref().unwrap_or(&args.model);
        eprintln!(
            "{name}, ready in {:.0} ms; /help lists commands",
            model.took.as_secs_f64() * 1e3
        );
    }
    let mut chat = Chat {
        model,
        system: args.system.clone(),
        messages: Vec::new(),
        sampling: args.sampling.clone(),
        last: None,
        quiet: global.quiet,
    };
    let mut input = std::io::stdin().lock();
    loop {
        if terminal {
            eprint!(">>> ");
        }
        let Some(line) = read_message(&mut input)? else {
            if terminal {
                eprintln!();
            }
            return Ok(());
        };
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        let result = match line.strip_prefix('/') {
            Some(command) => chat.command(command),
            None => chat.say(line).map(|()| Next::GoOn),
        };
        match result {
            Ok(Next::GoOn) => {}
            Ok(Next::Leave) => return Ok(()),
            // A conversation outlives a mistake; a script wants to hear of it.
            Err(failure) if terminal => eprintln!("{}", failure.message()),
            Err(failure) => return Err(failure),
        }
    }
}

/// One line, or several between `"""`. `None` at the end of the input.
fn read_message(input: &mut impl BufRead) -> std::io::Result<Option<String>> {
    const QUOTES: &str = "\"\"\"";
    let mut line = String::new();
    if input.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let Some(rest) = line.trim_start().strip_prefix(QUOTES) else { return Ok(Some(line)) };
    let mut text = rest.to_owned();
    while !text.trim_end().ends_with(QUOTES) {
        let mut more = String::new();
        if input.read_line(&mut more)? == 0 {
            break;
        }
        text.push_str(&more);
    }
    Ok(Some(text.trim_end().trim_end_matches(QUOTES).to_owned()))
}

impl Chat {
    /// Sends a message and shows the reply.
    fn say(&mut self, text: &str) -> Outcome {
        self.messages.push(json!({"role": "user", "content": text}));
        let result = self.reply();
        if result.is_err() {
            // The message that could not be answered is not part of the conversation.
            self.messages.pop();
        }
        result
    }

    fn reply(&mut self) -> Outcome {
        let system = self.system.iter().map(|text| json!({"role": "system", "content": text}));
        let messages: Vec<Value> = system.chain(self.messages.iter().cloned()).collect();
        let rendered = self.model.text.render(&Value::Array(messages), None)?;
        let ids = self.model.text.encode_rendered(&rendered);
        let request = run::request(&self.model, ids, &self.sampling)?;
        let cancel = Cancel::default();
        crate::signals::cancel_on_signal(&cancel);
        let mut stdout = std::io::stdout();
        let (_, text, summary) =
            run::stream(&mut self.model, &request, &cancel, Some(&mut stdout))?;
        writeln!(stdout)?;
        if summary.finish == Finish::ContextFull {
            eprintln!("the context is full; /clear begins anew");
        }
        if !self.quiet {
            eprintln!("{}", run::statistics(&self.model, &summary));
        }
        self.messages.push(json!({"role": "assistant", "content": text}));
        self.last = Some(summary);
        Ok(())
    }

    fn command(&mut self, command: &str) -> Result<Next, Failure> {
        let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        let rest = rest.trim();
        match name {
            "help" | "?" => eprintln!("{HELP}"),
            "bye" | "exit" | "quit" => return Ok(Next::Leave),
            "clear" => self.messages.clear(),
            "system" => self.system = Some(rest.to_owned()).filter(|text| !text.is_empty()),
            "set" => self.set(rest)?,
            "show" => self.show(),
            "plan" => eprint!("{}", super::plan::render(&self.model.plan)),
            "stats" => match &self.last {
                Some(summary) => eprintln!("{}", run::statistics(&self.model, summary)),
                None => eprintln!("no reply yet"),
            },
            "save" => self.save(Path::new(rest))?,
            "load" => self.load(Path::new(rest))?,
            other => {
                let error = format!("/{other} is not a command; /help lists them");
                return Err(Failure::new(Status::Usage, error));
            }
        }
        Ok(Next::GoOn)
    }

    fn set(&mut self, setting: &str) -> Outcome {
        let wrong = || {
            let error = format!("expected a name and a number, such as temp 0.7, got {setting:?}");
            Failure::new(Status::Usage, error)
        };
        let (name, value) = setting.split_once(char::is_whitespace).ok_or_else(wrong)?;
        let value = value.trim();
        let number = || value.parse::<f64>().map_err(|_| wrong());
        let whole = || value.parse::<i64>().map_err(|_| wrong());
        let before = self.sampling.clone();
        match name {
            "temp" | "temperature" => self.sampling.temp = Some(number()?),
            "top-k" => self.sampling.top_k = Some(whole()?),
            "top-p" => self.sampling.top_p = Some(number()?),
            "min-p" => self.sampling.min_p = Some(number()?),
            "repeat-penalty" => self.sampling.repeat_penalty = Some(number()?),
            "seed" => self.sampling.seed = Some(whole()?),
            "max-tokens" => self.sampling.max_tokens = Some(value.parse().map_err(|_| wrong())?),
            _ => return Err(wrong()),
        }
        run::sampling(&self.sampling, &self.model).map(|_| ()).inspect_err(|_| {
            self.sampling = before;
        })
    }

    fn show(&self) {
        let hyper = &self.model.lowered.hyper;
        let name = hyper.name.as_deref().unwrap_or("unnamed");
        eprintln!("{name} ({}), context {}", hyper.architecture, self.model.runner.context());
        if let Some(system) = &self.system {
            eprintln!("system: {system}");
        }
        eprintln!("{} messages", self.messages.len());
        if let Ok(params) = run::sampling(&self.sampling, &self.model) {
            eprintln!(
                "temp {} top-k {} top-p {} min-p {} repeat-penalty {}",
                params.temperature, params.top_k, params.top_p, params.min_p, params.repeat_penalty
            );
        }
    }

    fn save(&self, path: &Path) -> Outcome {
        let document = json!({"system": self.system, "messages": self.messages});
        let text = serde_json::to_string_pretty(&document)?;
        std::fs::write(path, text)
            .map_err(|error| Failure::new(Status::Failed, format!("{}: {error}", path.display())))
    }

    fn load(&mut self, path: &Path) -> Outcome {
        let text = common::read_text(path, Status::Failed)?;
        let document: Value = serde_json::from_str(&text)?;
        let Some(messages) = document["messages"].as_array() else {
            let error = format!("{}: expected a conversation saved by /save", path.display());
            return Err(Failure::new(Status::Failed, error));
        };
        self.messages.clone_from(messages);
        self.system = document["system"].as_str().map(str::to_owned);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_lines_or_quoted_blocks() {
        let mut input = "one\n\"\"\"two\nlines\"\"\"\n\"\"\"open\nend".as_bytes();
        let mut next = || read_message(&mut input).expect("reads");
        assert_eq!(next().as_deref(), Some("one\n"));
        assert_eq!(next().as_deref(), Some("two\nlines"));
        assert_eq!(next().as_deref(), Some("open\nend"));
        assert_eq!(next(), None);
    }
}
