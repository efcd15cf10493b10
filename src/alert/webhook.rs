//! Sends a JSON message to an address of the operator's, safely and without holding anybody up.
//!
//! Messages wait in a bounded queue; a full one drops the newest message and counts it. Delivery is tried a few times
//! with growing pauses. The address is checked *after* it is resolved, at every attempt, and redirects are not followed:
//! no name, no redirect and no change of a name can lead a message to this machine or into a private network.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hmac::{Hmac, KeyInit as _, Mac as _};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect::Policy;
use serde_json::Value;
use sha2::Sha256;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::runtime::address::is_public;
use crate::runtime::tasks::Tasks;

/// Messages that may wait.
const QUEUE: usize = 256;
/// Deliveries of one message that are tried.
const ATTEMPTS: u32 = 6;
/// The pause before the second attempt; it doubles after that.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// How long one attempt may take.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(10);
/// The header that holds the signature: `sha256=` and the hexadecimal HMAC-SHA256 of the body.
const SIGNATURE: &str = "x-auth-pool-signature";

/// Where messages go. The address can be a credential, so this has no `Debug`.
#[derive(Clone)]
pub struct Target {
    /// `https:` unless the host is allowed by name.
    pub url: String,
    /// Signs the body, if there is one.
    pub secret: Option<String>,
    /// Hosts that may be private, or reached over plain http. In lower case.
    pub allow_hosts: Vec<String>,
}

/// The queue in front of one target. A cheap handle.
#[derive(Clone, Debug)]
pub struct Sender(mpsc::Sender<Value>);

impl Sender {
    /// Starts the task that delivers.
    pub fn start(
        name: &'static str,
        target: Target,
        tasks: &Tasks,
        stop: &CancellationToken,
    ) -> Result<Self, reqwest::Error> {
        let client = client(&target)?;
        let (sender, mut queue) = mpsc::channel(QUEUE);
        let stop = stop.clone();
        tasks.spawn("webhook", async move {
            while let Some(Some(message)) = stop.run_until_cancelled(queue.recv()).await {
                // A stop does not wait for pauses between attempts, but the message gets its first one.
                deliver(name, &client, &target, &message, &stop).await;
            }
        });
        Ok(Self(sender))
    }

    /// Queues a message. Never waits.
    pub fn send(&self, message: Value) {
        match self.0.try_send(message) {
            Ok(()) | Err(TrySendError::Closed(_)) => {}
            Err(TrySendError::Full(_)) => warn!(queue = QUEUE, "an alert was dropped: its channel does not keep up"),
        }
    }
}

/// Delivers one message or gives up. `true` if it arrived.
pub async fn deliver(
    name: &'static str,
    client: &reqwest::Client,
    target: &Target,
    message: &Value,
    stop: &CancellationToken,
) -> bool {
    let mut pause = FIRST_PAUSE;
    for attempt in 1..=ATTEMPTS {
        match post(client, target, message).await {
            Ok(()) => {
                debug!(channel = name, attempt, "an alert was delivered");
                return true;
            }
            Err(Trouble { cause, again }) => {
                warn!(channel = name, attempt, of = ATTEMPTS, cause, "an alert was not delivered");
                if !again || attempt == ATTEMPTS {
                    break;
                }
            }
        }
        if stop.run_until_cancelled(tokio::time::sleep(jittered(pause))).await.is_none() {
            break;
        }
        pause *= 2;
    }
    warn!(channel = name, "an alert was given up");
    false
}

struct Trouble {
    /// Without the address.
    cause: String,
    /// Whether another attempt makes sense.
    again: bool,
}

async fn post(client: &reqwest::Client, target: &Target, message: &Value) -> Result<(), Trouble> {
    let refuse = |cause: String| Trouble { cause, again: false };
    let url = reqwest::Url::parse(&target.url).map_err(|error| refuse(error.to_string()))?;
    check(&url, &target.allow_hosts).map_err(|cause| refuse(cause.to_owned()))?;
    let body = message.to_string();
    let mut request = client.post(url).header("content-type", "application/json");
    if let Some(secret) = &target.secret {
        request = request.header(SIGNATURE, signature(secret, body.as_bytes()));
    }
    let response = request.body(body).send().await.map_err(|error| {
        let blocked = is_blocked(&error);
        Trouble { cause: reason(error), again: !blocked }
    })?;
    let status = response.status();
    if status.is_success() {
        return Ok(());
    }
    let again = status.is_server_error() || status.as_u16() == 429 || status.as_u16() == 408;
    Err(Trouble { cause: format!("it answered {status}"), again })
}

/// The hexadecimal signature of a body.
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

const BLOCKED: &str = "its address is not public, and its host is not allowed by name";

/// The client for one target.
pub fn client(target: &Target) -> Result<reqwest::Client, reqwest::Error> {
    let resolver = PublicOnly { allow_hosts: target.allow_hosts.clone().into() };
    reqwest::Client::builder()
        .redirect(Policy::none())
        .timeout(ATTEMPT_LIMIT)
        .no_proxy()
        .dns_resolver(Arc::new(resolver))
        .user_agent(concat!("auth-pool/", env!("CARGO_PKG_VERSION")))
        .build()
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

fn is_blocked(error: &reqwest::Error) -> bool {
    causes(error).any(|cause| cause == BLOCKED)
}

/// The innermost cause, without the address: for many services it is the credential.
fn reason(error: reqwest::Error) -> String {
    let error = error.without_url();
    causes(&error).last().unwrap_or_default()
}

fn causes(error: &dyn std::error::Error) -> impl Iterator<Item = String> {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string)
}

/// Between half of `pause` and all of it, so that many senders do not come back together.
fn jittered(pause: Duration) -> Duration {
    let random = uuid::Uuid::new_v4().as_u128() % 1000;
    pause.mul_f64(0.5 + f64::from(u32::try_from(random).unwrap_or(0)) / 2000.0)
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
        assert!(check("http://example.com/x", &[]).is_err());
        assert!(check("https://127.0.0.1/x", &[]).is_err());
        assert!(check("https://[::ffff:10.0.0.1]/x", &[]).is_err());
        assert_eq!(check("http://127.0.0.1:9/x", &["127.0.0.1".to_owned()]), Ok(()));
    }
}
