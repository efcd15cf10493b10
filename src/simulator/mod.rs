//! The pool in a simulated week: the very same [`crate::pool`] that serves requests, under a simulated clock, against a
//! simulated provider with true limits of its own, over a made-up or a recorded week of requests.
//!
//! It answers what no test of single rules can: how many requests a strategy refuses, how often it moves sessions away
//! from their caches and what that costs, how evenly it uses the subscriptions, and how much of what is paid for it
//! leaves unused; each against what would be possible at best ([`bound`]). Nothing here reads a clock or draws true
//! random numbers: the same options give the same report.
//!
//! What is simulated is described where it is made: [`workload`] (clients), [`recorded`] (usage logs), [`fleet`]
//! (subscriptions), [`provider`], [`engine`] (gateway).

mod bound;
mod contender;
mod engine;
mod fleet;
mod plot;
mod provider;
mod random;
mod recorded;
mod report;
mod table;
mod trace;
mod weeks;
mod workload;

#[cfg(test)]
mod tests;

use crate::units::MicroUsd;

pub use contender::Contender;
pub use plot::plot;
pub use recorded::{LogError, Recorded};
pub use report::{BoundReport, Report, Sample, Setup, StrategyReport};
pub use table::scale_table;
pub use trace::{Request, Requests, Source};
pub use weeks::{weeks, weeks_table};
pub use workload::{Week, Workload};

use engine::World;
use fleet::Fleet;

/// Subscriptions of each step of [`scale`].
pub const SCALE_STEPS: [u32; 5] = [3, 10, 100, 1_000, 10_000];

/// What to simulate.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where random numbers begin.
    pub seed: u64,
    /// Members of the pool.
    pub subscriptions: u32,
    /// Sessions a subscription has in a synthetic week.
    pub sessions_per_subscription: f64,
    /// What a synthetic week costs on warm caches, as a share of the paid budget.
    pub load: f64,
    /// Days of a synthetic week.
    pub days: u32,
    /// Turns of an agent's session on average.
    pub turns: f64,
    /// Whether the provider throttles, fails and forgets logins beside its limits.
    pub troubles: bool,
    /// Whether the rebalancer runs.
    pub rebalancing: bool,
    /// Every subscription's weekly budget; without it they differ.
    pub weekly_budget: Option<MicroUsd>,
    /// What to compare.
    pub contenders: Vec<Contender>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            seed: 1,
            subscriptions: 20,
            sessions_per_subscription: 100.0,
            load: 0.9,
            days: 7,
            turns: 40.0,
            troubles: true,
            rebalancing: true,
            weekly_budget: None,
            contenders: Contender::ALL.to_vec(),
        }
    }
}

/// How far a simulation is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Subscriptions of the run.
    pub subscriptions: u32,
    /// The strategy that runs.
    pub strategy: &'static str,
    /// Share of its week that is over.
    pub share: f64,
}

/// Simulates a synthetic week.
pub fn synthetic(options: &Options, progress: &mut dyn FnMut(Progress)) -> Report {
    let fleet = Fleet::new(options.seed, options.subscriptions, options.load, workload::START, options.weekly_budget);
    let sessions = random::whole(f64::from(options.subscriptions) * options.sessions_per_subscription);
    let length = std::time::Duration::from_hours(24) * options.days;
    let total = MicroUsd::from_usd(fleet.paid(length).as_usd() * options.load);
    let workload = Workload::new(options.seed, sessions, options.days, options.turns, total);
    let cost_factor = Some(workload.cost_factor());
    compare(&Source::Synthetic(workload), &fleet, sessions, cost_factor, options, progress)
}

/// Simulates what a usage log tells.
pub fn recorded(log: Recorded, options: &Options, progress: &mut dyn FnMut(Progress)) -> Report {
    let sessions = log.sessions();
    let source = Source::Recorded(log);
    let fleet = Fleet::new(options.seed, options.subscriptions, options.load, source.start(), options.weekly_budget);
    compare(&source, &fleet, sessions, None, options, progress)
}

/// The same synthetic week for pools of every size in [`SCALE_STEPS`] up to `largest` subscriptions.
pub fn scale(options: &Options, largest: u32, progress: &mut dyn FnMut(Progress)) -> Vec<Report> {
    let steps = SCALE_STEPS.into_iter().filter(|subscriptions| *subscriptions <= largest);
    steps.map(|subscriptions| synthetic(&Options { subscriptions, ..options.clone() }, progress)).collect()
}

fn compare(
    source: &Source,
    fleet: &Fleet,
    sessions: u64,
    cost_factor: Option<f64>,
    options: &Options,
    progress: &mut dyn FnMut(Progress),
) -> Report {
    let length = source.end().since(source.start());
    let (bound, work) = bound::bound(source, fleet);
    let setup = Setup {
        subscriptions: options.subscriptions,
        sessions,
        requests: bound.requests,
        work: work.as_usd(),
        paid: fleet.paid(length).as_usd(),
        days: length.as_secs_f64() / 86_400.0,
        seed: options.seed,
        cost_factor,
    };
    let world =
        World { source, fleet, seed: options.seed, troubles: options.troubles, rebalancing: options.rebalancing };
    let run = |contender: &Contender| {
        let Contender { name: strategy, .. } = *contender;
        let subscriptions = options.subscriptions;
        engine::run(&world, *contender, &mut |share| progress(Progress { subscriptions, strategy, share }))
    };
    Report { setup, bound, strategies: options.contenders.iter().map(run).collect() }
}
