//! `auth-pool simulate`: the pool's strategies compared in a simulated week.

use std::fs;
use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::simulator::{self, Contender, Options, Progress, Recorded};
use crate::units::MicroUsd;

/// Runs that take longer than this say how far they are,
const SILENT: Duration = Duration::from_secs(2);
/// this often where nobody watches,
const NEWS: Duration = Duration::from_secs(30);
/// and this often on a terminal.
const NEWS_ON_A_TERMINAL: Duration = Duration::from_millis(200);
/// Turns of a session in `--scale`, so that a million sessions take minutes and not hours.
const SCALE_TURNS: f64 = 8.0;

/// Options of `auth-pool simulate`.
#[derive(Clone, Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "switches of a command line")]
pub(super) struct Args {
    /// Where random numbers begin: the same seed gives the same output
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Simulate so many weeks, each with the next seed, and print means and deviations
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1000))]
    #[arg(conflicts_with_all = ["log", "svg", "scale"])]
    seeds: Option<u32>,
    /// Subscriptions in the pool [default: 20; with --scale the largest step, 10000]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    subscriptions: Option<u32>,
    /// Sessions of the synthetic week, in all [default: 100 a subscription]
    #[arg(long, value_name = "COUNT", conflicts_with = "log")]
    sessions: Option<u64>,
    /// What is asked of a synthetic week, as a share of the paid budget
    #[arg(long, default_value_t = 0.9, value_parser = positive)]
    load: f64,
    /// Days of the synthetic week
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=366), conflicts_with = "log")]
    days: u32,
    /// Turns of an agent's session on average [default: 40; with --scale 8]
    #[arg(long, value_name = "COUNT", value_parser = positive, conflicts_with = "log")]
    turns: Option<f64>,
    /// Every subscription's weekly budget in dollars [default: they differ, from 114 to 912]
    #[arg(long, value_name = "USD", value_parser = positive)]
    weekly_budget: Option<f64>,
    /// A provider that does nothing but limit: no throttles, no failures, no lost logins
    #[arg(long)]
    calm: bool,
    /// Do not run the rebalancer
    #[arg(long)]
    no_rebalancing: bool,
    /// What to compare, separated by commas [default: all; with --scale pace,health]
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = contender)]
    strategy: Vec<Contender>,
    /// Simulate a usage log instead of a synthetic week: JSON lines with at, session, cost, tokens
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// How it changes from 3 to 10,000 subscriptions and 1,000,000 sessions; takes minutes
    #[arg(long, conflicts_with_all = ["log", "svg"])]
    scale: bool,
    /// Draw the week: budget used and requests not served
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

fn contender(name: &str) -> Result<Contender, String> {
    let names = || Contender::ALL.map(|contender| contender.name).join(", ");
    Contender::named(name).ok_or_else(|| format!("one of {}", names()))
}

fn positive(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "a number".to_owned())?;
    if number.is_finite() && number > 0.0 && number <= 1e9 { Ok(number) } else { Err("a number above 0".to_owned()) }
}

/// Runs the simulation and returns what it prints.
pub(super) fn run(args: &Args) -> anyhow::Result<String> {
    let mut news = News::new();
    let mut progress = |progress: Progress| news.hear(progress);
    if args.scale {
        let options = args.options(SCALE_TURNS, &["pace", "health"]);
        let largest = args.subscriptions.unwrap_or(u32::MAX);
        let reports = simulator::scale(&options, largest, &mut progress);
        anyhow::ensure!(!reports.is_empty(), "--scale begins with {} subscriptions", simulator::SCALE_STEPS[0]);
        news.end();
        return if args.json { json(&reports) } else { Ok(simulator::scale_table(&reports)) };
    }
    let options = args.options(Options::default().turns, &[]);
    if let Some(weeks) = args.seeds {
        let reports = simulator::weeks(&options, weeks, &mut progress);
        news.end();
        return if args.json { json(&reports) } else { Ok(simulator::weeks_table(&reports)) };
    }
    let report = match &args.log {
        None => simulator::synthetic(&options, &mut progress),
        Some(file) => {
            let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
            let log = Recorded::parse(&text).with_context(|| format!("cannot use {}", file.display()))?;
            simulator::recorded(log, &options, &mut progress)
        }
    };
    news.end();
    if let Some(file) = &args.svg {
        fs::write(file, simulator::plot(&report)).with_context(|| format!("cannot write {}", file.display()))?;
    }
    if args.json { json(&report) } else { Ok(report.to_string()) }
}

fn json(report: &impl serde::Serialize) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(report)?)
}

impl Args {
    fn options(&self, turns: f64, usual: &[&str]) -> Options {
        let defaults = Options::default();
        let contenders = match (self.strategy.is_empty(), usual.is_empty()) {
            (false, _) => self.strategy.clone(),
            (true, false) => usual.iter().filter_map(|name| Contender::named(name)).collect(),
            (true, true) => defaults.contenders,
        };
        let subscriptions = self.subscriptions.unwrap_or(defaults.subscriptions);
        // With --scale the sessions are those of the largest step.
        let largest = if self.scale { self.subscriptions.unwrap_or(10_000) } else { subscriptions };
        let sessions = self.sessions.map(|sessions| per_subscription(sessions, largest));
        Options {
            seed: self.seed,
            subscriptions,
            sessions_per_subscription: sessions.unwrap_or(defaults.sessions_per_subscription),
            load: self.load,
            days: self.days,
            turns: self.turns.unwrap_or(turns),
            troubles: !self.calm,
            rebalancing: !self.no_rebalancing,
            weekly_budget: self.weekly_budget.map(MicroUsd::from_usd),
            contenders,
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "nobody has 2^53 sessions")]
fn per_subscription(sessions: u64, subscriptions: u32) -> f64 {
    sessions as f64 / f64::from(subscriptions)
}

/// Tells on standard error how far a long run is.
struct News {
    begun: Instant,
    told: Option<Instant>,
    terminal: bool,
}

impl News {
    fn new() -> Self {
        Self { begun: Instant::now(), told: None, terminal: std::io::stderr().is_terminal() }
    }

    fn hear(&mut self, Progress { subscriptions, strategy, share }: Progress) {
        let every = if self.terminal { NEWS_ON_A_TERMINAL } else { NEWS };
        let silent = self.told.map_or(self.begun.elapsed() < SILENT, |told| told.elapsed() < every);
        if silent {
            return;
        }
        self.told = Some(Instant::now());
        let mut err = std::io::stderr().lock();
        let text = format!("{strategy} with {subscriptions} subscriptions: {:.0} %", share * 100.0);
        let _ = if self.terminal { write!(err, "\r\x1b[K{text}") } else { writeln!(err, "{text}") };
    }

    fn end(&self) {
        if self.terminal && self.told.is_some() {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}
