//! A dialect's answer on the wire.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use hyper::body::{Body, Frame as BodyFrame, SizeHint};
use hyper::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::{Response, StatusCode};
use tokio::time::Sleep;
use tracing::Span;

use super::activity::Running;
use super::budget::Held;
use crate::api::{Content, Frame, Reply};

/// The body of every response. It carries its request to the end: whatever ends a response, drops this.
pub(super) struct ResponseBody {
    content: Wire,
    exchange: Exchange,
}

enum Wire {
    Empty,
    Whole(Bytes),
    Events(Events),
}

/// Builds the response. To a `HEAD` request it is the same without its body.
pub(super) fn response(
    reply: Reply,
    head: bool,
    keep_alive: Duration,
    mut exchange: Exchange,
) -> Response<ResponseBody> {
    let Reply { status, headers, content } = reply;
    exchange.status = Some(status);
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    let content = match content {
        Content::Empty => Wire::Empty,
        Content::Json(bytes) => {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            headers.insert(CONTENT_LENGTH, bytes.len().into());
            Wire::Whole(bytes)
        }
        Content::Events(frames) => {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
            Wire::Events(Events::new(frames, keep_alive))
        }
    };
    let content = if head { Wire::Empty } else { content };
    exchange.complete = matches!(content, Wire::Empty);
    response.map(|()| ResponseBody { content, exchange })
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<BodyFrame<Bytes>, Infallible>>> {
        let Self { content, exchange } = self.get_mut();
        let _entered = exchange.span.enter();
        let next = match content {
            Wire::Empty => Poll::Ready(None),
            Wire::Whole(bytes) => {
                let bytes = std::mem::take(bytes);
                *content = Wire::Empty;
                exchange.complete = true;
                Poll::Ready(Some(bytes))
            }
            Wire::Events(events) => {
                exchange.running.asked();
                let next = events.poll_next(cx);
                if matches!(next, Poll::Ready(None)) {
                    exchange.complete = true;
                    *content = Wire::Empty;
                }
                next
            }
        };
        next.map(|bytes| bytes.map(|bytes| Ok(BodyFrame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.content, Wire::Empty)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Wire::Empty => SizeHint::with_exact(0),
            Wire::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Wire::Events(_) => SizeHint::default(),
        }
    }
}

/// Server-sent events as bytes, with comments where they are silent for long.
struct Events {
    frames: BoxStream<'static, Frame>,
    keep_alive: Duration,
    /// Ends when the silence has lasted long enough.
    silence: Pin<Box<Sleep>>,
}

impl Events {
    fn new(frames: BoxStream<'static, Frame>, keep_alive: Duration) -> Self {
        Self { frames, keep_alive, silence: Box::pin(tokio::time::sleep(keep_alive)) }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let bytes = match self.frames.poll_next_unpin(cx) {
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Ready(Some(frame)) => encode(&frame),
            Poll::Pending => {
                std::task::ready!(self.silence.as_mut().poll(cx));
                Bytes::from_static(b": keep-alive\n\n")
            }
        };
        self.silence.as_mut().reset(tokio::time::Instant::now() + self.keep_alive);
        Poll::Ready(Some(bytes))
    }
}

fn encode(Frame { event, data }: &Frame) -> Bytes {
    match event {
        Some(event) => format!("event: {event}\ndata: {data}\n\n").into(),
        None => format!("data: {data}\n\n").into(),
    }
}

/// A request from its first byte to the last of its response. Logged when dropped, which is when all is over.
pub(super) struct Exchange {
    pub(super) span: Span,
    pub(super) running: Running,
    /// What its body takes of the memory for bodies. What was made of the body lives as long as the request.
    pub(super) body: Held,
    /// Whether it is only worth a debug line.
    pub(super) is_probe: bool,
    started: Instant,
    /// `None` until there is a response.
    status: Option<StatusCode>,
    /// Whether the response was handed to the connection to its end.
    complete: bool,
}

impl Exchange {
    pub(super) fn new(span: Span, running: Running, body: Held) -> Self {
        Self { span, running, body, is_probe: false, started: Instant::now(), status: None, complete: false }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let _entered = self.span.enter();
        let status = self.status.map(|status| status.as_u16());
        let ms = self.started.elapsed().as_millis();
        match (self.complete, self.is_probe) {
            (true, true) => tracing::debug!(status, ms, "answered"),
            (true, false) => tracing::info!(status, ms, "answered"),
            (false, _) => tracing::info!(status, ms, "the client left before the end of the answer"),
        }
    }
}
