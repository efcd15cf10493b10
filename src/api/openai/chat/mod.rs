//! `POST /v1/chat/completions`.

mod content;
mod messages;
pub mod parameters;
mod request;
mod response;
mod stream;
mod tools;

use std::sync::Arc;

use futures_util::StreamExt as _;
use http::header::{self, HeaderName};

use super::error::Error;
use crate::api::{Caller, Reply};
use crate::gateway::{Answer, Call, Gateway, SessionHint};
use crate::runtime::clock;

use response::{Completion, Envelope};

/// Which subscription answered.
const SUBSCRIPTION: HeaderName = HeaderName::from_static("x-auth-pool-subscription");
/// Why that one.
const DECISION: HeaderName = HeaderName::from_static("x-auth-pool-decision");

/// Answers a chat request: at once as a whole, or as a stream of chunks. Dropping the future, or the reply's stream,
/// cancels the work.
pub async fn create(gateway: &dyn Gateway, caller: &Caller, body: &[u8]) -> Reply {
    match answer(gateway, caller, body).await {
        Ok(reply) => reply,
        Err(error) => error.into(),
    }
}

async fn answer(gateway: &dyn Gateway, caller: &Caller, body: &[u8]) -> Result<Reply, Error> {
    let chat = request::parse(body, &gateway.catalog(), caller)?;
    let sent_session = match &chat.session {
        SessionHint::Session(id) => Some(id.to_string()),
        SessionHint::CacheKey(_) | SessionHint::None => None,
    };
    let call = Call {
        request: chat.request,
        session: chat.session,
        client: Arc::clone(&caller.client),
        request_id: Arc::clone(&caller.request_id),
        priority: chat.priority,
    };
    let Answer { subscription, session_id, decision_reason, events } = gateway.chat(call).await?;
    tracing::Span::current().record("subscription", &*subscription);
    let envelope = Envelope {
        id: format!("chatcmpl-{}", uuid::Uuid::new_v4().simple()),
        created: clock::now().as_secs(),
        model: chat.model,
        session_id: session_id.or(sent_session),
        show_thinking: chat.show_thinking,
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
    Ok(reply.with_header(SUBSCRIPTION, &subscription).with_header(DECISION, &decision_reason))
}

#[cfg(test)]
mod tests;
