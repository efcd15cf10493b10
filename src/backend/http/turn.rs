//! One request whose answer comes as server-sent events: what is the same whatever is said in them.

use std::collections::VecDeque;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderMap};
use reqwest::RequestBuilder;

use super::{Deadlines, Endpoint, Events, SseEvent, read_error, unreachable};
use crate::backend::{EventStream, Failure, FailureKind};
use crate::conversation::Event;

/// What is particular to one API, for one request.
pub(in crate::backend) trait Dialect: Send + Sized + 'static {
    /// Who answers, in the operator's words.
    const PEER: &'static str;

    /// The beginning of the request: where it goes, and the headers that this API wants.
    fn request(&self, endpoint: &Endpoint) -> Result<RequestBuilder, Failure>;

    /// What an answer with another status than 200 means.
    fn refused(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Failure;

    /// A good answer begins with these headers.
    fn accepted(&mut self, _headers: &HeaderMap, _answer: &mut Answer) {}

    /// An event has come.
    fn event(&mut self, event: &SseEvent, answer: &mut Answer) -> Result<(), Failure>;

    /// No more events will come; `cause` is why, unless the response just ended.
    fn end(&mut self, cause: Option<Failure>, answer: &mut Answer) -> Result<(), Failure>;

    /// Sends `body` and reads the answer. Nothing happens before the stream is polled; dropping it ends the request.
    fn run(self, endpoint: Endpoint, body: Vec<u8>) -> EventStream {
        let deadlines = Deadlines::start(endpoint.timers);
        let answer = Answer { deadlines, queue: VecDeque::new(), is_complete: false };
        let turn = Turn { endpoint, dialect: self, answer, phase: Phase::Start(body.into()) };
        stream::unfold(turn, |mut turn| async { turn.next().await.map(|item| (item, turn)) }).boxed()
    }
}

/// An answer as far as it has come.
pub(in crate::backend) struct Answer {
    deadlines: Deadlines,
    queue: VecDeque<Event>,
    is_complete: bool,
}

impl Answer {
    /// Passes something on.
    pub(in crate::backend) fn push(&mut self, event: Event) {
        self.queue.push_back(event);
    }

    /// The provider has begun to answer: from now on the idle limit holds. Tells whether that is news.
    pub(in crate::backend) fn begins(&mut self) -> bool {
        self.deadlines.answer_begins()
    }

    /// All is said: what may still come is not waited for.
    pub(in crate::backend) fn complete(&mut self) {
        self.is_complete = true;
    }
}

enum Phase {
    Start(Bytes),
    Answering(Box<Events>),
    Done,
}

struct Turn<D> {
    endpoint: Endpoint,
    dialect: D,
    answer: Answer,
    phase: Phase,
}

impl<D: Dialect> Turn<D> {
    async fn next(&mut self) -> Option<Result<Event, Failure>> {
        loop {
            if let Some(event) = self.answer.queue.pop_front() {
                return Some(Ok(event));
            }
            let step = match &mut self.phase {
                Phase::Start(body) => {
                    let body = std::mem::take(body);
                    self.send(body).await
                }
                Phase::Answering(events) => match events.next(&self.answer.deadlines).await {
                    Ok(Some(event)) => self.dialect.event(&event, &mut self.answer),
                    last => {
                        self.answer.complete();
                        self.dialect.end(last.err(), &mut self.answer)
                    }
                },
                Phase::Done => return None,
            };
            if step.is_err() || self.answer.is_complete {
                self.phase = Phase::Done;
            }
            if let Err(failure) = step {
                return Some(Err(failure));
            }
        }
    }

    async fn send(&mut self, body: Bytes) -> Result<(), Failure> {
        let request = self.dialect.request(&self.endpoint)?.header(CONTENT_TYPE, "application/json").body(body);
        let deadlines = &self.answer.deadlines;
        let response = deadlines.wait(request.send()).await?.map_err(unreachable)?;
        let (status, headers) = (response.status(), response.headers().clone());
        if status != StatusCode::OK {
            let body = read_error(response, deadlines).await;
            return Err(D::refused(status, &headers, &body));
        }
        let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        if !kind.is_some_and(|kind| kind.starts_with("text/event-stream")) {
            return Err(Failure::new(FailureKind::Protocol, format!("{} answered without a stream", D::PEER)));
        }
        self.dialect.accepted(&headers, &mut self.answer);
        self.phase = Phase::Answering(Box::new(Events::of(response)));
        Ok(())
    }
}

/// An event that cannot be read.
pub(in crate::backend) fn not_its_protocol<D: Dialect>(error: &serde_json::Error) -> Failure {
    let detail = format!("{} sent something that is not its protocol: {error}", D::PEER);
    Failure::new(FailureKind::Protocol, detail)
}

/// A response that ended before the answer did.
pub(in crate::backend) fn cut_short<D: Dialect>() -> Failure {
    let detail = format!("{} ended its answer before it was complete", D::PEER);
    Failure::new(FailureKind::Unavailable { status: None }, detail)
}
