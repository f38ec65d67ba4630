//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use trefoil_engine::quantize::{Mixture, Target};
use trefoil_graph::shape::ModelShape;
use trefoil_scheduler::profile::Change;
use trefoil_scheduler::{Pin, nearest};

use crate::commands::ps::PsArgs;
use crate::config::Settings;

/// Run language models over every processor of one machine.
#[derive(Debug, Parser)]
#[command(name = "trefoil", version, max_term_width = 100, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    pub(crate) global: Global,
}

/// Flags that every command takes.
#[derive(Clone, Debug, Args)]
pub(crate) struct Global {
    /// Say less: errors only
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(crate) quiet: bool,
    /// Say more; twice for everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Colours and progress bars
    #[arg(long, global = true, value_enum, default_value_t = Colour::Auto)]
    pub(crate) color: Colour,
    /// Form of log lines [default: text]
    #[arg(long, global = true, value_enum)]
    pub(crate) log_format: Option<LogForm>,
    /// Configuration file, instead of all others
    #[arg(long, global = true, value_name = "FILE", env = "TREFOIL_CONFIG")]
    pub(crate) config: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Colour {
    Auto,
    Always,
    Never,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogForm {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Answer one prompt (from the argument or standard input), else chat
    Run(RunArgs),
    /// Chat with a model
    Chat(ChatArgs),
    /// Serve models over an OpenAI-compatible HTTP API
    Serve(ServeArgs),
    /// List what a running server has loaded, and where it runs
    Ps(PsArgs),
    /// Show where each part of a model would run, and why
    Plan(PlanArgs),
    /// List the devices of this machine
    Devices(DevicesArgs),
    /// Compile a model's parts for the NPU ahead of time
    Prepare(PrepareArgs),
    /// Measure the devices with a model's own ops, for plans by cost
    Calibrate(CalibrateArgs),
    /// Show what is in a model file and what it costs
    #[command(visible_alias = "show")]
    Inspect(InspectArgs),
    /// Turn text into token ids
    Tokenize(TokenizeArgs),
    /// Write a text's logits, or compare two such files
    Logits(LogitsArgs),
    /// Measure how well a model predicts a text
    Perplexity(PerplexityArgs),
    /// Write a model in another number format
    Quantize(QuantizeArgs),
    /// Measure how fast the engine reads prompts and generates
    Bench(BenchArgs),
    /// Show and check the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print shell completions
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual as a man page
    Man {
        /// Folder to write a page of each command to, instead
        #[arg(short, long, value_name = "FOLDER")]
        output: Option<PathBuf>,
    },
}

/// Where and how a model runs.
#[derive(Clone, Debug, Args)]
pub(crate) struct PlacementArgs {
    /// Device for all that no pin names, such as cpu0; or devices to choose from by cost: cpu0,gpu0
    #[arg(long, value_name = "DEVICE", env = "TREFOIL_DEVICE")]
    pub(crate) device: Option<String>,
    /// Put units or ops on a device: GLOB=DEVICE, or prefill:GLOB=DEVICE; may be repeated
    #[arg(long = "pin", value_name = "GLOB=DEVICE")]
    pub(crate) pins: Vec<Pin>,
    /// Run a plan made by `trefoil plan --json` (- for standard input)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["device", "pins"])]
    pub(crate) plan: Option<PathBuf>,
    /// Tokens of context [default: the model's own, at most engine.default_ctx, 8192]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) ctx_size: Option<u32>,
    /// Threads of the CPU device [default: engine.threads, one per physical core]
    #[arg(short, long, value_name = "N")]
    pub(crate) threads: Option<usize>,
    /// Most prompt tokens read in one step [default: engine.prefill_chunk, 512]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) prefill_chunk: Option<usize>,
    /// Number format of stored keys and values [default: engine.kv_type, f16]
    #[arg(long, value_enum)]
    pub(crate) kv_type: Option<KvForm>,
    /// Policy: a [policies.NAME] of the configuration, on_battery, or an objective
    #[arg(long, value_name = "NAME")]
    pub(crate) policy: Option<String>,
    /// What the configuration says.
    #[arg(skip)]
    pub(crate) settings: Settings,
    /// Exact f32 arithmetic instead of 8-bit activations: slower
    #[arg(long)]
    pub(crate) exact: bool,
}

fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("expected a whole number of at least 1".to_owned()),
        Ok(number) => Ok(number),
    }
}

