//! `auth-pool standin`: the loopback stand-in for the Anthropic API, as a program of its own.

use std::future::Future;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};

use crate::runtime::tasks::Tasks;
use crate::standin::{Options, Pace, Standin};

/// Options of `auth-pool standin`.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct Args {
    /// Loopback address to listen on; port 0 takes any free one
    #[arg(long, value_name = "ADDRESS", default_value_t = SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))]
    pub listen: SocketAddr,
    /// Milliseconds before the first event of an answer
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub first_delay: u64,
    /// Milliseconds between two words of an answer
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub chunk_delay: u64,
    /// Refuse sampling parameters as newer models do
    #[arg(long)]
    pub sampling_rules: bool,
}

/// Serves until `stop` comes. The first line on stdout says where: `listening on http://127.0.0.1:4567`.
pub(super) async fn run(args: &Args, tasks: &Tasks, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
    let pace = Pace { first_delay_ms: args.first_delay, chunk_delay_ms: args.chunk_delay };
    let options = Options { listen: args.listen, pace, sampling_rules: args.sampling_rules, ..Options::default() };
    let standin = Standin::start(tasks, options).await?;
    writeln!(std::io::stdout(), "listening on {}", standin.base_url())?;
    stop.await;
    drop(standin);
    tasks.finished().await;
    Ok(())
}
