//! Where requests are sent, and through which connections.

use std::fmt;
use std::time::Duration;

use http::header::HeaderValue;
use reqwest::redirect::Policy;
use reqwest::{NoProxy, RequestBuilder, Url};
use secrecy::ExposeSecret as _;

use super::{Key, Timers};
use crate::backend::{Failure, FailureKind};

/// How long a connection may take to be made. Less than any sensible limit for a whole request.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Unused connections are kept this long: less than what providers and the boxes in between keep them for.
const IDLE_CONNECTION: Duration = Duration::from_secs(50);

/// The operator's own way out to the internet, as `HTTPS_PROXY` and `NO_PROXY` say.
#[derive(Clone, Default)]
pub struct Proxy {
    /// The proxy's address; can hold a password.
    pub https: Option<String>,
    /// Hosts that are reached without it.
    pub exceptions: Option<String>,
}

/// The connections of all backends over HTTP. A cheap handle.
#[derive(Clone, Debug)]
pub struct HttpClient(reqwest::Client);

impl HttpClient {
    /// Fails when this machine has no usable TLS, or the proxy's address is none.
    pub fn new(proxy: &Proxy) -> anyhow::Result<Self> {
        let mut builder = reqwest::Client::builder()
            // A key goes where the operator sends it, and nowhere else.
            .redirect(Policy::none())
            .connect_timeout(CONNECT_LIMIT)
            .pool_idle_timeout(IDLE_CONNECTION)
            .tcp_keepalive(Duration::from_secs(30))
            .no_proxy()
            .user_agent(concat!("auth-pool/", env!("CARGO_PKG_VERSION")));
        if let Some(address) = &proxy.https {
            let exceptions = proxy.exceptions.as_deref().and_then(NoProxy::from_string);
            // The error would quote the address, which can hold a password.
            let https = reqwest::Proxy::https(address).map_err(|_| anyhow::anyhow!("HTTPS_PROXY is not an address"))?;
            builder = builder.proxy(https.no_proxy(exceptions));
        }
        Ok(Self(builder.build()?))
    }
}

/// An API of one account.
#[derive(Clone)]
pub(in crate::backend) struct Endpoint {
    client: HttpClient,
    base: Url,
    key: Option<Key>,
    pub(in crate::backend) timers: Timers,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint").field("base", &self.base.as_str()).finish_non_exhaustive()
    }
}

impl Endpoint {
    pub(in crate::backend) fn new(client: HttpClient, base: &str, key: Option<Key>, timers: Timers) -> Self {
        // Checked with the configuration; one that is none leads nowhere.
        let base = Url::parse(base).unwrap_or_else(|_| nowhere());
        Self { client, base, key, timers }
    }

    /// The beginning of a `POST` to `path` below the base address.
    pub(in crate::backend) fn post(&self, path: &str) -> RequestBuilder {
        let mut url = self.base.clone();
        url.set_path(&format!("{}{path}", self.base.path().trim_end_matches('/')));
        self.client.0.post(url)
    }

    /// The beginning of a `GET` of `path` below the base address.
    pub(in crate::backend) fn get(&self, path: &str, query: &[(&str, String)]) -> RequestBuilder {
        let mut url = self.base.clone();
        url.set_path(&format!("{}{path}", self.base.path().trim_end_matches('/')));
        url.query_pairs_mut().extend_pairs(query);
        self.client.0.get(url)
    }

    /// The key as a header's value, after `prefix`; `None` where the endpoint needs none.
    pub(in crate::backend) fn credential(&self, prefix: &str) -> Result<Option<HeaderValue>, Failure> {
        let Some(key) = &self.key else { return Ok(None) };
        let unusable = |why: &str| Failure::new(FailureKind::Unauthenticated, format!("the API key {why}"));
        let key = key.get().map_err(|why| unusable(&format!("cannot be had: {why}")))?;
        let mut value = HeaderValue::from_str(&format!("{prefix}{}", key.expose_secret().trim()))
            .map_err(|_| unusable("has characters that no key has"))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

#[expect(clippy::expect_used, reason = "a constant")]
fn nowhere() -> Url {
    Url::parse("http://127.0.0.1:9/").expect("a URL")
}
