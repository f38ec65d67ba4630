//! Requests to a server of this program that runs on this machine or another.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

use serde_json::Value;

use crate::exit::{Failure, Status};

/// Time for the connection, and for each part of an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// More than any answer has.
const MOST_BYTES: u64 = 64 << 20;

/// Asks a server.
#[derive(Debug)]
pub(crate) struct Client {
    host: String,
    port: u16,
    key: Option<String>,
}

impl Client {
    /// One for the server that listens at `host`; all addresses of a machine are reached by its own.
    pub(crate) fn new(host: &str, port: u16, key: Option<String>) -> Self {
        let host = match host.parse::<IpAddr>() {
            Ok(IpAddr::V4(address)) if address.is_unspecified() => "127.0.0.1".to_owned(),
            Ok(IpAddr::V6(address)) if address.is_unspecified() => "::1".to_owned(),
            _ => host.to_owned(),
        };
        Self { host, port, key }
    }

    fn failure(&self, problem: impl std::fmt::Display) -> Failure {
        let Self { host, port, .. } = self;
        let error = format!("the server at {host}:{port}: {problem}");
        Failure::new(Status::Network, error)
    }

    fn connect(&self) -> std::io::Result<TcpStream> {
        let mut last = std::io::Error::other("the name has no address");
        for address in (self.host.as_str(), self.port).to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, PATIENCE) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(PATIENCE))?;
                    stream.set_write_timeout(Some(PATIENCE))?;
                    return Ok(stream);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Sends a GET and returns head and body of the answer.
    fn ask(&self, path: &str) -> std::io::Result<String> {
        let mut stream = self.connect()?;
        let host = match self.host.parse::<IpAddr>() {
            Ok(IpAddr::V6(address)) => format!("[{address}]"),
            _ => self.host.clone(),
        };
        // Of version 1.0, so that the answer ends with the connection and comes in one piece.
        let mut head = format!("GET {path} HTTP/1.0\r\nhost: {host}:{}\r\n", self.port);
        if let Some(key) = &self.key {
            head.push_str(&format!("authorization: Bearer {key}\r\n"));
        }
        head.push_str("\r\n");
        stream.write_all(head.as_bytes())?;
        let mut answer = String::new();
        stream.take(MOST_BYTES).read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// The JSON document at `path`.
    ///
    /// # Errors
    /// There is no server, it refuses, or what answers is another program.
    pub(crate) fn get(&self, path: &str) -> Result<Value, Failure> {
        let answer = self.ask(path).map_err(|error| {
            let problem =
                format!("{error}; is `trefoil serve` running? --host and --port say where");
            self.failure(problem)
        })?;
        let status = answer.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5));
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body);
        let document = body.and_then(|body| serde_json::from_str::<Value>(body).ok());
        match (status, document) {
            (Some("200"), Some(document)) => Ok(document),
            (Some("401"), _) => Err(self.failure("it needs a key: --api-key-file FILE")),
            (Some(status), Some(document)) if document["error"]["message"].is_string() => {
                let message = document["error"]["message"].as_str().unwrap_or_default();
                Err(self.failure(format!("{path}: {status}: {message}")))
            }
            _ => Err(self
                .failure(format!("{path}: expected JSON, got something else; is it trefoil's?"))),
        }
    }
}
