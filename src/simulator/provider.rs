//! A simulated provider: it knows each subscription's true limits, remembers whose conversations are in its cache, and
//! has bad moments. What it does depends on the time and on what is asked of it only, never on luck at the moment of
//! asking, so that strategies meet the same provider.
//!
//! - A week resets at its fixed time, a 5-hour window begins with its first use. What a request costs counts when it
//!   begins; once a window is used up, requests are rejected with its true reset.
//! - More requests in a minute than [`REQUESTS_A_MINUTE`] are throttled until the minute is over, without a reset.
//! - Each subscription is throttled for no visible reason about twice a week for some 45 seconds, fails for ten minutes
//!   about once a week, and loses its login for three hours once in five weeks.
//! - The whole provider is overloaded about three times a week for some ten minutes, and then fails every other
//!   request.
//! - A session's conversation is warm where it was served within the last hour, at the last two places at most.

use std::collections::HashMap;
use std::time::Duration;

use crate::conversation::{LimitReport, LimitStatus, Window, WindowUse};
use crate::pool::Outcome;
use crate::units::{MicroUsd, Timestamp};

use super::fleet::{Fleet, MEMBER_STREAMS, Member, WEEK};
use super::random::Random;
use super::trace::Request;
use super::workload::CACHE_LIFE;

/// More than these are throttled.
const REQUESTS_A_MINUTE: u32 = 50;
const BLOCK: Duration = Duration::from_hours(5);
const MINUTE_MS: i64 = 60_000;

/// What the provider answers to a request.
pub(super) enum Answer {
    /// It serves it.
    Served(Served),
    /// It does not.
    Failed(Outcome),
}

/// See [`Answer::Served`].
pub(super) struct Served {
    /// What counts against the limits.
    pub(super) cost: MicroUsd,
    /// What of it was for writing a conversation anew that is cached elsewhere.
    pub(super) move_cost: MicroUsd,
    /// What it says of the limits.
    pub(super) report: LimitReport,
}

/// How often the provider said no.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Rejections {
    pub(super) limits: u64,
    pub(super) throttles: u64,
    pub(super) failures: u64,
}

/// The provider.
pub(super) struct Provider {
    members: Vec<Account>,
    /// Where sessions are warm.
    warm: HashMap<u64, [Option<Warm>; 2]>,
    /// When everything is overloaded.
    overloads: Vec<Episode>,
    rejections: Rejections,
}

#[derive(Clone, Copy)]
struct Warm {
    member: u32,
    until: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    Throttled,
    Failing,
    LoggedOut,
    Overloaded,
}

#[derive(Clone, Copy, Debug)]
struct Episode {
    start: Timestamp,
    end: Timestamp,
    trouble: Trouble,
}

/// A subscription as the provider sees it.
struct Account {
    week_budget: MicroUsd,
    block_budget: MicroUsd,
    week_reset: Timestamp,
    week_used: MicroUsd,
    block_end: Timestamp,
    block_used: MicroUsd,
    /// The minute that is counted, and requests in it.
    minute: (i64, u32),
    episodes: Vec<Episode>,
    charged: MicroUsd,
    expired: MicroUsd,
}

impl Provider {
    pub(super) fn new(fleet: &Fleet, seed: u64, start: Timestamp, end: Timestamp, troubles: bool) -> Self {
        let mut overloads = Vec::new();
        let mut random = Random::new(seed, MEMBER_STREAMS - 1);
        if troubles {
            draw(&mut overloads, &mut random, (start, end), Trouble::Overloaded, 3.0, Duration::from_mins(10));
        }
        let account = |(number, member): (u64, &Member)| Account {
            week_budget: member.week_budget,
            block_budget: member.block_budget,
            week_reset: member.first_reset,
            week_used: member.used_before,
            block_end: start,
            block_used: MicroUsd::ZERO,
            minute: (0, 0),
            episodes: if troubles { episodes(seed, number, start, end) } else { Vec::new() },
            charged: MicroUsd::ZERO,
            expired: MicroUsd::ZERO,
        };
        let members = (0..).zip(&fleet.members).map(account).collect();
        Self { members, warm: HashMap::new(), overloads, rejections: Rejections::default() }
    }

    /// When each subscription can log in again: its operator sees to it then.
    pub(super) fn logins(&self) -> impl Iterator<Item = (Timestamp, u32)> {
        (0..).zip(&self.members).flat_map(|(at, account)| {
            let lost = account.episodes.iter().filter(|episode| episode.trouble == Trouble::LoggedOut);
            lost.map(move |episode| (episode.end, at))
        })
    }

