//! What the operator decides about the front door.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::units::Timestamp;

/// The front door's settings, checked by whoever builds them.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where to listen.
    pub listen: Vec<SocketAddr>,
    /// Origins whose web pages may use the server (`https://app.example`), or `*`; empty switches CORS off.
    pub cors_origins: Vec<String>,
    /// The largest body that is read.
    pub max_body_bytes: usize,
    /// The most that the bodies of all running requests may take together.
    pub max_body_bytes_total: usize,
    /// How long a new connection may take until its first request has come in.
    pub header_read_timeout: Duration,
    /// How long a connection may be without a request afterwards.
    pub idle_timeout: Duration,
    /// How long a request's body may take.
    pub body_timeout: Duration,
    /// How long a client may leave a stream unread before its connection is closed.
    pub stall_timeout: Duration,
    /// After this much silence a stream carries a comment, so that nobody on the way takes it for dead.
    pub sse_keep_alive: Duration,
    /// Connections at the same time; further ones wait.
    pub max_connections: usize,
    /// Requests that each client may send in a minute: each key, or where there are no keys each address.
    pub requests_per_minute: Option<NonZeroU32>,
    /// Who may come in. Empty lets in everybody who can reach the server, as long as no browser brings them.
    pub client_keys: Vec<ClientKey>,
    /// Nobody comes in for now, because it is not known who may.
    pub is_locked: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 3000))],
            cors_origins: Vec::new(),
            // The provider takes requests of up to 32 MB.
            max_body_bytes: 32 << 20,
            max_body_bytes_total: 256 << 20,
            header_read_timeout: Duration::from_secs(30),
            // Longer than the 60 s after which most load balancers give up, so that they close first.
            idle_timeout: Duration::from_secs(75),
            body_timeout: Duration::from_mins(1),
            stall_timeout: Duration::from_mins(1),
            sse_keep_alive: Duration::from_secs(15),
            max_connections: 1024,
            requests_per_minute: None,
            client_keys: Vec::new(),
            is_locked: false,
        }
    }
}

/// A key that lets a client in. Only its digest is kept.
#[derive(Clone)]
pub struct ClientKey {
    /// Names the client in logs and in the pool.
    pub name: Arc<str>,
    /// See [`ClientKey::digest`].
    pub digest: [u8; 32],
    /// The models it may use, by any of their names; `None` is all.
    pub models: Option<Arc<[String]>>,
    /// Whether it opens what clients use.
    pub chat: bool,
    /// Whether it opens what the operator uses, as far as [`ClientKey::organization`] reaches.
    pub admin: bool,
    /// The organisation on whose behalf it is used. A key without one is the house's own.
    pub organization: Option<Arc<str>>,
    /// Requests in a minute; `None` is [`Settings::requests_per_minute`].
    pub requests_per_minute: Option<NonZeroU32>,
    /// From when on it opens nothing any more.
    pub expires_at: Option<Timestamp>,
}

impl ClientKey {
    /// The SHA-256 of a key. Keys are long random texts, so a slow hash would buy nothing.
    pub fn digest(key: &[u8]) -> [u8; 32] {
        Sha256::digest(key).into()
    }
}

impl fmt::Debug for ClientKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientKey")
            .field("name", &self.name)
            .field("models", &self.models)
            .field("admin", &self.admin)
            .field("organization", &self.organization)
            .finish_non_exhaustive()
    }
}
