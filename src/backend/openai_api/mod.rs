//! Runs requests at anything that speaks OpenAI's chat completions: other providers, local servers, another proxy.
//!
//! A request is turned from the inner model into that dialect and the answer back again. What the dialect cannot say is
//! said as well as it can be: see [`body`].

mod body;
mod chunk;
mod classify;
mod turn;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures_util::stream::{self, StreamExt as _};

use super::anthropic_api::mapped;
use super::http::{Dialect as _, Endpoint, HttpClient, Key, Timers};
use super::{Backend, Caller, EventStream, Failure, FailureKind};
use crate::conversation::{Family, Model, Request};

/// OpenAI's own address.
pub const BASE_URL: &str = "https://api.openai.com/v1";

/// One endpoint.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its address, up to `/chat/completions`.
    pub base_url: String,
    /// Its key; a server of one's own may need none.
    pub key: Option<Key>,
    /// What it calls models, by exact id, family or `*`.
    pub models: BTreeMap<String, String>,
    /// How long a request may take.
    pub timers: Timers,
}

/// The backend of one endpoint.
#[derive(Clone, Debug)]
pub struct OpenAiApi {
    endpoint: Endpoint,
    models: Arc<BTreeMap<String, String>>,
    limit_field: &'static str,
}

impl OpenAiApi {
    /// The endpoint that `settings` describe, reached through `client`.
    pub fn new(client: HttpClient, settings: Settings) -> Self {
        let Settings { base_url, key, models, timers } = settings;
        Self {
            limit_field: limit_field(&base_url),
            endpoint: Endpoint::new(client, &base_url, key, timers),
            models: Arc::new(models),
        }
    }

    /// What the endpoint calls `model`; `None` where nobody has said. A name that is none of Claude's is passed on as
    /// it is.
    fn name<'a>(&'a self, model: &'a Model) -> Option<&'a str> {
        mapped(&self.models, model).or_else(|| (model.family == Family::Other).then_some(model.id.as_str()))
    }
}

/// What `max_tokens` is called. OpenAI's own newer models, there and at Azure, know only the new name; other servers often
/// only the old one.
fn limit_field(base_url: &str) -> &'static str {
    let url = reqwest::Url::parse(base_url).ok();
    let is_at = |domain: &str| {
        let host = url.as_ref().and_then(|url| url.host_str()).and_then(|host| host.strip_suffix(domain));
        host.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    if is_at("openai.com") || is_at("openai.azure.com") { "max_completion_tokens" } else { "max_tokens" }
}

impl OpenAiApi {
    /// Whether a model that is asked for by the endpoint's own name for it is that model there.
    fn takes_its_own(&self, name: &str) -> bool {
        self.name(&Model::named(name)) == Some(name)
    }
}

impl Backend for OpenAiApi {
    /// What its operator has a name for, by that name and by the endpoint's own. Nobody asks the endpoint for others.
    fn models(&self) -> Vec<String> {
        let named = self.models.keys().filter(|name| *name != "*");
        let own = self.models.values().filter(|name| self.takes_its_own(name));
        named.chain(own).cloned().collect::<BTreeSet<_>>().into_iter().collect()
    }

    fn run(&self, request: &Request, _caller: &Caller) -> EventStream {
        let Some(model) = self.name(&request.model) else {
            let detail = format!("the backend has no name for the model '{}'", request.model.id);
            return stream::iter([Err(Failure::new(FailureKind::ModelNotFound, detail))]).boxed();
        };
        turn::Turn::default().run(self.endpoint.clone(), body::body(request, model, self.limit_field))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_has_the_name_that_the_host_knows() {
        for (url, new) in [
            (BASE_URL, true),
            ("https://eu.api.openai.com/v1", true),
            ("https://mine.openai.azure.com/openai/v1", true),
            ("https://openai.example.com/v1", false),
            ("https://notopenai.com/v1", false),
            ("http://127.0.0.1:8080/api.openai.com/v1", false),
            ("https://openrouter.ai/api/v1", false),
        ] {
            assert_eq!(limit_field(url) == "max_completion_tokens", new, "{url}");
        }
    }
}
