//! The front door: accepts connections, decides who may come in, finds the dialect, and puts its answer on the wire.
//!
//! A request's walk: `accept` (connection, limits) -> `request` (id, span, log line) -> `origin` (browsers) -> `route`
//! -> `auth` (client key) -> `limits` (rate) -> `body` -> [`crate::api`] -> `response` (server-sent events).
//!
//! Absent on purpose: TLS (a reverse proxy's work), and any task of its own for a request: a request lives in its
//! connection's task, so when the client leaves, everything behind the request is dropped.

mod accept;
mod activity;
mod auth;
mod body;
mod budget;
mod limits;
mod origin;
mod request;
mod response;
mod route;
mod settings;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::admin::Admin;
use crate::gateway::Gateway;
use crate::runtime::tasks::Tasks;

pub use settings::{ClientKey, Settings};

/// A server that listens, and serves once [`Server::run`] is called.
pub struct Server {
    /// Bound at once, so that the caller can tell the addresses before the first request.
    listeners: Vec<TcpListener>,
    addresses: Vec<SocketAddr>,
    shared: Arc<Shared>,
    max_connections: usize,
}

/// What every connection needs.
struct Shared {
    gateway: Arc<dyn Gateway>,
    settings: Arc<ArcSwap<Settings>>,
    routes: route::Routes,
    bodies: budget::BodyBudget,
    limits: limits::Limits,
    /// Whether other machines can reach it: then nobody gets in without a key, also while there is none.
    is_exposed: bool,
    /// What is registered; `None` without a store.
    admin: OnceLock<Admin>,
}

/// An address that could not be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}")]
pub struct BindError {
    /// The address.
    pub address: SocketAddr,
    /// Why not.
    #[source]
    pub source: io::Error,
}

impl Server {
    /// Listens on every address of the settings. Port 0 becomes a free port, the same for all addresses.
    ///
    /// An address after the first that this machine does not have (`::1` without IPv6) is left out with a warning.
    pub async fn bind(settings: Settings, gateway: Arc<dyn Gateway>) -> Result<Self, BindError> {
        let mut listeners = Vec::new();
        let mut addresses: Vec<SocketAddr> = Vec::new();
        for &wanted in &settings.listen {
            let mut address = wanted;
            if let Some(first) = addresses.first()
                && address.port() == 0
            {
                address.set_port(first.port());
            }
            let bound = match TcpListener::bind(address).await {
                Ok(listener) => listener.local_addr().map(|bound| (listener, bound)),
                Err(error) => Err(error),
            };
            match bound {
                Ok((listener, bound)) => {
                    listeners.push(listener);
                    addresses.push(bound);
                }
                Err(error) if !addresses.is_empty() && error.kind() == io::ErrorKind::AddrNotAvailable => {
                    tracing::warn!(%address, "this machine has no such address; not listening there");
                }
                Err(source) => return Err(BindError { address, source }),
            }
        }
        let max_connections = settings.max_connections.max(listeners.len());
        let bodies = budget::BodyBudget::new(settings.max_body_bytes_total);
        let settings = Arc::new(ArcSwap::from_pointee(settings));
        let (routes, limits) = (route::Routes::new(), limits::Limits::default());
        let is_exposed = addresses.iter().any(|address| !address.ip().to_canonical().is_loopback());
        let shared = Shared { gateway, settings, routes, bodies, limits, is_exposed, admin: OnceLock::new() };
        let shared = Arc::new(shared);
        Ok(Self { listeners, addresses, shared, max_connections })
    }

    /// Lets operators register accounts and keys.
    #[must_use]
    pub fn with_admin(self, admin: Option<Admin>) -> Self {
        if let Some(admin) = admin {
            let _ = self.shared.admin.set(admin);
        }
        self
    }

    /// Where it listens.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The settings in use. A new value counts from the next request on, but for `listen`, `max_connections` and
    /// `max_body_bytes_total`, which are read once.
    pub fn settings(&self) -> Arc<ArcSwap<Settings>> {
        Arc::clone(&self.shared.settings)
    }

    /// Serves until `drain` is cancelled, then takes no more connections and resolves when the last request is over.
    ///
    /// When `kill` is cancelled too, connections have one second to send what is ready, and are closed.
    pub async fn run(self, drain: CancellationToken, kill: CancellationToken) {
        let connections = Tasks::default();
        let permits = Arc::new(Semaphore::new(self.max_connections));
        let acceptors = self.listeners.into_iter().map(|listener| {
            let acceptor = accept::Acceptor {
                shared: Arc::clone(&self.shared),
                connections: connections.clone(),
                permits: Arc::clone(&permits),
                drain: drain.clone(),
                kill: kill.clone(),
            };
            acceptor.run(listener)
        });
        futures_util::future::join_all(acceptors).await;
        tracing::info!(open = connections.len(), "no longer listening; waiting for requests to end");
        connections.finished().await;
    }
}
