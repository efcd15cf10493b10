//! The backends over HTTP, from the configuration's words.

use std::sync::Arc;

use anyhow::Context as _;
use secrecy::SecretString;
use tracing::warn;

use crate::backend::Backend;
use crate::backend::anthropic_api::{AnthropicApi, Settings};
use crate::backend::http::{HttpClient, Key, Proxy, Timers};
use crate::config::{self, Config, Env};
use crate::gateway::Backends;

/// Makes them; all share their connections.
#[derive(Clone)]
pub(super) struct HttpBackends {
    env: Env,
    client: Option<HttpClient>,
}

impl HttpBackends {
    /// Fails when the configuration needs them and this machine cannot reach anybody securely.
    pub(super) fn new(config: &Config, env: &Env) -> anyhow::Result<Self> {
        let any = |names: [&str; 2]| names.into_iter().find_map(|name| env.var(name)).map(str::to_owned);
        let proxy = Proxy { https: any(["HTTPS_PROXY", "https_proxy"]), exceptions: any(["NO_PROXY", "no_proxy"]) };
        let client = match HttpClient::new(&proxy) {
            Ok(client) => Some(client),
            Err(error) if is_needed(config) => return Err(error).context("no connections to an API can be made"),
            Err(error) => {
                warn!(%error, "no connections to an API could be made; none is needed so far");
                None
            }
        };
        Ok(Self { env: env.clone(), client })
    }

    /// Keys are found in `env` from now on.
    pub(super) fn follow(&mut self, env: Env) {
        self.env = env;
    }

    /// The backends of subscriptions that are API keys.
    pub(super) fn subscriptions(&self, config: &Config) -> Backends {
        let backend = |subscription: &config::Subscription| {
            let (client, api) = (self.client.clone()?, subscription.api.as_ref()?);
            let settings = Settings {
                base_url: api.base_url.clone(),
                // Where it is not set, the subscription is switched off.
                key: Key::new(SecretString::from(self.env.var(&api.key_env).unwrap_or_default())),
                models: api.models.clone(),
                timers: timers(config),
            };
            let backend: Arc<dyn Backend> = Arc::new(AnthropicApi::new(client, settings));
            Some((Arc::from(subscription.id.as_str()), backend))
        };
        config.subscriptions.iter().filter_map(backend).collect()
    }
}

fn is_needed(config: &Config) -> bool {
    config.subscriptions.iter().any(|subscription| subscription.api.is_some())
}

/// The limits on answers are the same, whoever gives them.
fn timers(config: &Config) -> Timers {
    let claude = &config.claude;
    Timers { first_event: claude.first_event_timeout, idle: claude.idle_timeout, total: claude.total_timeout }
}