/// A known shape, or what names there are and which is most like `name`.
fn known_shape(name: &str) -> Result<ModelShape, String> {
    name.parse().map_err(|error| {
        let near = nearest(name, ModelShape::names());
        let hint = near.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
        format!("{error}{hint}")
    })
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(number) if (0.001..=86_400.0).contains(&number) => Ok(number),
        _ => Err("expected seconds from 0.001 to 86400".to_owned()),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum KvForm {
    F16,
    F32,
}

/// How the next token is chosen. What is not given comes from the model, else from built-in values.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct SamplingArgs {
    /// Randomness; 0 always takes the most probable token
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    pub(crate) temp: Option<f64>,
    /// Keep the K most probable tokens; 0 for all
    #[arg(long, value_name = "K", allow_negative_numbers = true)]
    pub(crate) top_k: Option<i64>,
    /// Keep the most probable tokens that together reach P
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub(crate) top_p: Option<f64>,
    /// Keep tokens at least P times as probable as the best
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub(crate) min_p: Option<f64>,
    /// Keep the most typical tokens that together reach P
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub(crate) typical_p: Option<f64>,
    /// Make tokens that came before less likely; 1 is off
    #[arg(long, value_name = "R", allow_negative_numbers = true)]
    pub(crate) repeat_penalty: Option<f64>,
    /// Tokens that count as "before"
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) repeat_last_n: Option<i64>,
    /// Lower tokens by how often they came in the reply
    #[arg(long, value_name = "F", allow_negative_numbers = true)]
    pub(crate) frequency_penalty: Option<f64>,
    /// Lower tokens that came in the reply
    #[arg(long, value_name = "F", allow_negative_numbers = true)]
    pub(crate) presence_penalty: Option<f64>,
    /// Seed of the random numbers; the same seed gives the same reply
    #[arg(short, long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) seed: Option<i64>,
    /// Most tokens of the reply
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_tokens: Option<u32>,
    /// Never choose the tokens that end a reply
    #[arg(long)]
    pub(crate) ignore_eos: bool,
    /// End the reply at this text; may be repeated
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// A .gguf file, a folder with config.json and *.safetensors, or `demo`
    pub(crate) model: String,
    /// The prompt; standard input if it is not a terminal, else a chat begins
    pub(crate) prompt: Option<String>,
    /// System message
    #[arg(long)]
    pub(crate) system: Option<String>,
    /// The prompt as it is, without chat template
    #[arg(long, conflicts_with_all = ["system", "chat_template"])]
    pub(crate) raw: bool,
    /// Chat template from a file instead of the model's own
    #[arg(long, value_name = "FILE")]
    pub(crate) chat_template: Option<PathBuf>,
    /// Print one JSON document: text, token ids, statistics
    #[arg(long)]
    pub(crate) json: bool,
    /// Write what ran where and when, as a trace for chrome://tracing or Perfetto
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) form: FormArgs,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten)]
    pub(crate) placement: PlacementArgs,
}

