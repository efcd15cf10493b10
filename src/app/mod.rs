//! The composition root: builds every part from the configuration, and owns run and stop.
//!
//! Stopping is a sequence, each step with its own end: readiness goes off and the listener closes; running answers may
//! end within the drain timeout; what is left is cut, which kills its processes; spares are killed; every task is
//! waited for.

mod parts;
mod upkeep;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::backend::claude_cli::ClaudeCli;
use crate::config::{Config, Env};
use crate::gateway::{PooledGateway, SharedPool};
use crate::runtime::tasks::Tasks;
use crate::server::Server;

/// How long the last tasks may take once everything is cut: processes are dead by then, only their reaping is left.
const REAP_LIMIT: Duration = Duration::from_secs(5);

/// A running proxy.
pub struct App {
    gateway: PooledGateway,
    pool: SharedPool,
    claude: ClaudeCli,
    server: Server,
    tasks: Tasks,
    stop: CancellationToken,
    drain_timeout: Duration,
    /// The empty directory in which all CLI processes run; removed at the end.
    _cwd: tempfile::TempDir,
}

impl App {
    /// Builds all parts and binds the address. Clients are served from now on.
    pub async fn start(config: Config, env: &Env) -> anyhow::Result<Self> {
        let tasks = Tasks::default();
        let stop = CancellationToken::new();
        let cwd = tempfile::Builder::new().prefix("workspace-").tempdir().context("no directory for CLI processes")?;
        let claude = ClaudeCli::new(parts::spare_settings(&config), &tasks);
        let cli_backends = parts::cli_backends(&config, env, &claude, cwd.path());
        let catalog = parts::catalog(&config, cli_backends.first().map(|(_, backend)| backend)).await;
        let pool = SharedPool::new(parts::pool(&config));
        parts::prepare_spares(&cli_backends, &catalog);
        let gateway = PooledGateway::new(
            pool.clone(),
            parts::as_backends(cli_backends),
            catalog,
            claude.clone(),
            parts::max_attempts(&config),
            tasks.clone(),
        );
        let server = Server::bind(parts::server_settings(&config), Arc::new(gateway.clone()), &tasks)
            .await
            .with_context(|| format!("cannot listen on {}", config.server.listen))?;
        upkeep::start(&pool, &config, &tasks, &stop);
        Ok(Self { gateway, pool, claude, server, tasks, stop, drain_timeout: config.server.drain_timeout, _cwd: cwd })
    }

    /// The address that is served; its port is real also where port 0 was asked for.
    pub fn addr(&self) -> SocketAddr {
        self.server.addr()
    }

    /// The pool, for whoever wants to look at it or to listen to its effects.
    pub fn pool(&self) -> &SharedPool {
        &self.pool
    }

    /// Stops in an orderly way. Running answers may end within the drain timeout.
    pub async fn stop(self) {
        self.gateway.drain();
        info!(drain_timeout = %humantime::format_duration(self.drain_timeout), "stopping: no new requests");
        if !self.server.shutdown(self.drain_timeout).await {
            warn!("some answers were cut: they did not end within the drain timeout");
        }
        self.stop.cancel();
        self.claude.close();
        if timeout(REAP_LIMIT, self.tasks.finished()).await.is_err() {
            warn!(tasks = self.tasks.len(), "some tasks did not end");
        }
        info!("stopped");
    }
}
