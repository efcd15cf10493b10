//! One attempt at delivering a message: a signed `POST` to an address that is allowed.
//!
//! The address is checked *after* it is resolved, at every attempt, and redirects are not followed: no name, no redirect
//! and no change of a name can lead a message to this machine or into a private network.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hmac::{Hmac, KeyInit as _, Mac as _};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::RETRY_AFTER;
use reqwest::redirect::Policy;
use sha2::Sha256;

use crate::runtime::address::is_public;

/// The header that holds the signature: `sha256=` and the hexadecimal HMAC-SHA256 of the body.
pub(super) const SIGNATURE: &str = "x-auth-pool-signature";

const BLOCKED: &str = "its address is not public, and its host is not allowed by name";

/// Where messages go. The address can be a credential, so this has no `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Target {
    /// `https:` unless the host is allowed by name.
    pub url: String,
    /// Signs the body, if there is one.
    pub secret: Option<String>,
    /// Hosts that may be private, or reached over plain http. In lower case.
    pub allow_hosts: Vec<String>,
}

/// Why an attempt failed.
#[derive(Debug)]
pub(super) struct Trouble {
    /// For the operator; without the address.
    pub(super) cause: String,
    /// Whether another attempt makes sense.
    pub(super) again: bool,
    /// The pause that the receiver asks for.
    pub(super) pause: Option<Duration>,
}

impl Trouble {
    pub(super) fn last(cause: impl Into<String>) -> Self {
        Self { cause: cause.into(), again: false, pause: None }
    }
}

/// A target and the client that may reach it.
#[derive(Clone)]
pub(super) struct Post {
    client: reqwest::Client,
    target: Target,
}

impl Post {
    /// Fails when there is no target, or this machine has no usable TLS; the error says why, without the address.
    pub(super) fn new(target: Option<Target>, attempt_limit: Duration) -> Result<Self, String> {
        let target = target.ok_or("the channel has no address")?;
        let resolver = PublicOnly { allow_hosts: target.allow_hosts.clone().into() };
        let client = reqwest::Client::builder()
            .redirect(Policy::none())
            .timeout(attempt_limit)
            .no_proxy()
            .dns_resolver(Arc::new(resolver))
            .user_agent(concat!("auth-pool/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(reason)?;
        Ok(Self { client, target })
    }

    pub(super) fn target(&self) -> &Target {
        &self.target
    }

    /// Sends `body` once.
    pub(super) async fn attempt(&self, body: &str) -> Result<(), Trouble> {
        let url = reqwest::Url::parse(&self.target.url).map_err(|error| Trouble::last(error.to_string()))?;
        check(&url, &self.target.allow_hosts).map_err(Trouble::last)?;
        let mut request = self.client.post(url).header("content-type", "application/json");
        if let Some(secret) = &self.target.secret {
            request = request.header(SIGNATURE, signature(secret, body.as_bytes()));
        }
        let response = request.body(body.to_owned()).send().await.map_err(|error| {
            let blocked = causes(&error).any(|cause| cause == BLOCKED);
            Trouble { cause: reason(error), again: !blocked, pause: None }
        })?;
        let status = response.status();
        if status.is_success() {
            return Ok(());
        }
        if status.is_redirection() {
            return Err(Trouble::last(format!("it answered {status}, and redirects are not followed")));
        }
        let again = status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429);
        let pause = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        Err(Trouble { cause: format!("it answered {status}"), again, pause: pause.map(Duration::from_secs) })
    }
}

/// The signature of a body as its header holds it.
pub fn signature(secret: &str, body: &[u8]) -> String {
    // A key of any length is fine for HMAC.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret.as_bytes()) else { return String::new() };
    mac.update(body);
    let mut text = "sha256=".to_owned();
    for byte in mac.finalize().into_bytes() {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// What can be said of an address before it is resolved.
fn check(url: &reqwest::Url, allow_hosts: &[String]) -> Result<(), &'static str> {
    let host = host(url);
    if allow_hosts.contains(&host) {
        return Ok(());
    }
    if url.scheme() != "https" {
        return Err("its address is not https, and its host is not allowed by name");
    }
    match host.parse() {
        Ok(address) if !is_public(address) => Err(BLOCKED),
        _ => Ok(()),
    }
}

fn host(url: &reqwest::Url) -> String {
    url.host_str().unwrap_or_default().trim_matches(['[', ']']).trim_end_matches('.').to_lowercase()
}

/// Resolves names to public addresses only, so that the address which was checked is the one that is connected to.
struct PublicOnly {
    allow_hosts: Arc<[String]>,
}

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        let allow_hosts = Arc::clone(&self.allow_hosts);
        Box::pin(async move {
            let host = name.as_str().trim_end_matches('.').to_lowercase();
            let resolved = tokio::net::lookup_host((host.as_str(), 0)).await?;
            let allowed = allow_hosts.contains(&host);
            let public: Vec<SocketAddr> = resolved.filter(|address| allowed || is_public(address.ip())).collect();
            if public.is_empty() {
                return Err(BLOCKED.into());
            }
            Ok(Box::new(public.into_iter()) as Addrs)
        })
    }
}

/// The innermost cause, without the address: for many services it is the credential.
fn reason(error: reqwest::Error) -> String {
    if error.is_timeout() {
        return "it did not answer in time".to_owned();
    }
    let error = error.without_url();
    causes(&error).last().unwrap_or_default()
}

fn causes(error: &dyn std::error::Error) -> impl Iterator<Item = String> {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_plain_hmac_sha256() {
        // RFC 4231, test case 2.
        assert_eq!(
            signature("Jefe", b"what do ya want for nothing?"),
            "sha256=5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }

    #[test]
    fn addresses_are_checked_by_scheme_and_range() {
        let check = |text: &str, allow: &[String]| check(&reqwest::Url::parse(text).expect("a URL"), allow);
        assert_eq!(check("https://example.com/x", &[]), Ok(()));
        for bad in [
            "http://example.com/x",
            "https://127.0.0.1/x",
            "https://0x7f000001/x",
            "https://2130706433/x",
            "https://169.254.169.254/latest",
            "https://[::ffff:10.0.0.1]/x",
            "https://[fd00::1]/x",
        ] {
            assert!(check(bad, &[]).is_err(), "{bad}");
        }
        assert_eq!(check("http://127.0.0.1:9/x", &["127.0.0.1".to_owned()]), Ok(()));
        assert!(check("http://127.0.0.2:9/x", &["127.0.0.1".to_owned()]).is_err());
    }
}
