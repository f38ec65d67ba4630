//! GET /v1/stream: many streamed answers over one WebSocket.

use std::io::Read;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use tungstenite::client::IntoClientRequest;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::{Message, WebSocket};

use crate::support::demo::safe_reply;
use crate::support::server::Server;

/// A client's end.
struct Socket(WebSocket<TcpStream>);

/// Connects with more headers. The status where the server does not want to.
fn connect(server: &Server, headers: &[(&str, &str)]) -> Result<Socket, u16> {
    let stream = TcpStream::connect(server.address).expect("the server listens");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("not zero");
    let url = format!("ws://{}/v1/stream", server.address);
    let mut request = url.into_client_request().expect("a request");
    for (name, value) in headers {
        let name: tungstenite::http::HeaderName = name.parse().expect("a name");
        request.headers_mut().append(name, value.parse().expect("a value"));
    }
    match tungstenite::client(request, stream) {
        Ok((socket, _)) => Ok(Socket(socket)),
        Err(tungstenite::HandshakeError::Failure(tungstenite::Error::Http(response))) => {
            Err(response.status().as_u16())
        }
        Err(error) => panic!("{error}"),
    }
}

impl Socket {
    fn send(&mut self, value: &Value) {
        self.0.send(Message::text(value.to_string())).expect("the server reads");
    }

    fn next(&mut self) -> Message {
        self.0.read().expect("the server goes on")
    }

    /// The next event, past pings.
    fn event(&mut self) -> Value {
        loop {
            match self.next() {
                Message::Text(text) => return serde_json::from_str(&text).expect("JSON"),
                Message::Ping(_) => {}
                other => panic!("expected text, got {other:?}"),
            }
        }
    }

    /// Why the server closes.
    fn closed(&mut self) -> CloseCode {
        loop {
            if let Message::Close(frame) = self.next() {
                return frame.expect("a reason is told").code;
            }
        }
    }
}

fn chat(id: &str, prompt: &str, extra: &Value) -> Value {
    let mut body = json!({"model": "demo", "temperature": 0,
        "messages": [{"role": "user", "content": prompt}]});
    for (name, value) in extra.as_object().expect("an object") {
        body[name] = value.clone();
    }
    json!({"id": id, "op": "chat.completions", "body": body})
}

fn endless(id: &str) -> Value {
    chat(id, "Tell me more.", &json!({"ignore_eos": true, "max_tokens": 1900}))
}

#[test]
fn answers_of_a_socket_are_told_apart() {
    let server = Server::start(&[]);
    let reply = safe_reply();
    let mut socket = connect(&server, &[]).expect("it opens");
    socket.send(&chat("a", &reply.prompt, &json!({"stream_options": {"include_usage": true}})));
    socket.send(&json!({"id": "b", "op": "completions", "body": {
        "model": "demo", "prompt": reply.ids_in, "max_tokens": 100, "temperature": 0}}));
    let mut texts = [String::new(), String::new()];
    let mut chunks = [0, 0];
    let mut done = Vec::new();
    let mut usage = Value::Null;
    while done.len() < 2 {
        let event = socket.event();
        let at = usize::from(event["id"] == "b");
        assert!(at == 1 || event["id"] == "a", "{event}");
        assert!(!done.contains(&at), "nothing follows the end: {event}");
        match event["event"].as_str() {
            Some("chunk") => {
                let choice = &event["data"]["choices"][0];
                let text = [&choice["delta"]["content"], &choice["text"]][at].as_str();
                texts[at].push_str(text.unwrap_or_default());
                chunks[at] += 1;
                if event["data"]["usage"].is_object() {
                    usage = event["data"]["usage"].clone();
                }
            }
            Some("done") => done.push(at),
            _ => panic!("{event}"),
        }
    }
    assert_eq!(texts, [reply.text.as_str(), reply.text.as_str()]);
    assert!(chunks.iter().all(|&count| count > 2), "they come bit by bit: {chunks:?}");
    assert_eq!(usage["completion_tokens"], reply.ids_out.len());

    // An id is free again after the end of its request; not before.
    socket.send(&endless("a"));
    assert_eq!(socket.event()["event"], "chunk");
    socket.send(&endless("a"));
    let error = until(&mut socket, "error");
    assert_eq!((&error["status"], &error["error"]["param"]), (&json!(400), &json!("id")));
    socket.send(&json!({"id": "a", "op": "cancel"}));
    assert_eq!(until(&mut socket, "cancelled"), json!({"id": "a", "event": "cancelled"}));
    server.wait_for_metric("trefoil_requests_running{model=\"demo\"}", 0.0);
    // Nothing to cancel is nothing wrong.
    socket.send(&json!({"id": "a", "op": "cancel"}));
    refusals(&mut socket);

    // A client that leaves ends what it asked for.
    socket.send(&endless("last"));
    assert_eq!(socket.event()["event"], "chunk");
    drop(socket);
    server.wait_for_metric("trefoil_requests_running{model=\"demo\"}", 0.0);
    assert!(!server.log().contains("panicked"), "{}", server.log());
}

/// The next event of a kind.
fn until(socket: &mut Socket, kind: &str) -> Value {
    loop {
        let event = socket.event();
        if event["event"] == kind {
            return event;
        }
        assert_eq!(event["event"], "chunk", "{event}");
    }
}

