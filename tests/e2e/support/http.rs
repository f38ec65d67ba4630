//! HTTP/1.1 as it goes over the wire, so that tests see what a library would hide.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// Silence after which an answer counts as not coming.
const PATIENCE: Duration = Duration::from_secs(120);

/// A request being put together.
#[derive(Debug)]
pub(crate) struct Call {
    address: SocketAddr,
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Call {
    pub(crate) fn new(address: SocketAddr, method: &str, path: &str) -> Self {
        let headers = vec![("host".to_owned(), address.to_string())];
        let (method, path) = (method.to_owned(), path.to_owned());
        Self { address, method, path, headers, body: Vec::new() }
    }

    /// Sets a header; an empty value removes it.
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.retain(|(other, _)| other != name);
        if !value.is_empty() {
            self.headers.push((name.to_owned(), value.to_owned()));
        }
        self
    }

    pub(crate) fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    pub(crate) fn json(self, body: &Value) -> Self {
        self.header("content-type", "application/json").body(body.to_string())
    }

    /// Sends the request; the answer is read as the caller wishes.
    pub(crate) fn open(self) -> Answer {
        let mut stream = TcpStream::connect(self.address).expect("the server listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("the time is not zero");
        let mut head = format!("{} {} HTTP/1.1\r\nconnection: close\r\n", self.method, self.path);
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !self.body.is_empty() || self.method == "POST" {
            head.push_str(&format!("content-length: {}\r\n", self.body.len()));
        }
        head.push_str("\r\n");
        stream.write_all(head.as_bytes()).expect("the server reads");
        // A server may answer before it has read a body that it refuses.
        let _ = stream.write_all(&self.body);
        Answer::read_head(stream)
    }

    /// Sends the request and reads the whole answer.
    pub(crate) fn send(self) -> Response {
        let head_only = self.method == "HEAD";
        let mut answer = self.open();
        let mut body = Vec::new();
        if !head_only {
            answer.read_to_end(&mut body).expect("the answer comes whole");
        }
        Response { status: answer.status, headers: answer.headers, body }
    }
}

/// An answer whose body is still to be read.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    stream: BufReader<TcpStream>,
    /// Bytes left of the body or of its chunk; `None` when the body ends with the connection.
    left: Option<usize>,
    chunked: bool,
}

impl Answer {
    fn read_head(stream: TcpStream) -> Self {
        let mut stream = BufReader::new(stream);
        let mut line = || {
            let mut line = String::new();
            stream.read_line(&mut line).expect("the answer has a head");
            line.trim_end().to_owned()
        };
        let first = line();
        let status = first.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.unwrap_or_else(|| panic!("not a status line: {first:?}"));
        let mut headers = Vec::new();
        loop {
            let line = line();
            let Some((name, value)) = line.split_once(':') else { break };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let chunked = find(&headers, "transfer-encoding") == Some("chunked");
        let left = match find(&headers, "content-length") {
            _ if chunked => Some(0),
            length => length.map(|length| length.parse().expect("a length is a number")),
        };
        Self { status, headers, stream, left, chunked }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    /// Reads the size of the next chunk; 0 at the end.
    fn next_chunk(&mut self) -> std::io::Result<usize> {
        let mut line = String::new();
        // Each chunk but the first follows an empty line.
        while line.trim().is_empty() {
            line.clear();
            if self.stream.read_line(&mut line)? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
        usize::from_str_radix(line.trim(), 16).map_err(std::io::Error::other)
    }

    /// The next event or comment of a stream of events; `None` at its end.
    pub(crate) fn event(&mut self) -> Option<Event> {
        let mut lines = Vec::new();
        loop {
            let mut line = Vec::new();
            let mut byte = [0];
            while byte != *b"\n" {
                if self.read(&mut byte).expect("the stream goes on") == 0 {
                    assert!(line.is_empty() && lines.is_empty(), "the stream ends inside an event");
                    return None;
                }
                line.push(byte[0]);
            }
            line.pop();
            let line = String::from_utf8(line).expect("events are UTF-8");
            if line.is_empty() {
                break;
            }
            lines.push(line);
        }
        assert_eq!(lines.len(), 1, "an event is one line: {lines:?}");
        Some(Event::parse(&lines[0]))
    }

    /// All events up to the end.
    pub(crate) fn events(mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.event()).collect()
    }
}

impl Read for Answer {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.chunked && self.left == Some(0) {
            match self.next_chunk()? {
                // Nothing more is read: the chunk of no bytes ends the body.
                0 => {
                    (self.chunked, self.left) = (false, Some(0));
                    return Ok(0);
                }
                size => self.left = Some(size),
            }
        }
        let most = self.left.map_or(buffer.len(), |left| left.min(buffer.len()));
        let read = self.stream.read(&mut buffer[..most])?;
        if let Some(left) = &mut self.left {
            if read == 0 && most > 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            *left -= read;
        }
        Ok(read)
    }
}

/// What comes in a stream of events.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Event {
    Data(Value),
    Done,
    Comment(String),
}

impl Event {
    fn parse(line: &str) -> Self {
        match line.strip_prefix("data: ") {
            Some("[DONE]") => Self::Done,
            Some(data) => Self::Data(serde_json::from_str(data).expect("data is JSON")),
            None => {
                let comment = line.strip_prefix(':').unwrap_or_else(|| panic!("unknown: {line:?}"));
                Self::Comment(comment.trim().to_owned())
            }
        }
    }
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Response {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("bodies are UTF-8")
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        let text = self.text();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// The body of an answer that must be 200.
    #[track_caller]
    pub(crate) fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text());
        self.json()
    }

    /// The error object of an answer that must have this status and code.
    #[track_caller]
    pub(crate) fn error(&self, status: u16, code: &str) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        let error = self.json()["error"].clone();
        assert_eq!(error["code"], code, "{error}");
        let message = error["message"].as_str().expect("errors have a message");
        assert!(!message.is_empty());
        let kind = match status {
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        assert_eq!(error["type"], kind, "{error}");
        assert!(error["param"].is_string() || error["param"].is_null(), "{error}");
        assert!(self.header("x-request-id").is_some(), "errors carry an id too");
        error
    }
}

fn find<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
}
