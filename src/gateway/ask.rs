//! From a request to what the pool is asked: whose session it is, and what it will take.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use super::{Call, SessionHint};
use crate::conversation::{Block, Usage};
use crate::pool::{Ask, Only, SessionKey};
use crate::units::MicroUsd;

/// Output tokens that a request is assumed to produce when it names no limit, for the reservation.
const ASSUMED_OUTPUT_TOKENS: u64 = 500;

/// What the pool is asked for `call`: of the subscriptions that its client may use (`None` is all), those in `exclude`
/// left out. Whoever asks has to say which those are, so that nobody forgets it.
pub(super) fn ask<'a>(call: &Call, only: Option<Arc<Only>>, exclude: &'a [Arc<str>]) -> Ask<'a> {
    let request = &call.request;
    Ask {
        session: session_key(call),
        family: request.model.family,
        estimated_cost: estimated_cost(call),
        estimated_tokens: request.estimated_tokens(),
        priority: call.priority,
        exclude,
        request: Some(Arc::clone(&call.id)),
        only,
    }
}

/// What a request will cost, as far as can be told beforehand.
pub(super) fn estimated_cost(call: &Call) -> MicroUsd {
    let request = &call.request;
    let output = request.options.max_tokens.map_or(ASSUMED_OUTPUT_TOKENS, u64::from).min(ASSUMED_OUTPUT_TOKENS);
    request.model.price.cost(&Usage { input: request.estimated_tokens(), output, ..Usage::default() })
}

/// The client's own session id under its own key, so that two clients cannot share a session by accident; else a
/// fingerprint of what stays the same over a conversation.
pub(super) fn session_key(call: &Call) -> SessionKey {
    if let SessionHint::Session(id) | SessionHint::Header(id) | SessionHint::CacheKey(id) = &call.session {
        return explicit_session(&call.client, id);
    }
    let mut hasher = DefaultHasher::new();
    call.client.hash(&mut hasher);
    call.request.system.hash(&mut hasher);
    for block in call.request.turns.first().into_iter().flat_map(|turn| &turn.blocks) {
        if let Block::Text(text) = block {
            text.hash(&mut hasher);
        }
    }
    SessionKey::Fingerprint(hasher.finish())
}

/// The session that `client` calls `id`.
pub(super) fn explicit_session(client: &str, id: &str) -> SessionKey {
    // No client's name holds this character, so no two clients share a key, whatever ids they choose.
    SessionKey::Explicit(format!("{client}\0{id}").into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::SessionLabel;

    #[test]
    fn a_client_cannot_name_the_session_of_another_one() {
        let label = |client: &str, id: &str| SessionLabel::from(&explicit_session(client, id)).to_string();
        assert_eq!(label("acme/ci", "x"), label("acme/ci", "x"));
        assert_ne!(label("acme/ci", "x"), label("acme", "ci/x"));
        assert_ne!(label("acme", "x"), label("acme", "y"));
    }
}
