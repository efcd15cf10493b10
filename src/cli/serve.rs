//! `auth-pool serve`: serves clients until told to stop.

use std::path::PathBuf;

use tracing::{info, warn};

use crate::app::App;
use crate::config::{self, Config, Env, Overrides};
use crate::runtime::signals::StopSignals;

/// Arguments of `serve`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The configuration file [default: $`AUTH_POOL_CONFIG`, else config/auth-pool.json if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The address to listen on; port 0 takes a free one [default: `$HOST:$PORT`, else 127.0.0.1:3000]
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<String>,
}

pub(super) async fn run(args: Args, env: &Env) -> anyhow::Result<()> {
    let overrides = Overrides { config: args.config, listen: args.listen };
    let config = config::load(env, &overrides)?;
    announce(&config);
    let mut signals = StopSignals::register()?;
    let app = tokio::select! {
        app = App::start(config, env.clone(), overrides) => app?,
        signal = signals.received() => {
            info!(signal, "asked to stop while starting");
            return Ok(());
        }
    };
    let addr = app.addr();
    info!(%addr, "listening");
    super::say(&format!("auth-pool is listening on http://{addr}"));
    notify(&[sd_notify::NotifyState::Ready]);
    let signal = signals.received().await;
    info!(signal, "asked to stop");
    notify(&[sd_notify::NotifyState::Stopping]);
    app.stop().await;
    Ok(())
}

fn announce(config: &Config) {
    for warning in &config.warnings {
        warn!(%warning, "configuration");
    }
    info!(source = %config.source, subscriptions = config.subscriptions.len(), "configuration");
}

/// Tells systemd, if it started us. It does not matter to anybody else.
fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!(%error, "systemd could not be told");
    }
}
