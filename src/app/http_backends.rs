//! The backends over HTTP, from the configuration's words.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use anyhow::Context as _;
use secrecy::SecretString;
use tracing::warn;

use crate::backend::Backend;
use crate::backend::anthropic_api::{AnthropicApi, Settings};
use crate::backend::http::{HttpClient, Key, Proxy, Timers};
use crate::backend::openai_api::{self, OpenAiApi};
use crate::config::{self, BackendKind, Config, Env};
use crate::gateway::{Backends, NamedBackend, Routing, Target};

/// Makes them; all share their connections.
#[derive(Clone)]
pub(super) struct HttpBackends {
    env: Env,
    client: Option<HttpClient>,
}

impl HttpBackends {
    /// Fails when the configuration needs them and this machine cannot reach anybody securely.
    pub(super) fn new(config: &Config, env: &Env) -> anyhow::Result<Self> {
        let client = match HttpClient::new(&proxy(env)) {
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

    /// Who serves beside the pool, and who steps in.
    pub(super) fn routing(&self, config: &Config) -> Routing {
        let named: HashMap<Arc<str>, Target> = config
            .backends
            .iter()
            .filter_map(|backend| Some((Arc::from(backend.name.as_str()), self.target(config, backend)?)))
            .collect();
        let find = |name: &str| match named.get(name) {
            Some(Target::Backend(backend)) => Some(backend.clone()),
            Some(Target::Pool | Target::Subscription(_)) | None => None,
        };
        let first = config.routing.default_backend.as_deref().and_then(find);
        let mut seen: HashSet<Option<&str>> = HashSet::from([first.as_ref().map(NamedBackend::name)]);
        let chain = config.routing.fallback_chain.iter().filter(|_| config.fallback_when_exhausted);
        // Each once: who could not serve a moment ago is not asked again.
        let chain: Vec<Option<NamedBackend>> = chain.map(|name| find(name)).collect();
        let chain = chain.iter().filter(|one| seen.insert(one.as_ref().map(NamedBackend::name))).cloned().collect();
        drop(seen);
        Routing { first, chain, patience: config.routing.fallback_after, named }
    }

    fn target(&self, config: &Config, backend: &config::Backend) -> Option<Target> {
        let key = |name: &String| Key::new(SecretString::from(self.env.var(name).unwrap_or_default()));
        let timers = timers(config);
        let (kind, runs, any_model): (_, Arc<dyn Backend>, _) = match &backend.kind {
            BackendKind::Pool { subscription: None } => return Some(Target::Pool),
            BackendKind::Pool { subscription: Some(id) } => return Some(Target::Subscription(id.as_str().into())),
            BackendKind::AnthropicApi { base_url, key_env, models } => {
                let (base_url, models) = (base_url.clone(), models.clone());
                let settings = Settings { base_url, key: key(key_env), models, timers };
                ("anthropic-api", Arc::new(AnthropicApi::new(self.client.clone()?, settings)), false)
            }
            BackendKind::OpenAiApi { base_url, key_env, models } => {
                let (base_url, models) = (base_url.clone(), models.clone());
                let settings = openai_api::Settings { base_url, key: key_env.as_ref().map(key), models, timers };
                ("openai-api", Arc::new(OpenAiApi::new(self.client.clone()?, settings)), true)
            }
        };
        let most = backend.max_concurrent as usize;
        let named = NamedBackend::new(&backend.name, kind, runs, backend.supports_tools, any_model, most);
        Some(Target::Backend(named))
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

/// The operator's way out to the internet.
pub(super) fn proxy(env: &Env) -> Proxy {
    let any = |names: [&str; 2]| names.into_iter().find_map(|name| env.var(name)).map(str::to_owned);
    Proxy { https: any(["HTTPS_PROXY", "https_proxy"]), exceptions: any(["NO_PROXY", "no_proxy"]) }
}

fn is_needed(config: &Config) -> bool {
    let is_http = |backend: &config::Backend| !matches!(backend.kind, BackendKind::Pool { .. });
    config.subscriptions.iter().any(|subscription| subscription.api.is_some()) || config.backends.iter().any(is_http)
}

/// The limits on answers are the same, whoever gives them.
fn timers(config: &Config) -> Timers {
    let claude = &config.claude;
    Timers { first_event: claude.first_event_timeout, idle: claude.idle_timeout, total: claude.total_timeout }
}
