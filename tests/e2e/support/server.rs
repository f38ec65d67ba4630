//! A server for one test.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::http::{Call, Response};
use super::program::{command, start};

/// `trefoil serve` on a free port; killed on drop.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) child: Child,
    log: Arc<Mutex<String>>,
}

impl Server {
    /// Serves the demo model with more flags.
    pub(crate) fn start(flags: &[&str]) -> Self {
        Self::of(&["demo"], flags)
    }

    /// Serves `models`.
    pub(crate) fn of(models: &[&str], flags: &[&str]) -> Self {
        Self::run(command().arg("serve").args(models).args(["--port", "0"]).args(flags))
    }

    /// Serves the demo model with settings from the environment.
    pub(crate) fn with_settings(settings: &[(&str, &str)], flags: &[&str]) -> Self {
        let mut command = command();
        Self::run(
            command
                .envs(settings.iter().copied())
                .args(["serve", "demo", "--port", "0"])
                .args(flags),
        )
    }

    fn run(command: &mut Command) -> Self {
        let mut child = start(command);
        let mut lines = BufReader::new(child.stderr.take().expect("stderr is piped"));
        let mut said = String::new();
        let address = loop {
            let mut line = String::new();
            let read = lines.read_line(&mut line).expect("stderr can be read");
            assert!(read > 0, "the server ended: {said}");
            said.push_str(&line);
            let address = line.split_once("http://").and_then(|(_, rest)| rest.split_once("/v1"));
            if let Some((address, _)) = address {
                break address.parse().expect("the address is one");
            }
        };
        // What it says later is kept for tests, and read so that its pipe never fills.
        let log = Arc::new(Mutex::new(said));
        let more = log.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = lines.read(&mut buffer) {
                let text = String::from_utf8_lossy(&buffer[..read]);
                more.lock().expect("nothing panics while holding it").push_str(&text);
            }
        });
        Self { address, child, log }
    }

    /// All that the server has written to stderr.
    pub(crate) fn log(&self) -> String {
        self.log.lock().expect("nothing panics while holding it").clone()
    }

    pub(crate) fn call(&self, method: &str, path: &str) -> Call {
        Call::new(self.address, method, path)
    }

    pub(crate) fn get(&self, path: &str) -> Response {
        self.call("GET", path).send()
    }

    /// Posts a chat request.
    pub(crate) fn chat(&self, body: &serde_json::Value) -> Response {
        self.call("POST", "/v1/chat/completions").json(body).send()
    }

    /// Value of a sample in `/metrics`, by its name with labels; 0 if there is none.
    pub(crate) fn metric(&self, sample: &str) -> f64 {
        let text = self.get("/metrics").text();
        let line = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().expect("samples are numbers"))
    }

    /// Waits until a sample has a value.
    #[track_caller]
    pub(crate) fn wait_for_metric(&self, sample: &str, value: f64) {
        let begin = Instant::now();
        loop {
            let got = self.metric(sample);
            if got == value {
                return;
            }
            assert!(begin.elapsed() < Duration::from_secs(60), "{sample}: {value} never, {got}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself, in tests of that.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
