//! One strategy over one trace: the real pool, a simulated clock, a simulated provider, and between them what the
//! gateway does: up to three attempts on different subscriptions, and a short wait when all is taken.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::Duration;

use crate::conversation::LimitReport;
use crate::pool::{Ask, Effect, Grant, LeaseId, Outcome, Pool, Priority, Refusal, RefusalReason, SessionKey, Spent};
use crate::units::{MicroUsd, Timestamp};

use super::contender::Contender;
use super::fleet::Fleet;
use super::provider::{Answer, Provider, Served};
use super::report::{Sample, StrategyReport, Tally};
use super::trace::{Request, Source};

/// Subscriptions that one request tries.
const ATTEMPTS: u32 = 3;
/// How long a request waits for a place when all are taken.
const PATIENCE: Duration = Duration::from_secs(30);
/// A waiting request asks again this often, for a place can become free at any moment.
const ASKS_AGAIN: Duration = Duration::from_secs(2);
const TICK: Duration = Duration::from_mins(1);
const REBALANCE: Duration = Duration::from_mins(5);
const SAMPLE: Duration = Duration::from_hours(1);

/// What is simulated, whatever the strategy.
pub(super) struct World<'a> {
    pub(super) source: &'a Source,
    pub(super) fleet: &'a Fleet,
    pub(super) seed: u64,
    pub(super) troubles: bool,
    pub(super) rebalancing: bool,
}

/// Something that happens at a known time.
enum Event {
    Sample,
    Finish(Box<Running>),
    LoginRestored(u32),
    Rebalance,
    Tick,
    AskAgain(Box<Waiting>),
}

/// A request that is being served.
struct Running {
    lease: LeaseId,
    subscription: Arc<str>,
    spent: Spent,
    report: LimitReport,
}

/// A request that waits for a place.
struct Waiting {
    request: Request,
    until: Timestamp,
}

/// When an event is due; of several at one time, the first that was planned.
struct Due {
    at: Timestamp,
    number: u64,
    event: Event,
}

/// See the module's description.
struct Engine<'a> {
    world: &'a World<'a>,
    contender: Contender,
    pool: Pool,
    provider: Provider,
    events: BinaryHeap<Reverse<Due>>,
    planned: u64,
    tally: Tally,
    samples: Vec<Sample>,
}

/// Runs one strategy over the whole trace. `progress` hears the share that is done.
pub(super) fn run(world: &World<'_>, contender: Contender, progress: &mut dyn FnMut(f64)) -> StrategyReport {
    let (start, end) = (world.source.start(), world.source.end());
    let mut engine = Engine::new(world, contender);
    let mut requests = world.source.requests().peekable();
    loop {
        let next_request = requests.peek().map(|request| request.at);
        let next_event = engine.events.peek().map(|Reverse(due)| due.at);
        match (next_request, next_event) {
            (Some(asked), due) if due.is_none_or(|due| asked < due) => {
                if let Some(request) = requests.next() {
                    engine.tally.asked += 1;
                    engine.tally.work_asked += request.cost;
                    engine.ask(request.at, Waiting { request, until: request.at + PATIENCE });
                }
            }
            (_, Some(_)) => {
                if let Some(Reverse(due)) = engine.events.pop() {
                    if matches!(due.event, Event::Sample) {
                        progress(due.at.since(start).as_secs_f64() / end.since(start).as_secs_f64());
                    }
                    engine.happen(due.at, due.event);
                }
            }
            (_, None) => break,
        }
    }
    engine.report()
}

impl<'a> Engine<'a> {
    fn new(world: &'a World<'a>, contender: Contender) -> Self {
        let (start, end) = (world.source.start(), world.source.end());
        let mut pool = Pool::new(world.fleet.settings(contender.strategy, world.rebalancing, world.seed), start);
        let provider = Provider::new(world.fleet, world.seed, start, end, world.troubles);
        for (at, member) in (0..).zip(&world.fleet.members) {
            // As a freshly started gateway does: it asks how full the windows are.
            pool.observe(start, &member.id, &provider.poll(at));
        }
        let mut engine = Self {
            world,
            contender,
            pool,
            provider,
            events: BinaryHeap::new(),
            planned: 0,
            tally: Tally::default(),
            samples: Vec::new(),
        };
        engine.plan(start, Event::Sample);
        engine.plan(start + TICK, Event::Tick);
        engine.plan(start + REBALANCE, Event::Rebalance);
        let logins: Vec<_> = engine.provider.logins().collect();
        for (at, member) in logins {
            engine.plan(at, Event::LoginRestored(member));
        }
        engine
    }

    fn plan(&mut self, at: Timestamp, event: Event) {
        self.planned += 1;
        self.events.push(Reverse(Due { at, number: self.planned, event }));
    }

    /// Plans what happens again and again, until the end.
    fn again(&mut self, at: Timestamp, event: Event) {
        if at <= self.world.source.end() {
            self.plan(at, event);
        }
    }

