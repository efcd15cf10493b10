//! A synthetic week: when sessions begin, how they go on, and what their requests cost.
//!
//! Sessions begin by the hours of an office: few at night, most from nine to five, a third of that at weekends. 70 % are
//! agents: named sessions whose length has a heavy tail; mostly the next request follows within seconds (a tool's result),
//! sometimes a person thinks for minutes, and now and then there is a break of up to two hours. 30 % are short chats of
//! one to four turns that name no session. A conversation starts with about 18,000 tokens of system prompt and tools and
//! grows with each turn; beyond 160,000 it is compacted to 30,000.
//!
//! Prices are those of Opus (65 % of the sessions) and Sonnet, in dollars per million tokens 5 and 3 for input, 25 and
//! 15 for output; writing the cache costs twice the input price, reading it a tenth. After a pause of more than an hour
//! the provider has forgotten the conversation wherever it was served, so that such a turn costs the same everywhere.
//!
//! At the end every cost is multiplied by one factor that makes the whole week cost what was asked for.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use crate::conversation::{Family, Price, Usage};
use crate::units::{MicroUsd, Timestamp};

use super::random::{Random, real, whole};
use super::trace::Request;

/// Monday, 5 January 2026, 00:00 UTC.
pub(super) const START: Timestamp = Timestamp::from_secs(1_767_571_200);
/// How long the provider keeps a conversation in its prompt cache.
pub(super) const CACHE_LIFE: Duration = Duration::from_hours(1);

/// Share of the sessions that are agents.
const AGENTS: f64 = 0.7;
/// Share of the sessions that use Opus; the others use Sonnet.
const OPUS: f64 = 0.65;
/// How heavy the tail of an agent's length is.
const LENGTH_SIGMA: f64 = 1.1;
/// A conversation that is longer than this many tokens is compacted,
const COMPACTED_FROM: f64 = 160_000.0;
/// to this many.
const COMPACTED_TO: f64 = 30_000.0;

/// Sessions that begin in each hour of a weekday, in proportion.
const WEEKDAY: [f64; 24] = [
    0.15, 0.1, 0.08, 0.08, 0.08, 0.1, 0.2, 0.4, 0.75, 1.0, 1.0, 0.95, 0.75, 0.9, 1.0, 1.0, 0.95, 0.8, 0.55, 0.4, 0.4,
    0.35, 0.3, 0.2,
];
/// Weekends see this share of it.
const WEEKEND: f64 = 0.35;

/// What the week looks like.
#[derive(Clone, Debug)]
pub struct Workload {
    seed: u64,
    sessions: u64,
    days: u32,
    /// Turns of an agent on average.
    turns: f64,
    /// What every cost is multiplied by.
    cost_factor: f64,
    /// Sum of the hours' weights up to and with each hour.
    hours: Vec<f64>,
}

impl Workload {
    /// A week (or `days` of it) of `sessions` sessions whose agents take `turns` turns on average, and that costs
    /// `total` as a whole.
    pub fn new(seed: u64, sessions: u64, days: u32, turns: f64, total: MicroUsd) -> Self {
        let hours = (0..days)
            .flat_map(|day| WEEKDAY.map(|weight| if day % 7 >= 5 { weight * WEEKEND } else { weight }))
            .scan(0.0, |sum, weight| {
                *sum += weight;
                Some(*sum)
            })
            .collect();
        let mut workload = Self { seed, sessions, days, turns, cost_factor: 1.0, hours };
        let natural: MicroUsd = workload.week().map(|request| request.cost).sum();
        if natural > MicroUsd::ZERO {
            workload.cost_factor = total.as_usd() / natural.as_usd();
        }
        workload
    }

    /// What every cost was multiplied by to meet the total.
    pub fn cost_factor(&self) -> f64 {
        self.cost_factor
    }

    pub(super) fn end(&self) -> Timestamp {
        START + Duration::from_hours(24) * self.days
    }

