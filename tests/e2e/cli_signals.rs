//! Interrupts and closed pipes.
#![cfg(unix)]

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use crate::support::http::Event;
use crate::support::program::{command, finish, start};
use crate::support::server::Server;

fn signal(child: &Child, name: &str) {
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-s", name, &id]).status().expect("kill runs").success());
}

/// A reply that is far from its end when its first text is out.
const LONG: [&str; 6] =
    ["run", "demo", "Tell me a story about a lemon tree.", "--temp", "0", "--exact"];

#[test]
fn an_interrupt_ends_a_reply_cleanly() {
    for (name, code) in [("INT", 130), ("TERM", 143)] {
        let mut child = start(command().args(LONG));
        let mut first = [0; 4];
        let mut stdout = child.stdout.take().expect("stdout is piped");
        stdout.read_exact(&mut first).expect("text comes");
        signal(&child, name);
        let mut rest = Vec::new();
        stdout.read_to_end(&mut rest).expect("the output ends");
        let output = finish(child);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{name}: {stderr}");
        assert_eq!(rest.last(), Some(&b'\n'), "the line is ended");
        assert!(stderr.contains("generated"), "figures are told all the same: {stderr}");
    }
}

#[test]
fn a_closed_pipe_is_no_failure() {
    for args in [&LONG[..], &["inspect", "demo", "--json"], &["inspect", "demo", "--dot"]] {
        let mut child = start(command().args(args));
        let mut lines = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let mut some = [0; 2];
        lines.read_exact(&mut some).expect("something comes");
        drop(lines);
        let output = finish(child);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!stderr.contains("panicked") && !stderr.contains("Broken pipe"), "{stderr}");
        assert_eq!(output.status.code(), Some(0), "{args:?}: {stderr}");
    }
    // Commands that print little: the pipe is closed before they begin.
    for args in [
        &["devices"][..],
        &["plan", "demo"],
        &["plan", "demo", "--json"],
        &["tokenize", "demo", "hello"],
        &["completions", "bash"],
        &["man"],
        &["logits", "demo", "-p", "a b", "--top", "2"],
        &["--help"],
    ] {
        let mut child = start(command().args(args));
        drop(child.stdout.take());
        let output = finish(child);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!stderr.contains("panicked") && !stderr.contains("Broken pipe"), "{stderr}");
        assert_eq!(output.status.code(), Some(0), "{args:?}: {stderr}");
    }
}

#[test]
fn a_server_lets_running_replies_end() {
    let mut server = Server::start(&[]);
    let body = serde_json::json!({
        "model": "demo", "temperature": 0, "stream": true, "max_tokens": 24,
        "messages": [{"role": "user", "content": "Tell me a story about a lemon tree."}],
    });
    let mut answer = server.call("POST", "/v1/chat/completions").json(&body).open();
    assert!(answer.event().is_some());
    signal(&server.child, "TERM");
    assert_eq!(answer.events().last(), Some(&Event::Done));
    let begin = Instant::now();
    let status = loop {
        if let Some(status) = server.child.try_wait().expect("can be waited for") {
            break status;
        }
        assert!(begin.elapsed() < Duration::from_secs(30), "the server does not end");
        std::thread::sleep(Duration::from_millis(10));
    };
    assert_eq!(status.code(), Some(0), "{}", server.log());
    assert!(server.log().contains("stopping"), "{}", server.log());
}

#[test]
fn a_second_signal_stops_a_server_at_once() {
    let mut server = Server::start(&["--exact"]);
    let body = serde_json::json!({
        "model": "demo", "temperature": 0, "stream": true, "ignore_eos": true, "max_tokens": 1800,
        "messages": [{"role": "user", "content": LONG[2]}],
    });
    let mut answer = server.call("POST", "/v1/chat/completions").json(&body).open();
    assert!(answer.event().is_some());
    signal(&server.child, "TERM");
    let begin = Instant::now();
    while !server.log().contains("stopping") {
        assert!(begin.elapsed() < Duration::from_secs(30), "the signal is not heard");
        std::thread::sleep(Duration::from_millis(5));
    }
    signal(&server.child, "INT");
    let status = server.child.wait().expect("can be waited for");
    assert_eq!(status.code(), Some(130), "{}", server.log());
}

#[test]
fn a_chat_goes_on_after_an_interrupted_reply() {
    use std::io::Write;
    let mut child = start(command().args(["chat", "demo", "--temp", "0", "--exact"]));
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let mut stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
    writeln!(stdin, "{}", LONG[2]).expect("writes");
    let mut first = [0; 4];
    stdout.read_exact(&mut first).expect("text comes");
    signal(&child, "INT");
    let mut line = String::new();
    stdout.read_line(&mut line).expect("the reply ends");
    writeln!(stdin, "/clear\nWhat is the capital of France?").expect("writes");
    drop(stdin);
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).expect("the chat ends");
    assert!(rest.ends_with("Paris is the capital of France.\n"), "{rest:?}");
    assert_eq!(finish(child).status.code(), Some(0));
}