fn refusals(socket: &mut Socket) {
    for (message, status, code, param) in [
        (json!({"id": "x", "op": "fly"}), 400, "invalid_value", json!("op")),
        (json!({"id": "x", "op": "completions"}), 400, "invalid_type", json!("body")),
        (chat("x", "a", &json!({"stream": false})), 400, "invalid_value", json!("stream")),
        (chat("x", "a", &json!({"temperature": 9})), 400, "invalid_value", json!("temperature")),
        (chat("x", "a", &json!({"model": "none"})), 404, "model_not_found", json!("model")),
    ] {
        socket.send(&message);
        let event = socket.event();
        assert_eq!((&event["id"], &event["event"]), (&json!("x"), &json!("error")), "{event}");
        assert_eq!((&event["status"], &event["error"]["code"]), (&json!(status), &json!(code)));
        assert_eq!(event["error"]["param"], param);
    }
}

#[test]
fn what_is_no_message_ends_the_connection() {
    let server = Server::start(&[]);
    for bad in [Message::text("{"), Message::text(r#"{"id":1}"#), Message::binary(vec![1, 2])] {
        let mut socket = connect(&server, &[]).expect("it opens");
        socket.0.send(bad.clone()).expect("sent");
        let event = socket.event();
        assert_eq!((&event["id"], &event["event"]), (&Value::Null, &json!("error")), "{bad:?}");
        assert_eq!(socket.closed(), CloseCode::Invalid, "{bad:?}");
    }
    let answer = server.get("/v1/stream");
    answer.error(400, "invalid_value");
    server
        .chat(&json!({"model": "demo", "max_tokens": 1,
        "messages": [{"role": "user", "content": "x"}]}))
        .ok();
}

#[test]
fn sockets_are_guarded_as_requests_are() {
    let server = Server::start(&["--api-key", "s3cret"]);
    assert_eq!(connect(&server, &[]).err(), Some(401));
    assert_eq!(connect(&server, &[("authorization", "Bearer wrong")]).err(), Some(401));
    assert!(connect(&server, &[("authorization", "Bearer s3cret")]).is_ok());
    let evil = [("authorization", "Bearer s3cret"), ("origin", "https://evil.example")];
    assert_eq!(connect(&server, &evil).err(), Some(403));
    // Pages cannot set headers: they send the key as a subprotocol.
    let key = |key: &str| format!("trefoil.v1, trefoil.key.{}", URL_SAFE_NO_PAD.encode(key));
    let page = |key: &str| {
        connect(&server, &[("sec-websocket-protocol", key), ("origin", "http://localhost:3000")])
    };
    let mut socket = page(&key("s3cret")).expect("it opens");
    socket.send(&json!({"id": "x", "op": "fly"}));
    assert_eq!(socket.event()["event"], "error");
    assert_eq!(page(&key("wrong")).err(), Some(401));
    assert_eq!(page("trefoil.v1, trefoil.key.%%%").err(), Some(401));
    // Elsewhere the subprotocol opens nothing.
    let call = server.call("GET", "/v1/models").header("sec-websocket-protocol", &key("s3cret"));
    call.send().error(401, "invalid_api_key");
}

#[test]
fn clients_that_do_not_answer_are_left() {
    let server = Server::start(&["--sse-ping", "0.3"]);
    let mut socket = connect(&server, &[]).expect("it opens");
    // Who reads answers pings by that, and stays.
    let begin = Instant::now();
    let mut pings = 0;
    while begin.elapsed() < Duration::from_millis(2500) {
        pings += u32::from(matches!(socket.next(), Message::Ping(_)));
    }
    assert!(pings >= 3, "{pings}");
    // Who does not is left. Read as bytes, so that nothing answers: pings, then why the server closes.
    let mut bytes = Vec::new();
    socket.0.get_mut().read_to_end(&mut bytes).expect("the server closes");
    let pings = bytes.chunks_exact(2).take_while(|frame| *frame == [0x89, 0]).count();
    // The answer to the last one that was read may not have been sent.
    assert!((1..=2).contains(&pings), "{bytes:?}");
    let Some([0x88, length, code @ ..]) = bytes.get(2 * pings..) else { panic!("{bytes:?}") };
    assert_eq!((usize::from(*length), &code[..2]), (code.len(), &1001_u16.to_be_bytes()[..]));
}

#[cfg(unix)]
#[test]
fn a_server_that_stops_lets_running_answers_end() {
    let mut server = Server::start(&[]);
    let mut socket = connect(&server, &[]).expect("it opens");
    socket.send(&chat("a", "Tell me a story about a lemon tree.", &json!({"max_tokens": 24})));
    assert_eq!(socket.event()["event"], "chunk");
    let id = server.child.id().to_string();
    let killed = std::process::Command::new("kill").args(["-s", "TERM", &id]).status();
    assert!(killed.expect("kill runs").success());
    assert_eq!(until(&mut socket, "done"), json!({"id": "a", "event": "done"}));
    let status = server.child.wait().expect("can be waited for");
    assert_eq!(status.code(), Some(0), "{}", server.log());
}