    fn happen(&mut self, now: Timestamp, event: Event) {
        match event {
            Event::Sample => {
                self.sample(now);
                self.again(now + SAMPLE, Event::Sample);
            }
            Event::Finish(running) => {
                let Running { lease, subscription, spent, report } = *running;
                self.pool.observe(now, &subscription, &report);
                self.pool.finish(now, lease, Outcome::Completed, spent);
            }
            Event::LoginRestored(at) => {
                self.pool.restore(now, &self.world.fleet.members[at as usize].id);
            }
            Event::Rebalance => {
                let moved = self.pool.rebalance(now);
                let moved = moved.iter().filter(|effect| matches!(effect, Effect::Moved { .. })).count();
                self.tally.rebalanced += moved as u64;
                self.again(now + REBALANCE, Event::Rebalance);
            }
            Event::Tick => {
                self.pool.tick(now);
                while self.pool.is_behind(now) {
                    self.pool.tick(now);
                }
                self.again(now + TICK, Event::Tick);
            }
            Event::AskAgain(waiting) => self.ask(now, *waiting),
        }
    }

    /// A request asks for an answer; it is served, refused, or asks again later.
    fn ask(&mut self, now: Timestamp, waiting: Waiting) {
        let request = waiting.request;
        let mut tried: Vec<Arc<str>> = Vec::new();
        // Whether the last attempt failed by something that may have passed already.
        let mut passing = false;
        for attempt in 0..ATTEMPTS {
            let grant = match self.acquire(now, &request, &tried) {
                Ok(grant) => grant,
                Err(_) if passing => match self.acquire(now, &request, &[]) {
                    Ok(grant) => grant,
                    Err(refusal) => return self.refused(now, waiting, &refusal),
                },
                Err(refusal) => return self.refused(now, waiting, &refusal),
            };
            let Some(at) = self.world.fleet.position(&grant.subscription) else { return };
            match self.provider.ask(now, at, &request, attempt) {
                Answer::Served(served) => return self.serve(now, &request, &grant, served),
                Answer::Failed(outcome) => {
                    passing = matches!(outcome, Outcome::Unavailable);
                    self.pool.finish(now, grant.lease, outcome, Spent::default());
                    tried.push(grant.subscription);
                }
            }
        }
        self.tally.failed += 1;
    }

    fn acquire(&mut self, now: Timestamp, request: &Request, exclude: &[Arc<str>]) -> Result<Grant, Refusal> {
        let session = match (self.contender.sticky, request.named) {
            (true, true) => SessionKey::Explicit(format!("session {}", request.session).into()),
            (true, false) => SessionKey::Fingerprint(request.session),
            (false, _) => SessionKey::Fingerprint((request.session << 20) + u64::from(request.turn)),
        };
        let granted = self.pool.acquire(
            now,
            &Ask {
                session,
                family: request.family,
                // Who asks does not know what is cached.
                estimated_cost: request.cost + request.rewrite,
                estimated_tokens: request.usage.total_input(),
                priority: Priority::Normal,
                exclude,
                only: None,
                request: None,
            },
        );
        let effects = granted.as_ref().map_or(&[][..], |grant| &grant.effects);
        let rotated = effects.iter().filter(|effect| matches!(effect, Effect::Rotation { .. })).count();
        self.tally.rotated += rotated as u64;
        granted
    }

    fn serve(&mut self, now: Timestamp, request: &Request, grant: &Grant, served: Served) {
        self.tally.served += 1;
        self.tally.work_served += request.cost;
        if served.move_cost > MicroUsd::ZERO {
            self.tally.cold += 1;
            self.tally.move_cost += served.move_cost;
        }
        let running = Running {
            lease: grant.lease,
            subscription: Arc::clone(&grant.subscription),
            spent: Spent { usage: request.usage, cost: served.cost },
            report: served.report,
        };
        self.plan(now + request.duration, Event::Finish(Box::new(running)));
    }

    fn refused(&mut self, now: Timestamp, waiting: Waiting, refusal: &Refusal) {
        let again = match refusal.reason {
            RefusalReason::Busy => Some(now + ASKS_AGAIN),
            _ => refusal.retry_at.map(|retry_at| retry_at.max(now + ASKS_AGAIN)),
        };
        match again.filter(|again| *again <= waiting.until) {
            Some(again) => {
                if waiting.until == waiting.request.at + PATIENCE && now == waiting.request.at {
                    self.tally.waited += 1;
                }
                self.plan(again, Event::AskAgain(Box::new(waiting)));
            }
            None => self.tally.refused += 1,
        }
    }

    fn sample(&mut self, now: Timestamp) {
        let charged: MicroUsd = self.provider.accounts(now).map(|(charged, _)| charged).sum();
        self.samples.push(Sample { at: now, used: charged, refused: self.tally.refused + self.tally.failed });
    }

    fn report(mut self) -> StrategyReport {
        let end = self.world.source.end();
        let accounts: Vec<_> = self.provider.accounts(end).collect();
        let rejections = self.provider.rejections();
        let leaked = self.pool.in_flight() as u64;
        StrategyReport::new(
            self.contender,
            self.world.fleet,
            end.since(self.world.source.start()),
            Tally { leaked, ..self.tally },
            rejections,
            &accounts,
            self.samples,
        )
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}
