//! Server-sent events: one `data:` line per event, comments as signs of life.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use serde_json::Value;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::{Instant, Sleep};

use super::error::ApiError;
use super::outlet::{Frame, Outlet};

/// One event.
pub(crate) fn event(data: &Value) -> Bytes {
    Bytes::from(format!("data: {data}\n\n"))
}

/// One event with a name.
pub(crate) fn named_event(name: &str, data: &Value) -> Bytes {
    Bytes::from(format!("event: {name}\ndata: {data}\n\n"))
}

/// The event that ends a stream that went well.
pub(crate) const DONE: Bytes = Bytes::from_static(b"data: [DONE]\n\n");

/// Events from a channel; a comment after each silence of `ping`.
struct Events {
    receiver: UnboundedReceiver<Bytes>,
    ping: Duration,
    timer: Pin<Box<Sleep>>,
}

impl tokio_stream::Stream for Events {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if let Poll::Ready(next) = this.receiver.poll_recv(context) {
            this.timer.as_mut().reset(Instant::now() + this.ping);
            return Poll::Ready(next.map(Ok));
        }
        if this.timer.as_mut().poll(context).is_ready() {
            this.timer.as_mut().reset(Instant::now() + this.ping);
            // Registers the new time with the waker.
            let _ = this.timer.as_mut().poll(context);
            return Poll::Ready(Some(Ok(Bytes::from_static(b": ping\n\n"))));
        }
        Poll::Pending
    }
}

/// Answers with what `work` sends, then with how it ended.
pub(crate) fn answer<F>(
    ping: Duration,
    work: impl FnOnce(Arc<Outlet<Bytes>>) -> F + Send + 'static,
) -> Response
where
    F: Future<Output = Result<(), ApiError>> + Send + 'static,
{
    let (sender, events) = unbounded_channel();
    let outlet = Outlet::new(sender, |frame| match frame {
        Frame::Chunk(data) => event(&data),
        Frame::Done => DONE,
        // The status went out long ago: the error is an event, and nothing follows it.
        Frame::Failed(error) => event(&error.body()),
    });
    tokio::spawn(outlet.run(work));
    response(events, ping)
}

/// The response that carries the events of a channel.
pub(crate) fn response(receiver: UnboundedReceiver<Bytes>, ping: Duration) -> Response {
    let timer = Box::pin(tokio::time::sleep(ping));
    let mut response = Response::new(Body::from_stream(Events { receiver, ping, timer }));
    let headers = response.headers_mut();
    let content_type = HeaderValue::from_static("text/event-stream; charset=utf-8");
    headers.insert(header::CONTENT_TYPE, content_type);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}