#[derive(Debug, Args)]
pub(crate) struct FormArgs {
    /// Reply with JSON that is valid by this schema: a file, or the schema itself
    #[arg(long, value_name = "FILE|JSON")]
    pub(crate) json_schema: Option<String>,
    /// Reply by the GBNF grammar in this file
    #[arg(long, value_name = "FILE", conflicts_with = "json_schema")]
    pub(crate) grammar: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ChatArgs {
    /// A .gguf file, a folder with config.json and *.safetensors, or `demo`
    #[arg(default_value = "demo", env = "TREFOIL_MODEL")]
    pub(crate) model: String,
    /// System message
    #[arg(long)]
    pub(crate) system: Option<String>,
    /// Chat template from a file instead of the model's own
    #[arg(long, value_name = "FILE")]
    pub(crate) chat_template: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten)]
    pub(crate) placement: PlacementArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// Models to serve: .gguf files, folders, names of the configuration, or `demo` [default: those that
    /// the configuration preloads, else `demo`]
    #[arg(env = "TREFOIL_MODEL", num_args = 1..)]
    pub(crate) models: Vec<String>,
    /// Address to listen on [default: server.host, 127.0.0.1]
    #[arg(long)]
    pub(crate) host: Option<String>,
    /// Port to listen on; 0 for any free one [default: server.port, 9378]
    #[arg(long)]
    pub(crate) port: Option<u16>,
    /// Key that clients must send; better in TREFOIL_API_KEY or a file
    #[arg(long, value_name = "KEY")]
    pub(crate) api_key: Option<String>,
    /// File that holds the key
    #[arg(long, value_name = "FILE", conflicts_with = "api_key")]
    pub(crate) api_key_file: Option<PathBuf>,
    /// Listen on an address that others can reach, without a key
    #[arg(long)]
    pub(crate) allow_unauthenticated: bool,
    /// More names that the Host header may have; may be repeated
    #[arg(long = "allowed-host", value_name = "NAME")]
    pub(crate) allowed_hosts: Vec<String>,
    /// Origins whose pages may call; may be repeated
    #[arg(long = "allowed-origin", value_name = "ORIGIN")]
    pub(crate) allowed_origins: Vec<String>,
    /// Requests that may wait [default: server.max_queue, 256]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) max_queue: Option<usize>,
    /// Replies that are made together [default: engine.max_sequences, 16]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) max_sequences: Option<usize>,
    /// Seconds of silence after which a stream gets a sign of life [default: server.sse_ping, 15]
    #[arg(long, value_name = "S", value_parser = seconds)]
    pub(crate) sse_ping: Option<f64>,
    /// Refuse bodies with unknown fields instead of naming them in a header
    #[arg(long)]
    pub(crate) strict_fields: bool,
    /// Chat template from a file instead of the model's own
    #[arg(long, value_name = "FILE")]
    pub(crate) chat_template: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) placement: PlacementArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum GoalForm {
    /// Seconds of one request
    Latency,
    /// Requests per second of the machine
    Throughput,
    /// Joules per request
    Energy,
    /// A weighted sum of all
    Balanced,
}

#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    /// A .gguf file, a folder with config.json (weights or not), a config.json, or `demo`
    #[arg(required_unless_present = "shape")]
    pub(crate) model: Option<String>,
    /// Print the plan as JSON, as --plan takes it
    #[arg(long)]
    pub(crate) json: bool,
    /// Plan for a machine by its profile: a name of a shipped one, or a .toml file
    #[arg(long, value_name = "NAME|FILE", conflicts_with = "plan")]
    pub(crate) profile: Option<String>,
    /// Plan a known model without its weights, such as qwen3-8b
    #[arg(long, value_name = "NAME", value_parser = known_shape)]
    #[arg(conflicts_with = "model")]
    pub(crate) shape: Option<ModelShape>,
    /// Types of weights that are not there: of --shape, or of a config.json alone [default: Q4_K_M]
    #[arg(long, value_name = "TYPE")]
    pub(crate) quant: Option<Target>,
    /// Prompt that is planned for
    #[arg(long, value_name = "TOKENS", default_value_t = 512, value_parser = positive)]
    pub(crate) prompt: usize,
    /// Tokens generated after it
    #[arg(long, value_name = "TOKENS", default_value_t = 128, value_parser = positive)]
    pub(crate) generate: usize,
    /// What counts [default: that of the policy]
    #[arg(long, value_enum)]
    pub(crate) objective: Option<GoalForm>,
    /// Change a number of the profile, such as gpu0.memory.bandwidth=300e9 or ram.size=32GiB, and show
    /// what that changes; may be repeated
    #[arg(long = "what-if", value_name = "KEY=VALUE", conflicts_with_all = ["compare", "problem"])]
    pub(crate) what_if: Vec<Change>,
    /// Plan for several profiles and policies: names of either, in one table
    #[arg(long, value_name = "A,B,...", value_delimiter = ',')]
    #[arg(conflicts_with_all = ["problem", "dot", "simulate", "objective", "policy"])]
    pub(crate) compare: Vec<String>,
    /// Run the plan on simulated devices and show what each does when
    #[arg(long, conflicts_with_all = ["problem", "dot", "what_if"])]
    pub(crate) simulate: bool,
    /// Write what was simulated as a trace for Perfetto or chrome://tracing
    #[arg(long, value_name = "FILE", requires = "simulate")]
    pub(crate) trace: Option<PathBuf>,
    /// Print the placement for Graphviz
    #[arg(long, conflicts_with_all = ["json", "problem", "what_if"])]
    pub(crate) dot: bool,
    /// Print all costs, budgets and choices that the plan was made from, and the solution, as JSON
    #[arg(long, conflicts_with = "json")]
    pub(crate) problem: bool,
    #[command(flatten)]
    pub(crate) placement: PlacementArgs,
}

