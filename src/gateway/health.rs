//! The services that the program stands on, as monitors see them.

use std::sync::Arc;

use arc_swap::ArcSwap;
use serde::Serialize;
use serde_json::{Map, Value};

/// How one service is doing. Holds no secret and no address: everybody may ask.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PartHealth {
    /// `ok`, `down` or `not_configured`.
    pub status: &'static str,
    /// What else there is to tell.
    #[serde(flatten)]
    pub details: Map<String, Value>,
}

impl PartHealth {
    /// A service that does or does not answer.
    pub fn new(answers: bool, details: &impl Serialize) -> Self {
        let details = match serde_json::to_value(details) {
            Ok(Value::Object(details)) => details,
            _ => Map::new(),
        };
        Self { status: if answers { "ok" } else { "down" }, details }
    }

    /// A service that nobody asked for, and what that means.
    pub fn absent(meaning: &str) -> Self {
        Self { status: "not_configured", details: Map::from_iter([("detail".to_owned(), meaning.into())]) }
    }

    /// Whether it is as it should be.
    pub fn is_well(&self) -> bool {
        self.status != "down"
    }
}

type Look = Arc<dyn Fn() -> PartHealth + Send + Sync>;

/// All of them, by name.
#[derive(Default)]
pub(super) struct Services(ArcSwap<Vec<(&'static str, Look)>>);

impl Services {
    pub(super) fn add(&self, name: &'static str, look: impl Fn() -> PartHealth + Send + Sync + 'static) {
        let look: Look = Arc::new(look);
        self.0.rcu(|services| {
            let others = services.iter().filter(|(known, _)| *known != name).cloned();
            others.chain([(name, Arc::clone(&look))]).collect::<Vec<_>>()
        });
    }

    pub(super) fn all(&self) -> Vec<(&'static str, PartHealth)> {
        self.0.load().iter().map(|(name, look)| (*name, look())).collect()
    }
}
