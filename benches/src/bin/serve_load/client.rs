//! One streamed chat request over plain HTTP/1.1, with the time of every event.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Silence after which a server counts as gone.
const PATIENCE: Duration = Duration::from_secs(300);

/// A server under test.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    /// What the report calls it.
    pub(crate) name: String,
    /// `host:port`.
    pub(crate) authority: String,
    /// Path of the API, such as `/v1`.
    pub(crate) path: String,
}

impl std::str::FromStr for Server {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("expected NAME=http://HOST:PORT/v1, got {text:?}");
        let (name, url) = text.split_once('=').ok_or_else(wrong)?;
        let rest = url.strip_prefix("http://").ok_or_else(wrong)?;
        let (authority, path) = rest.split_once('/').unwrap_or((rest, "v1"));
        if name.is_empty() || !authority.contains(':') {
            return Err(wrong());
        }
        let path = format!("/{}", path.trim_end_matches('/'));
        Ok(Self { name: name.to_owned(), authority: authority.to_owned(), path })
    }
}

/// What is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) model: String,
    pub(crate) prompt: String,
    pub(crate) tokens: usize,
    pub(crate) key: Option<String>,
}

/// What came of it.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// Time to the first text.
    pub(crate) first: Duration,
    /// Times between texts.
    pub(crate) gaps: Vec<Duration>,
    /// Tokens generated, as the server counts them.
    pub(crate) tokens: usize,
    /// Tokens of the prompt, as the server counts them.
    pub(crate) prompt_tokens: usize,
}

/// Sends a request and reads its stream to the end.
///
/// # Errors
/// In words: no connection, another status than 200, a stream that breaks off.
pub(crate) fn ask(server: &Server, ask: &Ask) -> Result<Answer, String> {
    let say = |what: &str, error: &dyn std::fmt::Display| {
        format!("{} at {}: {what}: {error}", server.name, server.authority)
    };
    let mut stream =
        TcpStream::connect(&server.authority).map_err(|error| say("no connection", &error))?;
    let set = stream.set_read_timeout(Some(PATIENCE)).and_then(|()| stream.set_nodelay(true));
    set.map_err(|error| say("the connection", &error))?;
    let body = json!({
        "model": ask.model,
        "messages": [{"role": "user", "content": ask.prompt}],
        "max_tokens": ask.tokens,
        "temperature": 0,
        // Replies of the same length from all: known to most servers that run models at home.
        "ignore_eos": true,
        "stream": true,
        "stream_options": {"include_usage": true},
    })
    .to_string();
    let key = ask.key.as_ref().map(|key| format!("authorization: Bearer {key}\r\n"));
    let head = format!(
        "POST {}/chat/completions HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\
         content-type: application/json\r\n{}content-length: {}\r\n\r\n",
        server.path,
        server.authority,
        key.unwrap_or_default(),
        body.len()
    );
    let begin = Instant::now();
    stream
        .write_all((head + &body).as_bytes())
        .map_err(|error| say("sending the request", &error))?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    let mut first = None;
    let mut last = begin;
    let (mut gaps, mut usage) = (Vec::new(), Value::Null);
    let mut status = None;
    loop {
        line.clear();
        let read = reader.read_line(&mut line).map_err(|error| say("the answer", &error))?;
        if read == 0 {
            break;
        }
        let text = line.trim_end();
        if status.is_none() {
            status = Some(text.to_owned());
            if text.split(' ').nth(1) != Some("200") {
                let mut rest = String::new();
                // What can be read of the reason.
                let _ = std::io::Read::read_to_string(&mut reader, &mut rest);
                return Err(say("expected status 200, got", &format!("{text} {rest}")));
            }
        }
        // Heads, sizes of chunks and comments have no such beginning.
        let Some(data) = text.strip_prefix("data: ") else { continue };
        if data == "[DONE]" {
            break;
        }
        let chunk: Value =
            serde_json::from_str(data).map_err(|error| say("an event is not JSON", &error))?;
        if let Some(error) = chunk.get("error") {
            return Err(say("an error in the stream", error));
        }
        if chunk["usage"].is_object() {
            usage = chunk["usage"].clone();
        }
        let content = chunk["choices"][0]["delta"]["content"].as_str();
        if content.is_some_and(|content| !content.is_empty()) {
            let now = Instant::now();
            match first {
                None => first = Some(now - begin),
                Some(_) => gaps.push(now - last),
            }
            last = now;
        }
    }
    let count = |name: &str| usage[name].as_u64().and_then(|n| usize::try_from(n).ok());
    let texts = gaps.len() + usize::from(first.is_some());
    Ok(Answer {
        first: first.ok_or_else(|| say("the answer", &"no text came"))?,
        tokens: count("completion_tokens").unwrap_or(texts),
        prompt_tokens: count("prompt_tokens").unwrap_or(0),
        gaps,
    })
}