/// What `trefoil config` does.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print every key with its value and where that is from
    Show {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print where configuration files are looked for
    Path,
    /// Read the configuration and say what is wrong, or what is set and not used yet
    Check,
    /// Print the value of a key, such as server.port
    Get {
        /// The key
        key: String,
    },
    /// Set a key in the user's file, or in that of --config
    Set {
        /// The key
        key: String,
        /// The value: TOML, else a text
        #[arg(allow_hyphen_values = true)]
        value: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct DevicesArgs {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PrepareArgs {
    /// A .gguf file, a folder with config.json and *.safetensors, or `demo`
    pub(crate) model: String,
    /// Seconds that one segment may take [default: npu.compile_timeout, 300]
    #[arg(long, value_name = "S", value_parser = seconds)]
    pub(crate) limit: Option<f64>,
    /// Print one JSON document: segments with times, or why not
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) placement: PlacementArgs,
}

#[derive(Debug, Args)]
pub(crate) struct CalibrateArgs {
    /// A .gguf file, a folder with config.json and *.safetensors, or `demo`
    #[arg(default_value = "demo", env = "TREFOIL_MODEL")]
    pub(crate) model: String,
    /// Devices to measure [default: all that need not be named]
    #[arg(long, value_name = "LIST", value_delimiter = ',', conflicts_with = "device")]
    pub(crate) devices: Vec<String>,
    /// Measure less: some seconds instead of most of a minute
    #[arg(long)]
    pub(crate) quick: bool,
    /// Write the profile as TOML, as plan --profile takes it
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Hold the predictions against times that they were not made from
    #[arg(long)]
    pub(crate) check: bool,
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) placement: PlacementArgs,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// A .gguf file, a folder with config.json and *.safetensors, or `demo`
    pub(crate) model: String,
    /// Context length that memory and decode costs are told for [default: the model's own]
    #[arg(short, long, value_name = "N", value_parser = positive)]
    pub(crate) ctx_size: Option<usize>,
    /// Memory to fit into, such as 16GiB
    #[arg(long, value_name = "SIZE", value_parser = crate::size::parse)]
    pub(crate) fit: Option<u64>,
    /// Print JSON
    #[arg(long, conflicts_with = "dot")]
    pub(crate) json: bool,
    /// Print the layer graph for Graphviz
    #[arg(long)]
    pub(crate) dot: bool,
}

#[derive(Debug, Args)]
pub(crate) struct TokenizeArgs {
    /// A .gguf file, a folder with tokenizer.json, or `demo`
    pub(crate) model: String,
    /// The text; standard input if absent
    pub(crate) text: Option<String>,
    /// Add the tokens that the model puts around a text
    #[arg(long)]
    pub(crate) add_special: bool,
    /// Take names of special tokens as text
    #[arg(long)]
    pub(crate) no_parse_special: bool,
    /// Turn ids (separated by commas or spaces) back into text
    #[arg(long)]
    pub(crate) decode: bool,
    /// Print JSON: ids and pieces
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct LogitsArgs {
    /// The model
    #[arg(required_unless_present = "compare")]
    pub(crate) model: Option<String>,
    /// The text
    #[arg(short, long, conflicts_with = "tokens")]
    pub(crate) prompt: Option<String>,
    /// Token ids instead of a text: 1,2,3
    #[arg(long, value_delimiter = ',', value_name = "IDS")]
    pub(crate) tokens: Vec<u32>,
    /// Write a NumPy file, f32 [positions, vocabulary]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Print the K best tokens of each position
    #[arg(long, value_name = "K", value_parser = positive)]
    pub(crate) top: Option<usize>,
    /// Compare two NumPy files of logits
    #[arg(long, num_args = 2, value_names = ["A", "B"], conflicts_with_all = ["prompt", "tokens"])]
    pub(crate) compare: Vec<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) placement: PlacementArgs,
}

#[derive(Debug, Args)]
pub(crate) struct PerplexityArgs {
    /// The model
    pub(crate) model: String,
    /// The text
    pub(crate) file: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Exit with status 6 if the perplexity is above
    #[arg(long, value_name = "P")]
    pub(crate) max: Option<f64>,
    #[command(flatten)]
    pub(crate) placement: PlacementArgs,
}

#[derive(Debug, Args)]
pub(crate) struct QuantizeArgs {
    /// The model to read
    pub(crate) source: String,
    /// The file to write
    pub(crate) target: PathBuf,
    /// Number format: F16, BF16, Q8_0, Q4_0, Q4_K, Q6_K or the mix Q4_K_M
    #[arg(long = "type", value_name = "TYPE")]
    pub(crate) to: String,
    /// Write over an existing file
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Threads [default: one per core]
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    pub(crate) threads: usize,
    /// Print a JSON summary
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// A .gguf file, a folder with config.json and *.safetensors, or `demo`
    #[arg(required_unless_present = "shape", conflicts_with = "shape")]
    pub(crate) model: Option<String>,
    /// Measure made-up weights in the shape of a published model, such as qwen3-8b
    #[arg(long, value_name = "NAME", requires = "quant", value_parser = known_shape)]
    pub(crate) shape: Option<ModelShape>,
    /// File type of the made-up weights, such as Q4_K_M
    #[arg(long, value_name = "TYPE", requires = "shape")]
    pub(crate) quant: Option<Mixture>,
    /// GGUF file that the made-up model takes its tokenizer from [default: a made-up one]
    #[arg(long, value_name = "FILE", requires = "shape")]
    pub(crate) tokenizer: Option<PathBuf>,
    /// Folder that keeps made-up models [default: trefoil/shapes in the user's cache]
    #[arg(long, value_name = "DIR", requires = "shape")]
    pub(crate) cache: Option<PathBuf>,
    /// Only make the model and print its path
    #[arg(long, requires = "shape", conflicts_with_all = ["json", "markdown", "wait"])]
    pub(crate) make: bool,
    /// Prompt lengths; 0 for none
    #[arg(short, long, value_name = "LIST", value_delimiter = ',', default_value = "512")]
    pub(crate) prompt: Vec<usize>,
    /// Numbers of tokens to generate; 0 for none
    #[arg(short = 'n', long, value_name = "LIST", value_delimiter = ',', default_value = "128")]
    pub(crate) generate: Vec<usize>,
    /// Tokens in the KV cache before each run
    #[arg(short, long, value_name = "LIST", value_delimiter = ',', default_value = "0")]
    pub(crate) depth: Vec<usize>,
    /// Numbers of sequences that generate together
    #[arg(
        short, long, value_name = "LIST", value_delimiter = ',', default_value = "1",
        value_parser = positive
    )]
    pub(crate) batch: Vec<usize>,
    /// Runs that count, after one that does not
    #[arg(short, long, value_name = "N", default_value_t = 5, value_parser = positive)]
    pub(crate) runs: usize,
    /// Print one JSON document
    #[arg(long, conflicts_with = "markdown")]
    pub(crate) json: bool,
    /// Print a Markdown table: the default
    #[arg(long)]
    pub(crate) markdown: bool,
    /// Take turns with another program: run the case named by each line of standard input once and
    /// print a JSON line; the first line lists the cases
    #[arg(long, conflicts_with_all = ["json", "markdown", "runs"])]
    pub(crate) wait: bool,
    #[command(flatten)]
    pub(crate) placement: PlacementArgs,
}
