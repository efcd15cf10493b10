//! The composition root: builds every part from the configuration, and owns run, reload and stop.
//!
//! Stopping is a sequence, each step with its own end: readiness goes off and the listener closes; running answers may
//! end within the drain timeout; what is left is cut with an error frame, which kills its processes; spares are killed;
//! every task is waited for; what is to be kept is written.

mod alerts;
mod cli_watch;
mod clients;
mod http_backends;
mod organization;
mod parts;
mod rebalancer;
mod recording;
mod registry;
mod reload;
mod replicas;
mod upkeep;
mod usage_poll;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::backend::claude_cli::{ClaudeCli, SCRATCH};
use crate::config::{Config, Env, Overrides};
use crate::gateway::{PooledGateway, SharedPool};
use crate::runtime::scratch;
use crate::runtime::tasks::{self, Tasks};
use crate::server::Server;
use crate::store::{Serving, Store};
use cli_watch::CliWatch;
use http_backends::HttpBackends;
use recording::Recording;
use registry::Registry;
use usage_poll::UsagePoll;

pub use alerts::settings as alert_settings;
pub use organization::{KeyReport, OrganizationReport, organization_report};
pub use parts::cli_backends;
pub use recording::{Keeper, store_location};
pub use registry::{Registration, registered, vault};
pub use replicas::address as redis_address;

/// How the name of the directory begins in which CLI processes run.
const WORKSPACE: &str = "workspace";

/// How long connections may take to send their last frame once everything is cut.
const CUT_LIMIT: Duration = Duration::from_secs(3);

/// How long the last tasks may take then: processes are dead by that time, only their reaping is left.
const REAP_LIMIT: Duration = Duration::from_secs(5);

/// A running proxy.
pub struct App {
    gateway: PooledGateway,
    claude: ClaudeCli,
    recording: Option<Recording>,
    addr: SocketAddr,
    server: JoinHandle<()>,
    /// No more connections.
    drain: CancellationToken,
    /// No more answers.
    kill: CancellationToken,
    /// No more background work.
    stop: CancellationToken,
    tasks: Tasks,
    drain_timeout: Duration,
    /// Nobody else serves from the same store file.
    _serving: Option<Serving>,
    /// The empty directory in which all CLI processes run; removed at the end.
    _cwd: tempfile::TempDir,
}

impl App {
    /// Builds all parts and binds the address. Clients are served, and changes of the configuration are followed, from
    /// now on.
    pub async fn start(config: Config, env: Env, overrides: Overrides) -> anyhow::Result<Self> {
        let file = config;
        let redis = replicas::address(&env)?;
        let location = store_location(&file)?;
        let serving = match location.clone() {
            Some(location) => tasks::blocking(move || location.serve()).await.transpose()?.flatten(),
            None => None,
        };
        let store = location.map(Store::new);
        let registry = Registry::open(&file, &env, store.clone()).await?;
        let (config, all_env) = registry.added_to(&file);
        registry.check_keys(&config)?;
        let server_settings = parts::server_settings(&config, registry.hides_keys(&config));
        let tasks = Tasks::default();
        let (drain, kill, stop) = <(CancellationToken, CancellationToken, CancellationToken)>::default();
        let temporary = PathBuf::from(env.var("TMPDIR").unwrap_or("/tmp"));
        let cwd = scratch::folder(WORKSPACE, &temporary).context("no directory for CLI processes")?;
        tasks::blocking(move || scratch::sweep(&[WORKSPACE, SCRATCH], &temporary)).await;
        let claude = ClaudeCli::new(parts::spare_settings(&config), &tasks);
        claude.set_max_spawns(parts::max_spawns(&config));
        let http = HttpBackends::new(&config, &all_env)?;
        let profiles = parts::Profiles { env: all_env, claude: claude.clone(), cwd: cwd.path().to_owned() };
        let backends = profiles.backends(&config);
        let facts = parts::cli_facts(&backends).await;
        let catalog = parts::catalog(&config, &facts);
        parts::prepare_spares(&config, &backends, &catalog);
        let pool = SharedPool::new(parts::pool(&config));
        let usage_poll = UsagePoll::start(&pool, &config, &backends, &tasks, &stop);
        let settings = parts::gateway_settings(&config);
        let backends = parts::as_backends(backends, http.subscriptions(&config));
        let gateway = PooledGateway::new(pool.clone(), backends, catalog, claude.clone(), settings, tasks.clone());
        gateway.clients().apply(clients::rules(&config));
        let (admin, registrations) = registry.admin(&gateway, &pool);
        gateway.show_in_debug("registered", registry::problems(&registry));
        let alerts = alerts::start(&pool, &config, &env, &tasks, &stop);
        alerts::tell_followers(&pool, &alerts, &tasks, &stop);
        let recording = Recording::new(store);
        if let Some(recording) = &recording {
            recording.connect(&gateway, &alerts, &pool, &config, &stop);
        }
        replicas::start(&pool, &gateway, &config, redis.as_ref(), &tasks, &stop).await;
        if let Some(recording) = &recording {
            recording.restore(&pool, gateway.clients(), &alerts, &stop).await;
        }
        let server = Server::bind(server_settings, Arc::new(gateway.clone())).await?.with_admin(admin);
        let addr = *server.addresses().first().context("the server listens nowhere")?;
        let drain_timeout = config.server.drain_timeout;
        gateway.route(http.routing(&config));
        let rebalancer = upkeep::start(&gateway, &pool, &config, &tasks, &stop);
        gateway.show_in_debug("alerts", {
            let alerts = alerts.clone();
            move || alerts.view()
        });
        let (cli_watch, replacements) = CliWatch::start(&claude, &config, &env, &tasks, &stop);
        gateway.show_in_debug("cli", cli_watch.view(&claude));
        gateway.show_in_debug("memory", {
            let claude = claude.clone();
            move || serde_json::json!(claude.memory())
        });
        let target = reload::Target {
            pool,
            gateway: gateway.clone(),
            server: server.settings(),
            alerts,
            rebalancer,
            usage_poll,
            cli_watch,
            replacements,
            registry,
            registrations,
            profiles,
            http,
            facts,
        };
        reload::start(target, file, env, overrides, &tasks, &stop);
        let server = tasks.spawn("server", server.run(drain.clone(), kill.clone()));
        Ok(Self {
            gateway,
            claude,
            recording,
            addr,
            server,
            drain,
            kill,
            stop,
            tasks,
            drain_timeout,
            _serving: serving,
            _cwd: cwd,
        })
    }

    /// The address that is served; its port is real also where port 0 was asked for.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Stops in an orderly way. Running answers may end within the drain timeout.
    pub async fn stop(mut self) {
        info!(drain_timeout = %humantime::format_duration(self.drain_timeout), "stopping: no new requests");
        self.gateway.drain();
        self.drain.cancel();
        if timeout(self.drain_timeout, &mut self.server).await.is_err() {
            warn!("the drain timeout has passed: answers that still run are cut");
            self.gateway.kill();
            self.kill.cancel();
            if timeout(CUT_LIMIT, &mut self.server).await.is_err() {
                self.server.abort();
            }
        }
        self.stop.cancel();
        self.claude.close();
        if timeout(REAP_LIMIT, self.tasks.finished()).await.is_err() {
            warn!(tasks = self.tasks.len(), "some tasks did not end");
        }
        // Last: what the last requests left behind is there by now.
        if let Some(recording) = self.recording.take() {
            recording.finish().await;
        }
        info!("stopped");
    }
}