    /// A request begins.
    pub(super) fn ask(&mut self, now: Timestamp, at: u32, request: &Request, attempt: u32) -> Answer {
        let account = &mut self.members[at as usize];
        account.advance(now);
        let overloaded = trouble_at(&self.overloads, now).is_some() && every_other(request, attempt);
        if let Err(outcome) = account.admit(now, overloaded) {
            match &outcome {
                Outcome::Limited(report) if report.resets_at.is_some() => self.rejections.limits += 1,
                Outcome::Limited(_) => self.rejections.throttles += 1,
                _ => self.rejections.failures += 1,
            }
            return Answer::Failed(outcome);
        }
        let places = self.warm.get(&request.session).copied().unwrap_or_default();
        let is_warm = places.into_iter().flatten().any(|warm| warm.member == at && warm.until >= now);
        let move_cost = if is_warm { MicroUsd::ZERO } else { request.rewrite };
        let cost = request.cost + move_cost;
        self.remember(now + request.duration, at, request, places);
        let account = &mut self.members[at as usize];
        account.charge(now, cost);
        Answer::Served(Served { cost, move_cost, report: account.report(LimitStatus::Allowed, None) })
    }

    fn remember(&mut self, answered: Timestamp, at: u32, request: &Request, [first, second]: [Option<Warm>; 2]) {
        if request.last {
            self.warm.remove(&request.session);
            return;
        }
        let here = Some(Warm { member: at, until: answered + CACHE_LIFE });
        let elsewhere = if first.is_some_and(|first| first.member == at) { second } else { first };
        self.warm.insert(request.session, [here, elsewhere]);
    }

    /// What each subscription was charged, and what expired unused at its resets before `now`.
    pub(super) fn accounts(&mut self, now: Timestamp) -> impl Iterator<Item = (MicroUsd, MicroUsd)> {
        self.members.iter_mut().map(move |account| {
            account.advance(now);
            (account.charged, account.expired)
        })
    }

    pub(super) fn rejections(&self) -> Rejections {
        self.rejections
    }

    /// What a poll of a subscription's use tells.
    pub(super) fn poll(&self, at: u32) -> LimitReport {
        self.members[at as usize].report(LimitStatus::Allowed, None)
    }
}

impl Account {
    fn advance(&mut self, now: Timestamp) {
        while now >= self.week_reset {
            self.expired += (self.week_budget - self.week_used).max(MicroUsd::ZERO);
            self.week_used = MicroUsd::ZERO;
            self.week_reset = self.week_reset + WEEK;
        }
        if now >= self.block_end {
            self.block_used = MicroUsd::ZERO;
        }
        let minute = now.as_millis().div_euclid(MINUTE_MS);
        if minute != self.minute.0 {
            self.minute = (minute, 0);
        }
    }

    fn admit(&mut self, now: Timestamp, overloaded: bool) -> Result<(), Outcome> {
        let throttled = || Outcome::Limited(rejection(None, None, Vec::new()));
        match trouble_at(&self.episodes, now) {
            Some(Trouble::LoggedOut) => {
                return Err(Outcome::Unauthenticated { detail: "the login has expired".to_owned() });
            }
            Some(Trouble::Failing) => return Err(Outcome::Unavailable),
            Some(Trouble::Throttled) => return Err(throttled()),
            Some(Trouble::Overloaded) | None => {}
        }
        if overloaded {
            return Err(Outcome::Unavailable);
        }
        let rejected = if self.week_used >= self.week_budget {
            Window::SevenDay
        } else if now < self.block_end && self.block_used >= self.block_budget {
            Window::FiveHour
        } else {
            self.minute.1 += 1;
            return if self.minute.1 > REQUESTS_A_MINUTE { Err(throttled()) } else { Ok(()) };
        };
        Err(Outcome::Limited(self.report(LimitStatus::Rejected, Some(rejected))))
    }

    fn charge(&mut self, now: Timestamp, cost: MicroUsd) {
        if now >= self.block_end {
            self.block_end = now + BLOCK;
        }
        self.block_used += cost;
        self.week_used += cost;
        self.charged += cost;
    }

    fn report(&self, status: LimitStatus, window: Option<Window>) -> LimitReport {
        // Whole percent, as the provider tells them.
        let percent = |used: MicroUsd, of: MicroUsd| (used.as_usd() / of.as_usd() * 100.0).floor() / 100.0;
        let week = WindowUse {
            window: Window::SevenDay,
            utilization: percent(self.week_used, self.week_budget),
            resets_at: Some(self.week_reset),
        };
        let mut windows = vec![week];
        if self.block_used > MicroUsd::ZERO {
            windows.push(WindowUse {
                window: Window::FiveHour,
                utilization: percent(self.block_used, self.block_budget),
                resets_at: Some(self.block_end),
            });
        }
        let resets_at = match window {
            Some(Window::SevenDay) => Some(self.week_reset),
            Some(Window::FiveHour) => Some(self.block_end),
            _ => None,
        };
        LimitReport { status, window, resets_at, windows }
    }
}

