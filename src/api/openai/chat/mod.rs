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
use crate::api::field::excerpt;
use crate::api::{Caller, Denial, Reply};
use crate::conversation::Catalog;
use crate::gateway::{Answer, Call, Gateway, ModelNames, Served, SessionHint};
use crate::runtime::clock;

use request::ChatRequest;
use response::{Completion, Envelope};

/// From this size on, reading a request takes milliseconds.
const LARGE: usize = 512 << 10;

/// Which subscription answered.
const SUBSCRIPTION: HeaderName = HeaderName::from_static("x-auth-pool-subscription");
/// Which backend answered instead of a subscription.
const BACKEND: HeaderName = HeaderName::from_static("x-auth-pool-backend");
/// Why it steps in for the pool.
const FALLBACK: HeaderName = HeaderName::from_static("x-auth-pool-fallback");
/// Whether the provider had the larger part of the prompt in its cache: `warm` or `cold`.
const CACHE: HeaderName = HeaderName::from_static("x-auth-pool-cache");
/// Why that one.
const DECISION: HeaderName = HeaderName::from_static("x-auth-pool-decision");

/// Answers a chat request: at once as a whole, or as a stream of chunks. Dropping the future, or the reply's stream,
/// cancels the work. `backend`: who alone may answer, where the path names somebody.
pub async fn create(gateway: &dyn Gateway, caller: &Caller, backend: Option<&str>, body: Bytes) -> Reply {
    match answer(gateway, caller, backend, body).await {
        Ok(reply) => reply,
        Err(error) => error.into(),
    }
}

async fn answer(gateway: &dyn Gateway, caller: &Caller, backend: Option<&str>, body: Bytes) -> Result<Reply, Error> {
    let names = match backend {
        None => ModelNames::Known,
        Some(name) => gateway.names(name).ok_or_else(|| unknown_backend(name))?,
    };
    let (chat, backend) = match parse(gateway.catalog(), caller.clone(), (names, None), body.clone()).await {
        Err(error) if backend.is_none() && error.cause == Cause::UnknownModel => {
            parse_for_backend(gateway, caller, body, error).await?
        }
        parsed => (parsed?, backend.map(Arc::from)),
    };
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
        backend,
    };
    let Answer { subscription, backend, session_id, decision_reason, cache_is_warm, events } =
        gateway.chat(call).await?;
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
    let reply = match backend {
        None => reply.with_header(SUBSCRIPTION, &subscription),
        Some(Served { backend, instead: None }) => reply.with_header(BACKEND, &backend),
        Some(Served { backend, instead: Some(why) }) => {
            reply.with_header(BACKEND, &backend).with_header(FALLBACK, &why)
        }
    };
    Ok(reply.with_header(DECISION, &decision_reason))
}

fn unknown_backend(name: &str) -> Error {
    let path = format!("/v1/{}/chat/completions", excerpt(name));
    Denial::UnknownRoute { method: "POST".to_owned(), path }.into()
}

/// A request whose model is `BACKEND/MODEL` is for that backend; any other is refused as it was.
async fn parse_for_backend(
    gateway: &dyn Gateway,
    caller: &Caller,
    body: Bytes,
    unknown: Error,
) -> Result<(ChatRequest, Option<Arc<str>>), Error> {
    let model = request::model_of(&body).unwrap_or_default();
    let Some((backend, _)) = model.split_once('/') else { return Err(unknown) };
    let Some(names) = gateway.names(backend) else { return Err(unknown) };
    let backend: Arc<str> = backend.into();
    let chat = parse(gateway.catalog(), caller.clone(), (names, Some(Arc::clone(&backend))), body).await?;
    Ok((chat, Some(backend)))
}

/// Reads a request; a large one aside from the threads that carry everybody's streams.
async fn parse(
    catalog: Arc<Catalog>,
    caller: Caller,
    (names, backend): (ModelNames, Option<Arc<str>>),
    body: Bytes,
) -> Result<ChatRequest, Error> {
    let is_small = body.len() < LARGE;
    let parse = move || request::parse(&body, &catalog, &caller, names, backend.as_deref());
    if is_small {
        return parse();
    }
    let parsed = tokio::task::spawn_blocking(parse);
    parsed.await.unwrap_or_else(|_| Err(Error::new(Cause::Internal, "The request could not be read.")))
}

#[cfg(test)]
mod tests;
