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
    SessionKey::Explicit(format!("{client}/{id}").into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conversation::{Model, Options, Request, Role, Turn};
    use crate::gateway::Priority;

    fn call(system: &str, texts: &[&str]) -> Call {
        let turn = |(number, text): (usize, &&str)| Turn {
            role: if number % 2 == 0 { Role::User } else { Role::Assistant },
            blocks: vec![Block::Text((*text).to_owned())],
        };
        Call {
            id: "r".into(),
            request: Request {
                model: Arc::new(Model::named("claude-sonnet-4-5")),
                system: vec![system.to_owned()],
                turns: texts.iter().enumerate().map(turn).collect(),
                tools: Vec::new(),
                tool_choice: None,
                options: Options::default(),
            },
            session: SessionHint::None,
            client: "ann".into(),
            stream: false,
            priority: Priority::Normal,
            backend: None,
        }
    }

    #[test]
    fn a_token_is_estimated_for_every_four_characters_and_one_for_the_rest() {
        for (length, tokens) in [(0, 0), (1, 1), (4, 1), (5, 2), (400, 100), (401, 101)] {
            // Characters, not bytes.
            let call = call(&"é".repeat(length / 2), &[&"x".repeat(length - length / 2)]);
            assert_eq!(ask(&call, None, &[]).estimated_tokens, tokens, "{length} characters");
        }
    }

    #[test]
    fn what_is_reserved_is_the_estimate_at_the_models_price() {
        // 1,000 tokens of input at $3, and 500 of output at $15 a million; or fewer, if the request says so.
        let mut call = call("", &[&"x".repeat(4_000)]);
        assert_eq!(ask(&call, None, &[]).estimated_cost, MicroUsd::from_usd(0.003 + 0.007_5));
        call.request.options.max_tokens = Some(100);
        assert_eq!(ask(&call, None, &[]).estimated_cost, MicroUsd::from_usd(0.003 + 0.001_5));
        call.request.options.max_tokens = Some(8_000);
        assert_eq!(ask(&call, None, &[]).estimated_cost, MicroUsd::from_usd(0.003 + 0.007_5));
    }

    #[test]
    fn a_conversation_without_a_name_is_known_by_how_it_begins() {
        let key = |call: &Call| session_key(call);
        let first = call("be brief", &["hello"]);
        assert!(matches!(key(&first), SessionKey::Fingerprint(_)));
        assert_eq!(key(&first), key(&call("be brief", &["hello", "hi", "and then?"])));
        assert_ne!(key(&first), key(&call("be brief", &["hello!"])));
        assert_ne!(key(&first), key(&call("be long", &["hello"])));
        assert_ne!(key(&first), key(&Call { client: "bob".into(), ..first.clone() }));
        let named = Call { session: SessionHint::CacheKey("k".into()), ..first };
        assert_eq!(key(&named), SessionKey::Explicit("ann/k".into()));
        assert_eq!(key(&named), key(&Call { session: SessionHint::Session("k".into()), ..call("", &["other"]) }));
    }
}
