//! `POST /v1/chat/completions`.

mod content;
mod messages;
pub mod parameters;
mod request;
mod response;
mod response_format;
mod stream;
mod tools;

use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::header::{self, HeaderName};

use super::error::{Cause, Error};
use crate::api::{Caller, Reply};
use crate::conversation::Catalog;
use crate::gateway::{Answer, Call, Gateway, SessionHint};
use crate::runtime::clock;

use request::ChatRequest;
use response::{Completion, Envelope};

/// From this size on, reading a request takes milliseconds.
const LARGE: usize = 512 << 10;

/// Which subscription answered.
const SUBSCRIPTION: HeaderName = HeaderName::from_static("x-auth-pool-subscription");
/// Whether the provider had the larger part of the prompt in its cache: `warm` or `cold`.
const CACHE: HeaderName = HeaderName::from_static("x-auth-pool-cache");
/// Why that one.
const DECISION: HeaderName = HeaderName::from_static("x-auth-pool-decision");

/// Answers a chat request: at once as a whole, or as a stream of chunks. Dropping the future, or the reply's stream,
/// cancels the work.
pub async fn create(gateway: &dyn Gateway, caller: &Caller, body: Bytes) -> Reply {
    match answer(gateway, caller, body).await {
        Ok(reply) => reply,
        Err(error) => error.into(),
    }
}

async fn answer(gateway: &dyn Gateway, caller: &Caller, body: Bytes) -> Result<Reply, Error> {
    let chat = parse(gateway.catalog(), caller.clone(), body).await?;
    let sent_session = match &chat.session {
        SessionHint::Session(id) | SessionHint::Header(id) => Some(id.to_string()),
        SessionHint::CacheKey(_) | SessionHint::None => None,
    };
    let is_structured = chat.request.options.output_check.is_some();
    let call = Call {
        id: Arc::clone(&caller.request_id),
        request: chat.request,
        session: chat.session,
        client: Arc::clone(&caller.client),
        stream: chat.stream,
        priority: chat.priority,
    };
    let Answer { subscription, session_id, decision_reason, cache_is_warm, events } = gateway.chat(call).await?;
    tracing::Span::current().record("subscription", &*subscription);
    let envelope = Envelope {
        id: format!("chatcmpl-{}", uuid::Uuid::new_v4().simple()),
        created: clock::now().as_secs(),
        model: chat.model,
        session_id: session_id.or(sent_session),
        show_thinking: chat.show_thinking,
        is_structured,
    };
    let reply = if chat.stream {
        Reply::events(stream::Chunks::new(envelope, events, chat.include_usage).boxed())
            .with_header(header::CACHE_CONTROL, "no-cache")
            // Asks nginx in front of us not to collect the stream.
            .with_header(HeaderName::from_static("x-accel-buffering"), "no")
    } else {
        let completion = Completion::collect(events, envelope.show_thinking).await?;
        Reply::json(http::StatusCode::OK, &completion.document(&envelope))
    };
    let reply = reply.with_header(CACHE, if cache_is_warm { "warm" } else { "cold" });
    if !caller.is_operator {
        return Ok(reply);
    }
    Ok(reply.with_header(SUBSCRIPTION, &subscription).with_header(DECISION, &decision_reason))
}

/// Reads a request; a large one aside from the threads that carry everybody's streams.
async fn parse(catalog: Arc<Catalog>, caller: Caller, body: Bytes) -> Result<ChatRequest, Error> {
    if body.len() < LARGE {
        return request::parse(&body, &catalog, &caller);
    }
    let parsed = tokio::task::spawn_blocking(move || request::parse(&body, &catalog, &caller));
    parsed.await.unwrap_or_else(|_| Err(Error::new(Cause::Internal, "The request could not be read.")))
}

#[cfg(test)]
mod tests;