    pub(super) fn week(&self) -> Week<'_> {
        let mut week = Week {
            workload: self,
            arrivals: Random::new(self.seed, 0),
            begun: 0,
            share: 0.0,
            next: None,
            live: BinaryHeap::new(),
        };
        week.next = week.next_arrival();
        week
    }

    /// The instant before which this share of the sessions begins.
    fn instant(&self, share: f64) -> Timestamp {
        let target = share * self.hours.last().copied().unwrap_or_default();
        let hour = self.hours.partition_point(|sum| *sum < target);
        let before = hour.checked_sub(1).map_or(0.0, |before| self.hours[before]);
        let weight = self.hours.get(hour).map_or(1.0, |sum| sum - before);
        let seconds = (real(hour as u64) + (target - before) / weight) * 3600.0;
        START + Duration::from_secs_f64(seconds.max(0.0))
    }

    fn scaled(&self, cost: MicroUsd) -> MicroUsd {
        MicroUsd::from_usd(cost.as_usd() * self.cost_factor)
    }
}

/// The requests of a synthetic week, made as they are asked for: only what is alive takes memory.
pub struct Week<'a> {
    workload: &'a Workload,
    arrivals: Random,
    begun: u64,
    /// How far through the sessions' beginnings the week is.
    share: f64,
    /// When the next session begins.
    next: Option<Timestamp>,
    /// Sessions that are under way.
    live: BinaryHeap<Reverse<Live>>,
}

impl Week<'_> {
    /// Beginnings are even draws in order: each next one is drawn from what is left of the week.
    fn next_arrival(&mut self) -> Option<Timestamp> {
        let left = self.workload.sessions.checked_sub(self.begun).filter(|left| *left > 0)?;
        self.share = 1.0 - (1.0 - self.share) * self.arrivals.share().powf(1.0 / real(left));
        self.begun += 1;
        Some(self.workload.instant(self.share))
    }
}

impl Iterator for Week<'_> {
    type Item = Request;

    fn next(&mut self) -> Option<Request> {
        loop {
            let due = self.live.peek().map(|Reverse(live)| live.next_at);
            if let Some(begins) = self.next
                && due.is_none_or(|due| begins <= due)
            {
                self.live.push(Reverse(Live::begin(self.workload, self.begun, begins)));
                self.next = self.next_arrival();
                continue;
            }
            let Reverse(mut live) = self.live.pop()?;
            if live.next_at >= self.workload.end() {
                // What begins after the end is never asked; everything else that lives is as late.
                return None;
            }
            let request = live.turn(self.workload);
            if !request.last {
                self.live.push(Reverse(live));
            }
            return Some(request);
        }
    }
}

/// A session under way.
struct Live {
    next_at: Timestamp,
    session: u64,
    turn: u32,
    turns: u64,
    agent: bool,
    family: Family,
    /// Tokens of the conversation so far.
    context: f64,
    /// Whether the provider has forgotten the conversation by now.
    forgotten: bool,
    random: Random,
}

impl Live {
    fn begin(workload: &Workload, session: u64, at: Timestamp) -> Self {
        let mut random = Random::new(workload.seed, session);
        let agent = random.happens(AGENTS);
        let median = workload.turns / (LENGTH_SIGMA * LENGTH_SIGMA / 2.0).exp();
        let turns = if agent { random.lognormal(median, LENGTH_SIGMA) } else { random.between(0.5, 4.5) };
        let family = if random.happens(OPUS) { Family::Opus } else { Family::Sonnet };
        let context = random.lognormal(18_000.0, 0.2);
        Self {
            next_at: at,
            session,
            turn: 0,
            turns: whole(turns).max(1),
            agent,
            family,
            context,
            forgotten: true,
            random,
        }
    }

