//! The `trefoil` program: commands, HTTP server.

mod cli;
mod client;
mod commands;
mod config;
mod exit;
mod http;
mod npy;
mod page;
mod sampling;
mod signals;
mod size;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use trefoil_telemetry::{LogFormat, start_logging};

use cli::{Cli, Colour, Command, ConfigCommand, Global, LogForm, PlacementArgs};
use config::Config;
use exit::Outcome;

/// A seed for requests that name none: another one for every request.
fn random_seed() -> i64 {
    http::random_seed()
}

fn wants_colour(global: &Global) -> bool {
    match global.color {
        Colour::Always => true,
        Colour::Never => false,
        Colour::Auto => std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
    }
}

/// Starts the log as flags, then the environment, then for the server its configuration say.
fn set_up_log(global: &Global, server: Option<&config::Server>) {
    let usual = || server.map_or("warn", config::Server::level).to_owned();
    let level = match (global.quiet, global.verbose) {
        (true, _) => "error".to_owned(),
        (false, 0) => std::env::var("TREFOIL_LOG").unwrap_or_else(|_| usual()),
        (false, 1) => "info".to_owned(),
        (false, 2) => "debug".to_owned(),
        (false, _) => "trace".to_owned(),
    };
    let usual = server.map_or(LogForm::Text, config::Server::log_form);
    let format = match global.log_format.unwrap_or(usual) {
        LogForm::Text => LogFormat::Text,
        LogForm::Json => LogFormat::Json,
    };
    start_logging(&level, format, wants_colour(global));
}

fn set_up_errors(colour: bool) {
    let theme = if colour {
        miette::GraphicalTheme::unicode()
    } else {
        miette::GraphicalTheme::unicode_nocolor()
    };
    // An error means that a handler was set before: there is only this place.
    let _ = miette::set_hook(Box::new(move |_| {
        Box::new(miette::GraphicalReportHandler::new_themed(theme.clone()))
    }));
}

/// Does the command's user want errors as JSON?
fn wants_json(command: &Command) -> bool {
    match command {
        Command::Run(args) => args.json,
        Command::Plan(args) => args.json,
        Command::Devices(args) => args.json,
        Command::Prepare(args) => args.json,
        Command::Ps(args) => args.json,
        Command::Calibrate(args) => args.json,
        Command::Inspect(args) => args.json,
        Command::Tokenize(args) => args.json,
        Command::Logits(args) => args.json,
        Command::Perplexity(args) => args.json,
        Command::Quantize(args) => args.json,
        Command::Bench(args) => args.json || args.wait,
        Command::Config(ConfigCommand::Show { json }) => *json,
        Command::Chat(_)
        | Command::Serve(_)
        | Command::Config(_)
        | Command::Completions { .. }
        | Command::Man { .. } => false,
    }
}

/// Flags of the command that the configuration lies under.
fn placement(command: &mut Command) -> Option<&mut PlacementArgs> {
    Some(match command {
        Command::Run(args) => &mut args.placement,
        Command::Chat(args) => &mut args.placement,
        Command::Serve(args) => &mut args.placement,
        Command::Plan(args) => &mut args.placement,
        Command::Logits(args) => &mut args.placement,
        Command::Perplexity(args) => &mut args.placement,
        Command::Bench(args) => &mut args.placement,
        Command::Prepare(args) => &mut args.placement,
        Command::Calibrate(args) => &mut args.placement,
        _ => return None,
    })
}

/// The model that the command is about; `serve` has several and looks for itself.
fn model(command: &Command) -> Option<&str> {
    match command {
        Command::Run(args) => Some(&args.model),
        Command::Chat(args) => Some(&args.model),
        Command::Perplexity(args) => Some(&args.model),
        Command::Prepare(args) => Some(&args.model),
        Command::Calibrate(args) => Some(&args.model),
        Command::Plan(args) => args.model.as_deref(),
        Command::Logits(args) => args.model.as_deref(),
        Command::Bench(args) => args.model.as_deref(),
        _ => None,
    }
}

/// Reads the configuration where the command has a use for it, starts the log, and runs the command.
fn run(mut command: Command, global: &Global) -> Outcome {
    let mut config = Config::default();
    let wanted = placement(&mut command).is_some()
        || matches!(command, Command::Devices(_) | Command::Ps(_));
    if wanted {
        config = Config::load(global.config.as_deref())?;
    }
    let serves = matches!(command, Command::Serve(_));
    set_up_log(global, serves.then_some(&config.sections.server));
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let model = model(&command).map(str::to_owned);
    if let Some(placement) = placement(&mut command) {
        let policy = placement.policy.as_deref();
        placement.settings = config.settings(policy, model.as_deref())?;
    }
    dispatch(command, global, &config)
}

fn dispatch(command: Command, global: &Global, config: &Config) -> Outcome {
    match command {
        Command::Run(args) => commands::run::run(args, global),
        Command::Chat(args) => commands::chat::run(&args, global),
        Command::Serve(args) => commands::serve::run(&args, config),
        Command::Plan(args) => commands::plan::run(&args, config),
        Command::Devices(args) => commands::devices::run(&args, global, config),
        Command::Prepare(args) => commands::prepare::run(&args),
        Command::Ps(args) => commands::ps::run(&args, config),
        Command::Calibrate(args) => commands::calibrate::run(&args),
        Command::Inspect(args) => commands::inspect::run(&args),
        Command::Tokenize(args) => commands::tokenize::run(&args),
        Command::Logits(args) => commands::logits::run(&args),
        Command::Perplexity(args) => commands::perplexity::run(&args),
        Command::Quantize(args) => commands::quantize::run(&args),
        Command::Bench(args) => commands::bench::run(&args),
        Command::Config(what) => commands::config::run(&what, global),
        Command::Completions { shell } => {
            let mut out = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "trefoil", &mut out);
            // A closed pipe is no failure.
            let _ = std::io::Write::write_all(&mut std::io::stdout(), &out);
            Ok(())
        }
        Command::Man { output } => commands::man::run(output.as_deref()),
    }
}

fn main() -> ExitCode {
    let Cli { command, global } = Cli::parse();
    set_up_errors(wants_colour(&global));
    let json = wants_json(&command);
    match run(command, &global) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) if failure.is_closed_pipe() => ExitCode::SUCCESS,
        Err(failure) => failure.print(json),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
