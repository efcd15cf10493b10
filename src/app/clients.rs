//! From a client key's words to what the front door and the gateway make of them.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;

use crate::config::{self, ClientKey, Config, Scope};
use crate::gateway::ClientRules;
use crate::pool::{Only, Priority, Realm};
use crate::server;

/// What the front door knows of a key.
pub(super) fn server_key(key: &ClientKey) -> server::ClientKey {
    server::ClientKey {
        name: key.full_name().into(),
        digest: key.digest,
        models: key.models.clone().map(Into::into),
        chat: key.scopes.contains(&Scope::Chat),
        admin: key.scopes.contains(&Scope::Admin),
        organization: key.organization.as_deref().map(Into::into),
        requests_per_minute: key.requests_per_minute.and_then(NonZeroU32::new),
        expires_at: key.expires_at,
    }
}

/// What the gateway knows of the clients.
pub(super) fn rules(config: &Config) -> HashMap<Arc<str>, ClientRules> {
    config.client_keys.iter().map(|key| (key.full_name().into(), rules_of(key))).collect()
}

fn rules_of(key: &ClientKey) -> ClientRules {
    let realm = key.organization.as_deref().map_or(Realm::House, |own| Realm::Organization(own.into()));
    let subscriptions = key.subscriptions.as_ref().map(|listed| listed.iter().map(|id| id.as_str().into()).collect());
    ClientRules {
        only: Some(Arc::new(Only { subscriptions, realm })),
        weekly_budget: key.weekly_budget,
        max_priority: match key.max_priority {
            config::Priority::Low => Priority::Low,
            config::Priority::Normal => Priority::Normal,
            config::Priority::High => Priority::High,
        },
    }
}