    /// The turn that is due; prepares the next one.
    fn turn(&mut self, workload: &Workload) -> Request {
        let random = &mut self.random;
        let fresh = random.lognormal(1_500.0, 1.0).min(60_000.0);
        let output = random.lognormal(600.0, 0.9).min(16_000.0);
        let duration = Duration::from_secs_f64(random.lognormal(12.0, 0.8).min(600.0));
        let pause = random.share();
        let pause = match pause {
            _ if !self.agent => random.lognormal(90.0, 0.8),
            _ if pause < 0.80 => random.exponential(8.0),
            _ if pause < 0.97 => random.lognormal(90.0, 1.0),
            _ => random.between(1_200.0, 7_200.0),
        };

        let price = price(self.family);
        let (context, fresh) = (whole(self.context), whole(fresh));
        let (cache_read, cache_creation) = if self.forgotten { (0, context + fresh) } else { (context, fresh) };
        let usage = Usage { cache_read, cache_creation, output: whole(output), ..Usage::default() };
        self.turn += 1;
        let request = Request {
            at: self.next_at,
            session: self.session,
            turn: self.turn,
            named: self.agent,
            last: u64::from(self.turn) >= self.turns,
            family: self.family,
            cost: workload.scaled(price.cost(&usage)),
            rewrite: workload.scaled(rewrite(&price, cache_read)),
            usage,
            duration,
        };
        let wait = duration + Duration::from_secs_f64(pause);
        self.next_at = self.next_at + wait;
        self.forgotten = wait > CACHE_LIFE;
        self.context += real(fresh) + output;
        if self.context > COMPACTED_FROM {
            self.context = COMPACTED_TO;
            self.forgotten = true;
        }
        request
    }
}

/// What it costs to write `context` tokens into the cache that could have been read from it.
pub(super) fn rewrite(price: &Price, context: u64) -> MicroUsd {
    let written = Usage { cache_creation: context, ..Usage::default() };
    let read = Usage { cache_read: context, ..Usage::default() };
    price.cost(&written) - price.cost(&read)
}

/// See the module's description.
pub(super) const fn price(family: Family) -> Price {
    match family {
        Family::Opus => Price::usd_per_million(5, 25),
        Family::Haiku => Price::usd_per_million(1, 5),
        _ => Price::usd_per_million(3, 15),
    }
}

impl PartialEq for Live {
    fn eq(&self, other: &Self) -> bool {
        self.order() == other.order()
    }
}

impl Eq for Live {}

impl PartialOrd for Live {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Live {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.order().cmp(&other.order())
    }
}

impl Live {
    const fn order(&self) -> (Timestamp, u64) {
        (self.next_at, self.session)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload() -> Workload {
        Workload::new(7, 400, 7, 30.0, MicroUsd::from_usd(2_000.0))
    }

    #[test]
    fn the_week_is_in_order_repeatable_and_costs_what_was_asked() {
        let workload = workload();
        let requests: Vec<Request> = workload.week().collect();
        assert_eq!(requests, workload.week().collect::<Vec<_>>());
        assert!(requests.is_sorted_by_key(|request| request.at));
        assert!(requests.iter().all(|request| request.at >= START && request.at < workload.end()));
        let cost: MicroUsd = requests.iter().map(|request| request.cost).sum();
        assert!((cost.as_usd() - 2_000.0).abs() < 0.1, "{cost}");
    }

    #[test]
    fn days_are_busier_than_nights_and_lengths_have_a_tail() {
        let requests: Vec<Request> = workload().week().collect();
        let in_hour = |hour: i64| requests.iter().filter(|request| request.at.as_secs() / 3600 % 24 == hour).count();
        assert!(in_hour(10) > 3 * in_hour(3));
        let longest = requests.iter().map(|request| request.turn).max().unwrap_or_default();
        let sessions = requests.iter().filter(|request| request.turn == 1).count();
        assert_eq!(sessions, 400);
        assert!(longest as usize > 5 * requests.len() / sessions, "{longest}");
    }

    #[test]
    fn a_cold_cache_costs_more_than_a_warm_one() {
        let rewritten = rewrite(&Price::usd_per_million(5, 25), 100_000);
        // 100,000 tokens at 10 instead of 0.5 dollars a million.
        assert_eq!(rewritten, MicroUsd::from_usd(0.95));
        assert!(workload().week().filter(|request| request.turn == 1).all(|request| request.rewrite == MicroUsd::ZERO));
        assert!(workload().week().any(|request| request.rewrite > request.cost));
    }
}
