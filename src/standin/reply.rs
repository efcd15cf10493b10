//! A reply as a list of steps, played to the client one after the other.

use std::collections::VecDeque;
use std::future;
use std::io;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::StreamBody;
use hyper::body::Frame;
use hyper::{Response, StatusCode};
use serde_json::{Value, json};

use super::connection::ResetSwitch;
use super::record::{Outcome, Ticket};

/// Before a connection is broken, the client gets this long to read what was sent.
const READ: Duration = Duration::from_millis(20);

/// 529, which is Anthropic's own.
pub(super) const OVERLOADED: StatusCode = match StatusCode::from_u16(529) {
    Ok(status) => status,
    Err(_) => StatusCode::SERVICE_UNAVAILABLE,
};

/// One step of a reply.
#[derive(Debug)]
pub(super) enum Step {
    /// Let time pass.
    Wait(Duration),
    /// Send these bytes of the body.
    Send(Bytes),
    /// Fall silent until the client goes away.
    Hang,
    /// Reset the connection.
    Reset,
    /// Close the connection in the middle of the body.
    Eof,
}

/// A whole reply.
#[derive(Debug)]
pub(super) struct Reply {
    /// What happens before the status line; only waiting, hanging and resetting make sense here.
    pub(super) before: Vec<Step>,
    pub(super) status: StatusCode,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<Step>,
}

pub(super) type Body = StreamBody<Pin<Box<dyn stream::Stream<Item = io::Result<Frame<Bytes>>> + Send>>>;

impl Reply {
    pub(super) fn json(status: StatusCode, body: &Value) -> Self {
        let headers = vec![("content-type".to_owned(), "application/json".to_owned())];
        Self { before: Vec::new(), status, headers, body: vec![Step::Send(body.to_string().into())] }
    }

    pub(super) fn empty(status: StatusCode) -> Self {
        Self { before: Vec::new(), status, headers: Vec::new(), body: Vec::new() }
    }

    pub(super) fn stream(steps: Vec<Step>) -> Self {
        let headers = [("content-type", "text/event-stream; charset=utf-8"), ("cache-control", "no-cache")];
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        Self { before: Vec::new(), status: StatusCode::OK, headers, body: steps }
    }

    /// A refusal in the API's words for `status`.
    pub(super) fn error(status: StatusCode, message: &str) -> Self {
        Self::json(status, &error_body(status, message))
    }

    pub(super) fn with_headers(mut self, headers: impl IntoIterator<Item = (String, String)>) -> Self {
        self.headers.extend(headers);
        self
    }

    /// Plays the reply; the response's body plays the rest. `Err` breaks the connection.
    pub(super) async fn play(self, ticket: Option<Ticket>, switch: ResetSwitch) -> io::Result<Response<Body>> {
        for step in self.before {
            pause(step, &switch).await.inspect_err(|_| cut(ticket.as_ref()))?;
        }
        let mut response = Response::builder().status(self.status);
        for (name, value) in self.headers {
            response = response.header(name, value);
        }
        if let Some(ticket) = &ticket {
            ticket.answered(self.status.as_u16());
            if self.body.is_empty() {
                // Nobody asks for the next piece of nothing.
                ticket.finish(Outcome::Completed);
            }
            response = response.header("request-id", format!("req_standin_{:06}", ticket.number));
        }
        let playing = Playing { steps: self.body.into(), ticket, switch };
        let body: Pin<Box<dyn stream::Stream<Item = _> + Send>> = Box::pin(stream::unfold(Some(playing), next));
        response.body(StreamBody::new(body)).map_err(io::Error::other)
    }
}

struct Playing {
    steps: VecDeque<Step>,
    ticket: Option<Ticket>,
    switch: ResetSwitch,
}

async fn next(playing: Option<Playing>) -> Option<(io::Result<Frame<Bytes>>, Option<Playing>)> {
    let mut playing = playing?;
    loop {
        match playing.steps.pop_front() {
            None => {
                if let Some(ticket) = &playing.ticket {
                    ticket.finish(Outcome::Completed);
                }
                return None;
            }
            Some(Step::Send(bytes)) => return Some((Ok(Frame::data(bytes)), Some(playing))),
            Some(step) => {
                if let Err(broken) = pause(step, &playing.switch).await {
                    cut(playing.ticket.as_ref());
                    return Some((Err(broken), None));
                }
            }
        }
    }
}

/// Carries out a step that sends nothing; `Err` is a connection that shall break.
async fn pause(step: Step, switch: &ResetSwitch) -> io::Result<()> {
    match step {
        Step::Wait(Duration::ZERO) | Step::Send(_) => {}
        Step::Wait(time) => tokio::time::sleep(time).await,
        Step::Hang => future::pending().await,
        Step::Reset => {
            tokio::time::sleep(READ).await;
            switch.arm();
            return Err(io::Error::other("reset, as the script says"));
        }
        Step::Eof => {
            tokio::time::sleep(READ).await;
            return Err(io::Error::other("closed, as the script says"));
        }
    }
    Ok(())
}

fn cut(ticket: Option<&Ticket>) {
    if let Some(ticket) = ticket {
        ticket.finish(Outcome::Cut);
    }
}

/// Anthropic's error object.
pub(super) fn error_body(status: StatusCode, message: &str) -> Value {
    let kind = match status.as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        529 => "overloaded_error",
        500.. => "api_error",
        _ => "invalid_request_error",
    };
    json!({"type": "error", "error": {"type": kind, "message": message}})
}
