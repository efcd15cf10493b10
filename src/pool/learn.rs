//! What happens to a subscription, and what it learns from it.

use crate::conversation::{LimitReport, LimitStatus, Window};
use crate::units::{MicroUsd, Timestamp};

use super::breaker::{Breaker, BreakerChange};
use super::command::{BreakerSettings, Effect, Outcome, Spent};
use super::explain::{Cause, Source};
use super::lease::Lease;
use super::ramp::Ramp;
use super::subscription::{Quarantine, Subscription};
use super::usage::Figures;

impl Subscription {
    /// Takes note of the time: what has passed is announced.
    pub(super) fn advance(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        self.usage.advance(now);
        self.breaker = self.breaker.at(now);
        for lock in self.limits.expire(now) {
            if matches!(lock.window, Some(Window::SevenDayFamily(_))) && !lock.heard {
                effects.push(Effect::Recovered { subscription: self.id(), cause: lock.cause() });
            }
        }
        let lock = self.limits.lock_at(now);
        if lock.is_none()
            && let Some(ended) = self.seen_lock
        {
            self.begin_ramp(1);
            if !ended.throttle && !ended.heard {
                effects.push(Effect::Recovered { subscription: self.id(), cause: ended.cause() });
            }
        }
        self.seen_lock = lock;
    }

    /// Announces a change of the budget's level.
    pub(super) fn announce_level(&mut self, now: Timestamp, figures: &Figures, effects: &mut Vec<Effect>) {
        let level = self.level_at(now, figures);
        if level == self.level {
            return;
        }
        effects.push(Effect::StatusChanged {
            subscription: self.id(),
            from: self.level,
            to: level,
            cause: self.level_cause(now, figures),
        });
        self.level = level;
        self.level_since = now;
    }

    /// The budget's level in words.
    pub(super) fn level_cause(&self, now: Timestamp, figures: &Figures) -> String {
        let week = self.week_use(now, figures);
        let by = if week.source() == Source::Provider { "by the provider's account" } else { "by our own account" };
        format!("{:.1} % of the weekly budget used {by}", week.percent())
    }

    /// A request begins. Returns whether it probes the breaker, and the recovery it belongs to.
    pub(super) fn start(&mut self, now: Timestamp, reserved: MicroUsd, tokens: u64, own_slot: bool) -> (bool, u32) {
        self.in_flight += 1;
        self.own_slots += u32::from(own_slot);
        self.reserved += reserved;
        self.reserved_tokens = self.reserved_tokens.saturating_add(tokens);
        self.starts.note(now, self.settings.capacity.requests_per_minute);
        if let Some(ramp) = &mut self.ramp {
            ramp.start();
        }
        (self.breaker.start(now), self.epoch)
    }

