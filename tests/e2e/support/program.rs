//! Runs the `trefoil` program to its end.

use std::io::{Read, Write};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Time after which a run counts as hanging. Generous: machines that build are slow.
const MOST: Duration = Duration::from_secs(240);

/// The program, without settings from the environment of the test.
pub(crate) fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trefoil"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TREFOIL_") {
            command.env_remove(name);
        }
    }
    command.env("NO_COLOR", "1");
    // A folder without configuration, so that the user's own changes nothing.
    command.env("XDG_CONFIG_HOME", env!("CARGO_MANIFEST_DIR"));
    command
}

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    /// The standard output of a run that must have succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        self.stdout
    }

    /// The JSON document of a run that must have succeeded.
    #[track_caller]
    pub(crate) fn json(self) -> Value {
        let text = self.ok();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// What a run that must have failed with `code` says, as one line.
    #[track_caller]
    pub(crate) fn fails(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "stdout {:?}, stderr {:?}", self.stdout, self.stderr);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        // Messages are wrapped, with a bar at the left, to the width of a terminal.
        let words = self.stderr.split_whitespace().filter(|word| !matches!(*word, "│" | "×" | "|"));
        words.collect::<Vec<_>>().join(" ")
    }
}

/// Runs the program with no standard input.
pub(crate) fn trefoil(args: &[&str]) -> Ran {
    trefoil_with(args, "")
}

/// Runs the program with `input` as its standard input.
pub(crate) fn trefoil_with(args: &[&str], input: &str) -> Ran {
    run(command().args(args), input)
}

/// Runs a command to its end.
pub(crate) fn run(command: &mut Command, input: &str) -> Ran {
    let mut child = start(command);
    let mut stdin = child.stdin.take().expect("stdin is piped");
    // A program that fails early does not read its input.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = finish(child);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("output is UTF-8");
    Ran { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// Starts a command with all three streams piped.
pub(crate) fn start(command: &mut Command) -> Child {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts")
}

/// Waits for the end of a child, and kills one that hangs.
pub(crate) fn finish(mut child: Child) -> Output {
    fn read(stream: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<Vec<u8>> {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(mut stream) = stream {
                stream.read_to_end(&mut bytes).expect("pipes can be read");
            }
            bytes
        })
    }
    let (stdout, stderr) = (read(child.stdout.take()), read(child.stderr.take()));
    let begin = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("children can be waited for") {
            break status;
        }
        if begin.elapsed() > MOST {
            let _ = child.kill();
            panic!("no end after {MOST:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let bytes = |thread: std::thread::JoinHandle<Vec<u8>>| thread.join().expect("readers end");
    Output { status, stdout: bytes(stdout), stderr: bytes(stderr) }
}