fn rejection(window: Option<Window>, resets_at: Option<Timestamp>, windows: Vec<WindowUse>) -> LimitReport {
    LimitReport { status: LimitStatus::Rejected, window, resets_at, windows }
}

fn every_other(request: &Request, attempt: u32) -> bool {
    Random::new(request.session, (u64::from(request.turn) << 8) + u64::from(attempt)).happens(0.5)
}

fn trouble_at(episodes: &[Episode], now: Timestamp) -> Option<Trouble> {
    // There are only a few, and hardly any overlap: the first that holds.
    episodes.iter().find(|episode| episode.start <= now && now < episode.end).map(|episode| episode.trouble)
}

fn episodes(seed: u64, member: u64, start: Timestamp, end: Timestamp) -> Vec<Episode> {
    let mut random = Random::new(seed, MEMBER_STREAMS + 2 * member + 1);
    let mut episodes = Vec::new();
    let within = (start, end);
    draw(&mut episodes, &mut random, within, Trouble::LoggedOut, 0.2, Duration::from_hours(3));
    draw(&mut episodes, &mut random, within, Trouble::Failing, 1.0, Duration::from_mins(10));
    draw(&mut episodes, &mut random, within, Trouble::Throttled, 2.0, Duration::from_secs(45));
    episodes
}

/// Draws when a trouble comes, `a_week` times a week on average, and how long it stays.
fn draw(
    episodes: &mut Vec<Episode>,
    random: &mut Random,
    (start, end): (Timestamp, Timestamp),
    trouble: Trouble,
    a_week: f64,
    length: Duration,
) {
    let mut next = start;
    loop {
        next = next + WEEK.mul_f64(random.exponential(1.0 / a_week));
        if next >= end {
            return;
        }
        let length = length.mul_f64(random.between(0.5, 1.5));
        episodes.push(Episode { start: next, end: next + length, trouble });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conversation::{Family, Usage};

    const NOW: Timestamp = super::super::workload::START;

    fn request(session: u64, cost: f64, rewrite: f64) -> Request {
        Request {
            at: NOW,
            session,
            turn: 2,
            named: true,
            last: false,
            family: Family::Opus,
            cost: MicroUsd::from_usd(cost),
            rewrite: MicroUsd::from_usd(rewrite),
            usage: Usage::default(),
            duration: Duration::ZERO,
        }
    }

    fn provider() -> Provider {
        let fleet = Fleet::new(1, 2, 0.0, NOW, Some(MicroUsd::from_usd(100.0)));
        Provider::new(&fleet, 1, NOW, NOW + WEEK, false)
    }

    fn served(answer: Answer) -> Served {
        match answer {
            Answer::Served(served) => served,
            Answer::Failed(outcome) => panic!("{outcome:?}"),
        }
    }

    #[test]
    fn a_move_pays_for_a_cold_cache_and_the_way_back_does_not() {
        let mut provider = provider();
        let mut ask = |at, hours: u64| {
            served(provider.ask(NOW + Duration::from_hours(hours), at, &request(9, 0.1, 0.4), 0)).move_cost.as_usd()
        };
        assert!((ask(0, 0) - 0.4).abs() < 1e-9);
        assert!(ask(0, 1).abs() < 1e-9);
        assert!((ask(1, 1) - 0.4).abs() < 1e-9);
        assert!(ask(0, 2).abs() < 1e-9);
        assert!((ask(0, 4) - 0.4).abs() < 1e-9);
    }

    #[test]
    fn a_full_block_is_rejected_until_its_true_end() {
        let mut provider = provider();
        served(provider.ask(NOW, 0, &request(1, 20.0, 0.0), 0));
        let later = NOW + Duration::from_hours(4);
        let Answer::Failed(Outcome::Limited(report)) = provider.ask(later, 0, &request(1, 1.0, 0.0), 0) else {
            panic!("served");
        };
        assert_eq!((report.window, report.resets_at), (Some(Window::FiveHour), Some(NOW + BLOCK)));
        assert_eq!(provider.rejections(), Rejections { limits: 1, ..Rejections::default() });
        served(provider.ask(NOW + BLOCK, 0, &request(1, 1.0, 0.0), 0));
        let charged: MicroUsd = provider.accounts(NOW + BLOCK).map(|(charged, _)| charged).sum();
        assert_eq!(charged, MicroUsd::from_usd(21.0));
    }

    #[test]
    fn too_many_in_a_minute_are_throttled_until_it_is_over() {
        let mut provider = provider();
        let mut ask = |seconds| provider.ask(NOW + Duration::from_secs(seconds), 0, &request(1, 0.0, 0.0), 0);
        for _ in 0..REQUESTS_A_MINUTE {
            served(ask(59));
        }
        assert!(matches!(ask(59), Answer::Failed(Outcome::Limited(report)) if report.resets_at.is_none()));
        served(ask(60));
    }
}
