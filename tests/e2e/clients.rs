//! The official Python client against the server. Runs where `TREFOIL_PYTHON` names a Python that
//! has it (`tests/real/fetch.sh` makes one).

use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use crate::support::demo::safe_reply;
use crate::support::program::run;
use crate::support::server::Server;

/// The Python to use, if there is one.
pub(crate) fn python() -> Option<PathBuf> {
    std::env::var_os("TREFOIL_PYTHON").map(PathBuf::from)
}

/// Runs a script of `tests/clients` with facts on its standard input.
pub(crate) fn run_script(python: &std::path::Path, name: &str, facts: &Value) {
    let script = trefoil_tests::golden::data().with_file_name("clients").join(name);
    let ran = run(Command::new(python).arg(script), &facts.to_string());
    assert_eq!(ran.code, Some(0), "{}{}", ran.stdout, ran.stderr);
    assert!(ran.stdout.trim_end().ends_with("ok"), "{}", ran.stdout);
}

#[test]
fn the_python_client_is_served() {
    let Some(python) = python() else { return };
    let server = Server::start(&["--max-queue", "2", "--max-sequences", "1"]);
    let keyed = Server::start(&["--api-key", "s3cret"]);
    let reply = safe_reply();
    let facts = json!({
        "url": format!("http://{}/v1", server.address),
        "keyed_url": format!("http://{}/v1", keyed.address),
        "key": "s3cret",
        "prompt": reply.prompt,
        "reply": reply.text,
    });
    run_script(&python, "openai_chat.py", &facts);
    assert!(!server.log().contains("panicked"), "{}", server.log());
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