    /// A request ends: what it held is free again, and what it used is recorded.
    pub(super) fn release(&mut self, now: Timestamp, lease: &Lease, answered: bool, spent: &Spent) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.own_slots = self.own_slots.saturating_sub(u32::from(lease.own_slot));
        self.reserved -= lease.reserved;
        self.reserved_tokens = self.reserved_tokens.saturating_sub(lease.reserved_tokens);
        self.lift_hold();
        if let Some(ramp) = &mut self.ramp
            && lease.epoch == self.epoch
        {
            ramp.finish(answered);
            if ramp.allowance() >= self.settings.max_concurrent {
                self.ramp = None;
            }
        }
        self.count(now, spent);
    }

    /// Records what was used, if anything.
    pub(super) fn count(&mut self, now: Timestamp, spent: &Spent) {
        if spent.cost > MicroUsd::ZERO || spent.usage.total() > 0 {
            self.usage.record(now, spent);
            self.last_usage = Some(now);
        }
    }

    /// Learns from how a request ended.
    pub(super) fn learn(
        &mut self,
        now: Timestamp,
        lease: &Lease,
        outcome: Outcome,
        rules: &BreakerSettings,
        effects: &mut Vec<Effect>,
    ) {
        let change = match outcome {
            Outcome::Completed => {
                if self.quarantine.as_ref().is_some_and(|quarantine| quarantine.until <= lease.granted_at) {
                    self.end_quarantine(effects);
                }
                self.limits.succeed(lease.granted_at);
                self.breaker.succeed(lease.probe, rules)
            }
            Outcome::Unavailable | Outcome::BackendFailed => self.breaker.fail(now, lease.probe, rules),
            Outcome::Abandoned | Outcome::ClientError | Outcome::Overloaded => {
                self.breaker.pass(lease.probe);
                BreakerChange::None
            }
            Outcome::Limited(report) => {
                self.breaker.pass(lease.probe);
                self.hear(now, &report);
                self.reject(now, lease.granted_at, &report, effects);
                BreakerChange::None
            }
            Outcome::Unauthenticated { detail } => {
                self.breaker.pass(lease.probe);
                self.quarantine(now, detail, effects);
                BreakerChange::None
            }
        };
        match change {
            BreakerChange::None => {}
            BreakerChange::Opened(until) => effects.push(Effect::BreakerOpened { subscription: self.id(), until }),
            BreakerChange::Closed => {
                // The probes were the first step.
                self.begin_ramp(2);
                let cause = Cause::BreakerOpen.to_string();
                effects.push(Effect::Recovered { subscription: self.id(), cause });
            }
        }
    }

    /// Learns what the provider said beside an answer or when polled.
    pub(super) fn observe(&mut self, now: Timestamp, report: &LimitReport, effects: &mut Vec<Effect>) {
        self.hear(now, report);
        if report.status == LimitStatus::Rejected {
            self.reject(now, now, report, effects);
        }
    }

    /// Notes figures and resets, whatever the verdict.
    pub(super) fn hear(&mut self, now: Timestamp, report: &LimitReport) {
        self.limits.note(now, report);
        let of_windows = report.windows.iter().filter_map(|used| Some((used.window, used.resets_at?)));
        for (window, reset) in of_windows.chain(report.window.zip(report.resets_at)) {
            match window {
                Window::FiveHour => self.usage.anchor_block(now, reset),
                Window::SevenDay => self.usage.anchor_week(now, reset),
                Window::SevenDayFamily(_) => {}
            }
        }
    }

    fn reject(&mut self, now: Timestamp, started_at: Timestamp, report: &LimitReport, effects: &mut Vec<Effect>) {
        let Some(lock) = self.limits.reject(now, started_at, report) else { return };
        let subscription = self.id();
        effects.push(if lock.throttle {
            Effect::Throttled { subscription, until: lock.until }
        } else {
            Effect::LimitReached { subscription, cause: lock.cause(), until: lock.until }
        });
        self.seen_lock = self.limits.lock_at(now);
    }

    fn quarantine(&mut self, now: Timestamp, detail: String, effects: &mut Vec<Effect>) {
        match &mut self.quarantine {
            // Told already. Requests that began before it count once.
            Some(known) if known.until > now => {}
            Some(known) => {
                known.tries += 1;
                known.until = now + Quarantine::pause(known.tries);
                known.detail = detail;
                self.begin_ramp(1);
            }
            None => {
                effects.push(Effect::AuthFailed { subscription: self.id(), cause: detail.clone() });
                let until = now + Quarantine::pause(0);
                self.quarantine = Some(Quarantine { since: now, until, tries: 0, detail });
                self.begin_ramp(1);
            }
        }
    }

    /// The next request may find out whether it is logged in again.
    pub(super) fn look_at_login(&mut self, now: Timestamp) {
        if let Some(known) = &mut self.quarantine {
            known.until = known.until.min(now);
        }
    }

    /// It is logged in again: a request has shown it, or its operator says so.
    pub(super) fn end_quarantine(&mut self, effects: &mut Vec<Effect>) {
        if self.quarantine.take().is_some() {
            self.begin_ramp(1);
            let cause = Cause::Unauthenticated.to_string();
            effects.push(Effect::Recovered { subscription: self.id(), cause });
        }
    }

    /// Its operator says that all is well: forgets quarantine, locks and failures.
    pub(super) fn restore(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        self.end_quarantine(effects);
        self.limits.unlock();
        self.advance(now, effects);
        if self.breaker != Breaker::default() {
            self.breaker = Breaker::default();
            self.begin_ramp(1);
        }
    }

    /// What failed is another one now: failures so far say nothing of it. Returns whether the breaker had cut it off.
    pub(super) fn forget_failures(&mut self, now: Timestamp, effects: &mut Vec<Effect>) -> bool {
        let was_cut_off = !matches!(self.breaker.at(now), Breaker::Closed { .. });
        self.breaker = Breaker::default();
        if was_cut_off {
            self.begin_ramp(1);
            effects.push(Effect::Recovered { subscription: self.id(), cause: Cause::BreakerOpen.to_string() });
        }
        was_cut_off
    }

    pub(super) fn begin_ramp(&mut self, allowance: u32) {
        self.epoch = self.epoch.wrapping_add(1);
        self.ramp = (allowance < self.settings.max_concurrent).then(|| Ramp::new(allowance));
    }
}
