//! Other people's clients against the server. Each runs where an environment variable says where it is;
//! `tests/real/fetch.sh` gets all of them.
//!
//! What clients should show of a new route goes into each of `tests/clients/openai_chat.py`,
//! `openai_node.mjs` and `rust/src/main.rs`: a function there, named in the list at its end.

use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use crate::support::demo::safe_reply;
use crate::support::encoder;
use crate::support::program::run;
use crate::support::server::Server;

/// Where a client is, if it is there.
fn place(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).map(PathBuf::from)
}

/// The Python to use, if there is one.
pub(crate) fn python() -> Option<PathBuf> {
    place("TREFOIL_PYTHON")
}

fn script(name: &str) -> PathBuf {
    trefoil_tests::golden::data().with_file_name("clients").join(name)
}

/// Runs a client with facts on its standard input.
fn run_client(command: &mut Command, facts: &Value) {
    let ran = run(command, &facts.to_string());
    assert_eq!(ran.code, Some(0), "{}{}", ran.stdout, ran.stderr);
    assert!(ran.stdout.trim_end().ends_with("ok"), "{}", ran.stdout);
}

/// Runs a script of `tests/clients` with facts on its standard input.
pub(crate) fn run_script(python: &std::path::Path, name: &str, facts: &Value) {
    run_client(Command::new(python).arg(script(name)), facts);
}

/// The servers that clients talk to, and what they are told of them.
struct Served {
    plain: Server,
    _others: [Server; 2],
    facts: Value,
}

impl Served {
    fn new(flags: &[&str]) -> Self {
        let plain = Server::start(flags);
        let keyed = Server::start(&["--api-key", "s3cret"]);
        let folder = encoder::folder();
        let encoder = Server::of(&[folder.to_str().expect("a plain path")], &[]);
        let reply = safe_reply();
        let url = |server: &Server| format!("http://{}/v1", server.address);
        let facts = json!({
            "url": url(&plain),
            "keyed_url": url(&keyed),
            "embeddings_url": url(&encoder),
            "key": "s3cret",
            "prompt": reply.prompt,
            "reply": reply.text,
            "ids": reply.ids_in,
        });
        Self { plain, _others: [keyed, encoder], facts }
    }

    /// Nothing that the client did harmed the server.
    fn is_well(&self) {
        assert!(!self.plain.log().contains("panicked"), "{}", self.plain.log());
        self.plain.wait_for_metric("trefoil_requests_running{model=\"demo\"}", 0.0);
    }
}

#[test]
fn the_python_client_is_served() {
    let Some(python) = python() else { return };
    let served = Served::new(&["--max-queue", "2", "--max-sequences", "1"]);
    run_script(&python, "openai_chat.py", &served.facts);
    served.is_well();
}

#[test]
fn the_node_client_is_served() {
    let (Some(node), Some(packages)) = (place("TREFOIL_NODE"), place("TREFOIL_NPM")) else {
        return;
    };
    let served = Served::new(&[]);
    let mut command = Command::new(node);
    let command = command.arg(script("openai_node.mjs")).env("TREFOIL_NPM", packages);
    run_client(command, &served.facts);
    served.is_well();
}

#[test]
fn the_rust_client_is_served() {
    let Some(client) = place("TREFOIL_RUST_CLIENT") else { return };
    let served = Served::new(&[]);
    run_client(&mut Command::new(client), &served.facts);
    served.is_well();
}

/// Seconds of the property-based run over the API's document; `TREFOIL_SCHEMA_SECONDS` changes them.
const SCHEMA_SECONDS: u64 = 60;

#[test]
fn no_made_up_request_gets_an_answer_that_is_not_documented() {
    let Some(python) = python() else { return };
    let seconds = std::env::var("TREFOIL_SCHEMA_SECONDS").ok();
    let seconds = seconds.map_or(SCHEMA_SECONDS, |text| text.parse().expect("a number"));
    // A short context bounds what a made-up limit can ask for.
    let server = Server::start(&["--ctx-size", "64"]);
    let folder = encoder::folder();
    let encoder = Server::of(
        &[folder.to_str().expect("a plain path"), "demo"],
        &["--ctx-size", "64", "--strict-fields"],
    );
    let scratch = tempfile::tempdir().expect("a folder");
    // The second server refuses what it does not know; its default model makes embeddings.
    for (server, model, seconds, more) in [
        (&server, "demo", seconds, json!([])),
        (&encoder, "bert", seconds / 4, json!(["--include-path", "/v1/embeddings"])),
    ] {
        let facts = json!({
            "url": format!("http://{}", server.address),
            "model": model,
            "seconds": seconds.max(1),
            "folder": scratch.path(),
            "more": more,
        });
        run_script(&python, "schema_fuzz.py", &facts);
        assert!(!server.log().contains("panicked"), "{}", server.log());
        assert_eq!(server.metric("trefoil_requests_running{model=\"demo\"}"), 0.0);
    }
}

#[test]
fn the_python_client_gets_forms_tools_and_responses() {
    let Some(python) = python() else { return };
    let server = Server::start(&[]);
    let reply = safe_reply();
    let facts = json!({
        "url": format!("http://{}/v1", server.address),
        "prompt": reply.prompt,
        "reply": reply.text,
    });
    run_script(&python, "openai_tools.py", &facts);
    assert!(!server.log().contains("panicked"), "{}", server.log());
}
