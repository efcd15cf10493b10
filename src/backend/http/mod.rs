//! What the backends over HTTP have in common: connections, keys that cannot leak, time limits, reading a stream.
//!
//! An answer is read as fast as its client takes it and no faster: what is not read yet waits in the provider's own
//! connection. Dropping an answer closes that connection.

mod deadlines;
mod endpoint;
mod error;
mod sse;
mod turn;

use std::fmt;
use std::sync::Arc;

use secrecy::SecretString;

pub use super::claude_cli::Timers;
pub use endpoint::{HttpClient, Proxy};

pub(super) use deadlines::Deadlines;
pub(super) use endpoint::Endpoint;
pub(super) use error::{broken, excerpt, read_body, read_error, unreachable};
pub(super) use sse::{Events, SseEvent};
pub(super) use turn::{Answer, Dialect, cut_short, not_its_protocol};

/// Gives the key of an account for each request: one that stays as it is, or one that is decrypted when it is needed.
pub trait KeyProvider: Send + Sync {
    /// The key, or why there is none, for the operator. Must be quick.
    fn key(&self) -> Result<SecretString, String>;
}

impl KeyProvider for SecretString {
    fn key(&self) -> Result<SecretString, String> {
        Ok(self.clone())
    }
}

/// See [`KeyProvider`]. A cheap handle that shows nothing.
#[derive(Clone)]
pub struct Key(Arc<dyn KeyProvider>);

impl Key {
    /// The key that `provider` gives.
    pub fn new(provider: impl KeyProvider + 'static) -> Self {
        Self(Arc::new(provider))
    }

    fn get(&self) -> Result<SecretString, String> {
        self.0.key()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}
