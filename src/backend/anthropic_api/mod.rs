//! Runs requests through the Messages API with an account's own key.
//!
//! Nothing is asked of the API but what clients ask: an account's state is learned from its answers.

mod body;
mod check;
mod classify;
mod limits;
pub mod organization;
mod turn;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures_util::future::{BoxFuture, FutureExt as _};

use super::http::{Dialect as _, Endpoint, HttpClient, Key, Timers};
use super::{Backend, Caller, EventStream, Failure};
use crate::conversation::{Model, Request};

/// Anthropic's own address.
pub const BASE_URL: &str = "https://api.anthropic.com";

/// One account, or something that speaks like it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where it is; `/v1` may stand at its end.
    pub base_url: String,
    /// Its key.
    pub key: Key,
    /// What it calls models, by exact id, family or `*`; the exact ids themselves where nothing is named.
    pub models: BTreeMap<String, String>,
    /// How long a request may take.
    pub timers: Timers,
}

/// The backend of one account.
#[derive(Clone, Debug)]
pub struct AnthropicApi {
    endpoint: Endpoint,
    models: Arc<BTreeMap<String, String>>,
}

impl AnthropicApi {
    /// The account that `settings` describe, reached through `client`.
    pub fn new(client: HttpClient, settings: Settings) -> Self {
        let Settings { base_url, key, models, timers } = settings;
        let base = base_url.trim_end_matches('/');
        let base = base.strip_suffix("/v1").unwrap_or(base);
        Self { endpoint: Endpoint::new(client, base, Some(key), timers), models: Arc::new(models) }
    }
}

impl Backend for AnthropicApi {
    fn run(&self, request: &Request, _caller: &Caller) -> EventStream {
        let model = mapped(&self.models, &request.model).unwrap_or(&request.model.id);
        turn::Turn::new(Arc::clone(&request.model)).run(self.endpoint.clone(), body::body(request, model))
    }

    /// Claude's families, and whatever else its operator has a name for.
    fn models(&self) -> Vec<String> {
        let families = ["haiku", "opus", "sonnet"].map(str::to_owned);
        let named = self.models.keys().filter(|name| *name != "*").cloned();
        named.chain(families).collect::<BTreeSet<_>>().into_iter().collect()
    }

    fn check(&self) -> BoxFuture<'static, Result<String, Failure>> {
        check::key(self.endpoint.clone()).boxed()
    }
}

/// What an operator's list calls a model: by its exact id, else by its family, else by `*`.
pub(super) fn mapped<'a>(models: &'a BTreeMap<String, String>, model: &Model) -> Option<&'a str> {
    let by_family = || models.get(&model.family.to_string());
    models.get(&model.id).or_else(by_family).or_else(|| models.get("*")).map(String::as_str)
}
