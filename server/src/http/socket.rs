//! GET /v1/stream: many streamed answers over one WebSocket (API.md section 2.3).
//!
//! A connection has a task that reads, one that writes, and one for each request under way. All that is
//! to be written goes through one channel, so that frames of a request keep their order.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::http::StatusCode;
use axum::response::Response;
use futures_util::stream::SplitSink;
use futures_util::{FutureExt, SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::error::ApiError;
use super::outlet::{Frame, Outlet};
use super::socket_message::{ClientMessage, Op};
use super::state::AppState;
use super::{chat, completions};

/// Subprotocol that a client may ask for.
const PROTOCOL: &str = "trefoil.v1";
/// Requests that one connection may have under way.
const MOST_REQUESTS: usize = 256;
/// Pings without an answer after which a connection counts as gone.
const MOST_UNANSWERED: u32 = 2;

/// Bytes that wait for a client to read them, and since when there are too many.
#[derive(Debug, Default)]
struct Backlog {
    late_since: Option<Instant>,
}

impl Backlog {
    /// Bytes that may wait.
    const MOST_BYTES: usize = 1 << 20;
    /// Time for which more may.
    const PATIENCE: Duration = Duration::from_secs(10);

    /// Has the client been too slow for too long, now that `unsent` bytes wait?
    fn is_hopeless(&mut self, unsent: usize, now: Instant) -> bool {
        if unsent <= Self::MOST_BYTES {
            self.late_since = None;
            return false;
        }
        let since = *self.late_since.get_or_insert(now);
        now.duration_since(since) >= Self::PATIENCE
    }
}

/// Requests under way over all sockets.
#[derive(Debug, Default)]
pub(crate) struct UnderWay(watch::Sender<usize>);

impl UnderWay {
    fn one(&self) -> Counted {
        self.0.send_modify(|count| *count += 1);
        Counted(self.0.clone())
    }

    /// Waits until there is none.
    pub(crate) async fn none(&self) {
        // An error would mean that the sender is gone: it is here.
        let _ = self.0.subscribe().wait_for(|count| *count == 0).await;
    }
}

/// A request is under way until this is dropped: when its last frame was written.
struct Counted(watch::Sender<usize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// What is to be written.
enum Out {
    Text(String),
    /// The last frame of a request.
    Last(String, Option<Counted>),
    Ping,
    Close(u16, &'static str),
}

/// The way to the writing task.
#[derive(Clone)]
struct Writer {
    sender: UnboundedSender<Out>,
    /// Bytes of text that wait.
    unsent: Arc<AtomicUsize>,
}

impl Writer {
    fn text(&self, value: &Value) {
        // A send fails when the connection is gone: then nobody wants it.
        let _ = self.sender.send(Out::Text(self.count(value)));
    }

    fn count(&self, value: &Value) -> String {
        let text = value.to_string();
        self.unsent.fetch_add(text.len(), Ordering::Relaxed);
        text
    }

    fn error(&self, id: &Value, error: &ApiError) {
        self.text(&error_event(id, error));
    }
}

fn error_event(id: &Value, error: &ApiError) -> Value {
    let error_object = &error.body()["error"];
    json!({"id": id, "event": "error", "status": error.status.as_u16(), "error": error_object})
}

/// A request under way.
struct Running {
    task: JoinHandle<()>,
    /// Was its last frame written?
    over: Arc<AtomicBool>,
}

/// GET /v1/stream
pub(crate) async fn open(
    State(state): State<Arc<AppState>>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let upgrade = upgrade.map_err(|error| {
        let message = format!("This route opens a WebSocket: {}.", error.body_text());
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_value", message)
    })?;
    let most = state.options.max_body;
    let upgrade = upgrade.max_message_size(most).max_frame_size(most).protocols([PROTOCOL]);
    Ok(upgrade.on_upgrade(move |socket| Connection::new(state, socket).run()))
}

/// A connection, on the task that reads.
struct Connection {
    state: Arc<AppState>,
    reader: futures_util::stream::SplitStream<WebSocket>,
    writer: Writer,
    running: HashMap<String, Running>,
    backlog: Backlog,
    unanswered: u32,
}

impl Connection {
    fn new(state: Arc<AppState>, socket: WebSocket) -> Self {
        let (sink, reader) = socket.split();
        let (sender, receiver) = unbounded_channel();
        let unsent = Arc::new(AtomicUsize::new(0));
        tokio::spawn(write(sink, receiver, unsent.clone()));
        Self {
            state,
            reader,
            writer: Writer { sender, unsent },
            running: HashMap::new(),
            backlog: Backlog::default(),
            unanswered: 0,
        }
    }

    async fn run(mut self) {
        let every = self.state.options.socket_ping;
        let mut pings = tokio::time::interval_at(tokio::time::Instant::now() + every, every);
        let mut checks = tokio::time::interval(Duration::from_secs(1));
        let close = loop {
            tokio::select! {
                message = self.reader.next() => match message {
                    Some(Ok(message)) => if let Some(close) = self.take(message).await {
                        break close;
                    },
                    Some(Err(_)) | None => break None,
                },
                _ = pings.tick() => {
                    if self.unanswered >= MOST_UNANSWERED {
                        break Some((1001, "no answer to pings"));
                    }
                    self.unanswered += 1;
                    let _ = self.writer.sender.send(Out::Ping);
                }
                _ = checks.tick() => {
                    let unsent = self.writer.unsent.load(Ordering::Relaxed);
                    if self.backlog.is_hopeless(unsent, Instant::now()) {
                        self.drop_all().await;
                    }
                }
            }
        };
        for (_, running) in self.running.drain() {
            running.task.abort();
        }
        if let Some((code, reason)) = close {
            let _ = self.writer.sender.send(Out::Close(code, reason));
        }
    }

    /// Takes a message. `Some` if the connection ends with it, with what is said then.
    async fn take(&mut self, message: Message) -> Option<Option<(u16, &'static str)>> {
        let text = match message {
            Message::Text(text) => text,
            Message::Ping(_) => return None,
            Message::Pong(_) => {
                self.unanswered = 0;
                return None;
            }
            Message::Close(_) => return Some(None),
            Message::Binary(_) => return Some(self.refuse("Expected text, got bytes.")),
        };
        match ClientMessage::read(&text) {
            Ok(message) => self.begin(message).await,
            Err(error) => return Some(self.refuse(&error)),
        }
        None
    }

    fn refuse(&self, message: &str) -> Option<(u16, &'static str)> {
        let error = ApiError::new(StatusCode::BAD_REQUEST, "invalid_json", message);
        self.writer.error(&Value::Null, &error);
        Some((1007, "not a message of this protocol"))
    }

    async fn begin(&mut self, message: ClientMessage) {
        let ClientMessage { id, op, body } = message;
        self.running.retain(|_, running| !running.over.load(Ordering::Acquire));
        let refused = |name: &str, text: String| ApiError::field("invalid_value", name, text);
        let error = match op {
            Op::Cancel => return self.cancel(&id).await,
            Op::Other(op) => {
                let expected = "chat.completions, completions or cancel";
                refused("op", format!("'op': expected {expected}, got {op:?}."))
            }
            _ if self.running.contains_key(&id) => {
                refused("id", format!("'id': a request {id:?} is under way; choose another id."))
            }
            _ if self.running.len() >= MOST_REQUESTS => ApiError::queue_full(MOST_REQUESTS),
            Op::Chat | Op::Completions => match streamed(body) {
                Ok(body) => return self.start(id, op == Op::Chat, body),
                Err(error) => error,
            },
        };
        self.writer.error(&json!(id), &error);
    }

    fn start(&mut self, id: String, is_chat: bool, body: String) {
        let over = Arc::new(AtomicBool::new(false));
        let (ended, writer, name) = (over.clone(), self.writer.clone(), json!(id));
        let counted = Mutex::new(Some(self.state.sockets.one()));
        let outlet = Outlet::new(self.writer.sender.clone(), move |frame| {
            let event = match frame {
                Frame::Chunk(data) => json!({"id": name, "event": "chunk", "data": data}),
                Frame::Done => json!({"id": name, "event": "done"}),
                Frame::Failed(ref error) => error_event(&name, error),
            };
            let text = writer.count(&event);
            if event["event"] == "chunk" {
                return Out::Text(text);
            }
            // Before the client hears of it: it may use the id anew at once.
            ended.store(true, Ordering::Release);
            Out::Last(text, counted.lock().ok().and_then(|mut counted| counted.take()))
        });
        let (state, writer, name) = (self.state.clone(), self.writer.clone(), json!(id));
        let work = outlet.run(move |outlet| async move {
            match is_chat {
                true => chat::streamed(&state, body.as_bytes(), &outlet).await,
                false => completions::streamed(&state, body.as_bytes(), &outlet).await,
            }
        });
        let task = tokio::spawn(async move {
            if AssertUnwindSafe(work).catch_unwind().await.is_err() {
                tracing::error!("a request of a socket panicked");
                writer.error(&name, &ApiError::internal("Internal error; please report it."));
            }
        });
        self.running.insert(id, Running { task, over });
    }

    /// Ends a request. One that is not there may have ended while the client asked: that is no error.
    async fn cancel(&mut self, id: &str) {
        let Some(running) = self.running.remove(id) else { return };
        if is_stopped(running).await {
            self.writer.text(&json!({"id": id, "event": "cancelled"}));
        }
    }

    /// Ends all requests of a client that does not read.
    async fn drop_all(&mut self) {
        for (id, running) in std::mem::take(&mut self.running) {
            if is_stopped(running).await {
                let message = format!(
                    "More than {} bytes were not read within {:?}.",
                    Backlog::MOST_BYTES,
                    Backlog::PATIENCE
                );
                let status = StatusCode::REQUEST_TIMEOUT;
                self.writer.error(&json!(id), &ApiError::new(status, "slow_consumer", message));
            }
        }
    }
}

/// Stops a request's task, which drops its replies. False if it had told its end before.
async fn is_stopped(running: Running) -> bool {
    running.task.abort();
    let stopped = running.task.await.is_err();
    stopped && !running.over.load(Ordering::Acquire)
}

/// A request's body as text, made to stream.
fn streamed(body: Value) -> Result<String, ApiError> {
    let Value::Object(mut body) = body else {
        let message = "'body': expected an object: the body of a POST.";
        return Err(ApiError::field("invalid_type", "body", message));
    };
    match body.get("stream") {
        None | Some(Value::Null | Value::Bool(true)) => {}
        Some(_) => {
            let message = "'stream': expected true or nothing: all answers here are streams.";
            return Err(ApiError::field("invalid_value", "stream", message));
        }
    }
    body.insert("stream".to_owned(), Value::Bool(true));
    Ok(Value::Object(body).to_string())
}

/// Writes what comes, until the connection or all who send are gone.
async fn write(
    mut sink: SplitSink<WebSocket, Message>,
    mut receiver: UnboundedReceiver<Out>,
    unsent: Arc<AtomicUsize>,
) {
    while let Some(out) = receiver.recv().await {
        let (text, _counted) = match out {
            Out::Text(text) => (text, None),
            Out::Last(text, counted) => (text, counted),
            Out::Ping => match sink.send(Message::Ping(Vec::new().into())).await {
                Ok(()) => continue,
                Err(_) => return,
            },
            Out::Close(code, reason) => {
                let _ = sink
                    .send(Message::Close(Some(CloseFrame { code, reason: reason.into() })))
                    .await;
                return;
            }
        };
        let bytes = text.len();
        let sent = sink.send(Message::text(text)).await;
        unsent.fetch_sub(bytes, Ordering::Relaxed);
        if sent.is_err() {
            return;
        }
    }
    let _ = sink.close().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_too_slow_after_a_while() {
        let mut backlog = Backlog::default();
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let much = Backlog::MOST_BYTES + 1;
        assert!(!backlog.is_hopeless(much, start));
        assert!(!backlog.is_hopeless(much, after(9)));
        // It read some: the time begins anew.
        assert!(!backlog.is_hopeless(Backlog::MOST_BYTES, after(9)));
        assert!(!backlog.is_hopeless(much, after(11)));
        assert!(!backlog.is_hopeless(much, after(20)));
        assert!(backlog.is_hopeless(much, after(21)));
    }

    #[test]
    fn bodies_stream_and_nothing_else() {
        let body = streamed(json!({"model": "m"})).expect("taken");
        assert_eq!(body, r#"{"model":"m","stream":true}"#);
        assert!(streamed(json!({"stream": null})).is_ok());
        let error = streamed(json!({"stream": false})).expect_err("refused");
        assert_eq!((error.code, error.param.as_deref()), ("invalid_value", Some("stream")));
        assert_eq!(streamed(json!([])).expect_err("refused").param.as_deref(), Some("body"));
    }
}
