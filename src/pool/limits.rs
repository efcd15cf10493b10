//! What the provider has said of a subscription's limits: how full its windows are, and what is locked until when.
//!
//! A lock comes from a rejected request and ends by time alone. Reports that sound better, for example from a poll,
//! update the figures but never shorten a lock.

use std::time::Duration;

use crate::conversation::{Family, LimitReport, Window, WindowUse};
use crate::units::Timestamp;

use super::usage::{BLOCK, WEEK};

/// The first back-off after a throttle that names no end; each further one in a row is twice as long.
const FIRST_BACK_OFF: Duration = Duration::from_secs(5);
/// No back-off is longer than this.
const LONGEST_BACK_OFF: Duration = Duration::from_mins(5);
/// No window is longer than a week, so a reset further away than this is a mistake and is cut.
const FURTHEST_RESET: Duration = Duration::from_hours(8 * 24);

/// Model families, in the order of their bits in a [`FamilyMask`].
pub(super) const FAMILIES: [Family; 6] =
    [Family::Opus, Family::Sonnet, Family::Haiku, Family::Fable, Family::Mythos, Family::Other];

/// A set of model families.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct FamilyMask(u8);

impl FamilyMask {
    #[cfg(test)]
    pub(super) const NONE: Self = Self(0);

    pub(super) fn contains(self, family: Family) -> bool {
        self.0 & (1 << family_index(family)) != 0
    }

    fn insert(&mut self, family: Family) {
        self.0 |= 1 << family_index(family);
    }
}

const fn family_index(family: Family) -> usize {
    match family {
        Family::Opus => 0,
        Family::Sonnet => 1,
        Family::Haiku => 2,
        Family::Fable => 3,
        Family::Mythos => 4,
        Family::Other => 5,
    }
}

/// A time during which the provider lets nothing pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lock {
    /// The window that is spent; `None` if the provider did not say which.
    pub(super) window: Option<Window>,
    /// When it was learned.
    pub(super) since: Timestamp,
    /// When it ends.
    pub(super) until: Timestamp,
    /// Whether it is only a back-off after a throttle.
    pub(super) throttle: bool,
    /// Whether another replica has learned and announced it.
    pub(super) heard: bool,
}

impl Lock {
    /// What to call it in logs.
    pub(super) fn cause(&self) -> String {
        let cause = match self.window {
            _ if self.throttle => "throttled by the provider".to_owned(),
            Some(window) => format!("{} limit of the provider", window_name(window)),
            None => "limit of the provider".to_owned(),
        };
        if self.heard { format!("{cause}, as another replica was told") } else { cause }
    }
}

/// A window's name as the provider writes it.
pub(super) fn window_name(window: Window) -> String {
    match window {
        Window::FiveHour => "five_hour".to_owned(),
        Window::SevenDay => "seven_day".to_owned(),
        Window::SevenDayFamily(family) => format!("seven_day_{family}"),
    }
}

/// How full a window was when the provider last said so.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Reported {
    /// Which window.
    pub(super) window: Window,
    /// 0.0 to 1.0, sometimes beyond.
    pub(super) utilization: f64,
    /// When the provider says it resets.
    pub(super) resets_at: Option<Timestamp>,
    /// When it said so.
    pub(super) at: Timestamp,
}

impl Reported {
    /// Until when the figure means anything.
    pub(super) fn expires_at(&self) -> Timestamp {
        self.resets_at.unwrap_or(self.at + window_length(self.window))
    }
}

const fn window_length(window: Window) -> Duration {
    match window {
        Window::FiveHour => BLOCK,
        Window::SevenDay | Window::SevenDayFamily(_) => WEEK,
    }
}

/// Places for what belongs to one window: 5 hours, 7 days, 7 days a family, and one for what names no window.
const UNNAMED: usize = 8;
const PLACES: usize = 9;

const fn place(window: Window) -> usize {
    match window {
        Window::FiveHour => 0,
        Window::SevenDay => 1,
        Window::SevenDayFamily(family) => 2 + family_index(family),
    }
}

/// The provider's word on one subscription.
#[derive(Clone, Debug, Default)]
pub(super) struct ProviderLimits {
    reported: [Option<Reported>; PLACES],
    locks: [Option<Lock>; PLACES],
    /// The running or last back-off after a throttle.
    throttle: Option<Lock>,
    /// Throttles in a row.
    throttles: u32,
}

impl ProviderLimits {
    /// Notes how full the windows of `report` are, whatever its verdict.
    pub(super) fn note(&mut self, now: Timestamp, report: &LimitReport) {
        for &WindowUse { window, utilization, resets_at } in &report.windows {
            if utilization.is_finite() {
                let resets_at = resets_at.filter(|reset| *reset > now);
                self.reported[place(window)] =
                    Some(Reported { window, utilization: utilization.max(0.0), resets_at, at: now });
            }
        }
    }

    /// Locks what `report` rejects. `started_at` is when the rejected request began: of many requests that run into
    /// the same throttle, only those that began after its end make the next back-off longer.
    ///
    /// Returns the lock if it is new or ends later than what was known.
    pub(super) fn reject(&mut self, now: Timestamp, started_at: Timestamp, report: &LimitReport) -> Option<Lock> {
        match self.reset_of(now, report) {
            Some(reset) => self.lock(Lock {
                window: report.window,
                since: now,
                until: reset.min(now + FURTHEST_RESET),
                throttle: false,
                heard: false,
            }),
            None => self.back_off(now, started_at, report.window),
        }
    }

    fn reset_of(&self, now: Timestamp, report: &LimitReport) -> Option<Timestamp> {
        let of_window = || {
            let reported = self.reported[place(report.window?)]?;
            // A window that is nearly empty cannot be the one that ran out.
            reported.resets_at.filter(|_| reported.utilization >= 0.9)
        };
        report.resets_at.or_else(of_window).filter(|reset| *reset > now)
    }

    fn lock(&mut self, lock: Lock) -> Option<Lock> {
        let held = &mut self.locks[lock.window.map_or(UNNAMED, place)];
        match held {
            Some(known) if known.until >= lock.until => return None,
            // Still the same lock: it began when it was first learned.
            Some(known) if known.until > lock.since => known.until = lock.until,
            _ => *held = Some(lock),
        }
        *held
    }

    /// `lock`, just set, was learned by another replica. One that was known here and only ends later now stays our own.
    pub(super) fn note_heard(&mut self, now: Timestamp, lock: Lock) {
        let held = if lock.throttle { &mut self.throttle } else { &mut self.locks[lock.window.map_or(UNNAMED, place)] };
        if let Some(held) = held.as_mut().filter(|held| held.since == now) {
            held.heard = true;
        }
    }

    fn back_off(&mut self, now: Timestamp, started_at: Timestamp, window: Option<Window>) -> Option<Lock> {
        if self.throttle.is_some_and(|last| started_at < last.until) {
            return None;
        }
        let doublings = self.throttles.min(16);
        self.throttles = self.throttles.saturating_add(1);
        let pause = (FIRST_BACK_OFF * 2_u32.pow(doublings)).min(LONGEST_BACK_OFF);
        let lock = Lock { window, since: now, until: now + pause, throttle: true, heard: false };
        self.throttle = Some(lock);
        Some(lock)
    }

    /// A request that began at `started_at` was answered: throttles before it are over.
    pub(super) fn succeed(&mut self, started_at: Timestamp) {
        if self.throttle.is_none_or(|last| started_at >= last.until) {
            self.throttle = None;
            self.throttles = 0;
        }
    }

    /// The lock on the whole subscription at `now`: of several, the one that ends last.
    pub(super) fn lock_at(&self, now: Timestamp) -> Option<Lock> {
        let [five_hour, seven_day, .., unnamed] = self.locks;
        [five_hour, seven_day, unnamed, self.whole_throttle()]
            .into_iter()
            .flatten()
            .filter(|lock| lock.until > now)
            .max_by_key(|lock| lock.until)
    }

    /// The lock on one family at `now`.
    pub(super) fn family_lock_at(&self, now: Timestamp, family: Family) -> Option<Lock> {
        let window = Window::SevenDayFamily(family);
        let throttle = self.throttle.filter(|throttle| throttle.window == Some(window));
        [self.locks[place(window)], throttle]
            .into_iter()
            .flatten()
            .filter(|lock| lock.until > now)
            .max_by_key(|lock| lock.until)
    }

    /// The families that are locked at `now`.
    pub(super) fn locked_families(&self, now: Timestamp) -> FamilyMask {
        let mut mask = FamilyMask::default();
        for family in FAMILIES {
            if self.family_lock_at(now, family).is_some() {
                mask.insert(family);
            }
        }
        mask
    }

    /// Forgets the locks that have ended by `now`, and returns them.
    pub(super) fn expire(&mut self, now: Timestamp) -> impl Iterator<Item = Lock> + use<> {
        let mut ended = [None; PLACES];
        for (lock, ended) in self.locks.iter_mut().zip(&mut ended) {
            *ended = lock.take_if(|lock| lock.until <= now);
        }
        ended.into_iter().flatten()
    }

    /// Forgets every lock and throttle.
    pub(super) fn unlock(&mut self) {
        self.locks = [None; PLACES];
        self.throttle = None;
        self.throttles = 0;
    }

    /// The last figure for a window, if it still means anything at `now`.
    pub(super) fn reported_at(&self, now: Timestamp, window: Window) -> Option<Reported> {
        self.reported[place(window)].filter(|reported| reported.expires_at() > now)
    }

    /// Every figure that means anything at `now`.
    pub(super) fn all_reported_at(&self, now: Timestamp) -> impl Iterator<Item = Reported> {
        self.reported.iter().flatten().copied().filter(move |reported| reported.expires_at() > now)
    }

    /// Every lock at `now`.
    pub(super) fn all_locks_at(&self, now: Timestamp) -> impl Iterator<Item = Lock> {
        self.locks.iter().chain([&self.throttle]).flatten().copied().filter(move |lock| lock.until > now)
    }

    /// The next instant at which time alone changes anything.
    pub(super) fn next_change(&self, now: Timestamp) -> Option<Timestamp> {
        let locks = self.all_locks_at(now).map(|lock| lock.until);
        let figures = self.all_reported_at(now).map(|reported| reported.expires_at());
        locks.chain(figures).min()
    }

    /// A throttle locks the whole subscription unless it names a family.
    fn whole_throttle(&self) -> Option<Lock> {
        self.throttle.filter(|throttle| !matches!(throttle.window, Some(Window::SevenDayFamily(_))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conversation::LimitStatus;

    fn second(second: i64) -> Timestamp {
        Timestamp::from_secs(second)
    }

    fn rejected(window: Option<Window>, resets_at: Option<i64>) -> LimitReport {
        LimitReport { status: LimitStatus::Rejected, window, resets_at: resets_at.map(second), windows: Vec::new() }
    }

    #[test]
    fn a_rejection_locks_until_its_reset() {
        let mut limits = ProviderLimits::default();
        let lock = limits.reject(second(0), second(0), &rejected(Some(Window::FiveHour), Some(900)));
        assert_eq!(lock.map(|lock| lock.until), Some(second(900)));
        assert!(limits.lock_at(second(899)).is_some());
        assert!(limits.lock_at(second(900)).is_none());
        // The same news again is no news; the earlier since stays when the end moves.
        assert_eq!(limits.reject(second(5), second(0), &rejected(Some(Window::FiveHour), Some(900))), None);
        let moved = limits.reject(second(6), second(0), &rejected(Some(Window::FiveHour), Some(950)));
        assert_eq!(moved.map(|lock| (lock.since, lock.until)), Some((second(0), second(950))));
        assert_eq!(limits.expire(second(950)).count(), 1);
        assert_eq!(limits.expire(second(950)).count(), 0);
    }

    #[test]
    fn of_two_locks_the_later_end_counts() {
        let mut limits = ProviderLimits::default();
        limits.reject(second(0), second(0), &rejected(Some(Window::FiveHour), Some(900)));
        limits.reject(second(1), second(0), &rejected(Some(Window::SevenDay), Some(9000)));
        assert_eq!(limits.lock_at(second(10)).and_then(|lock| lock.window), Some(Window::SevenDay));
        assert_eq!(limits.lock_at(second(8999)).map(|lock| lock.until), Some(second(9000)));
    }

    #[test]
    fn a_family_limit_locks_the_family_only() {
        let mut limits = ProviderLimits::default();
        limits.reject(second(0), second(0), &rejected(Some(Window::SevenDayFamily(Family::Opus)), Some(900)));
        assert!(limits.lock_at(second(1)).is_none());
        assert!(limits.family_lock_at(second(1), Family::Opus).is_some());
        assert!(limits.family_lock_at(second(1), Family::Haiku).is_none());
        assert!(limits.locked_families(second(1)).contains(Family::Opus));
        assert!(!limits.locked_families(second(1)).contains(Family::Sonnet));
        assert_eq!(limits.locked_families(second(900)), FamilyMask::default());
    }

    #[test]
    fn throttles_in_a_row_back_off_twice_as_long_up_to_five_minutes() {
        let mut limits = ProviderLimits::default();
        let mut now = second(0);
        for seconds in [5, 10, 20, 40, 80, 160, 300, 300] {
            let lock = limits.reject(now, now, &rejected(None, None));
            assert_eq!(lock.map(|lock| lock.until), Some(now + Duration::from_secs(seconds)));
            // Others that ran into the same throttle do not count again.
            assert_eq!(limits.reject(now, now, &rejected(None, None)), None);
            now = now + Duration::from_secs(seconds);
        }
        // A success that began before the throttle ended says nothing; one after it starts afresh.
        limits.succeed(second(0));
        assert_eq!(limits.throttles, 8);
        limits.succeed(now);
        let lock = limits.reject(now, now, &rejected(None, None));
        assert_eq!(lock.map(|lock| lock.until), Some(now + Duration::from_secs(5)));
    }

    #[test]
    fn a_reset_in_the_past_is_a_throttle_and_a_far_one_is_cut() {
        let mut limits = ProviderLimits::default();
        let lock = limits.reject(second(1000), second(1000), &rejected(Some(Window::FiveHour), Some(999)));
        assert_eq!(lock.map(|lock| lock.until), Some(second(1005)));
        let lock = limits.reject(second(1000), second(1000), &rejected(None, Some(9_000_000_000)));
        assert_eq!(lock.map(|lock| lock.until), Some(second(1000) + FURTHEST_RESET));
    }

    #[test]
    fn a_rejection_without_a_reset_takes_it_from_what_is_known_of_the_full_window() {
        let mut limits = ProviderLimits::default();
        let windows = vec![WindowUse { window: Window::FiveHour, utilization: 0.97, resets_at: Some(second(700)) }];
        limits.note(second(0), &LimitReport { windows, ..rejected(None, None) });
        let lock = limits.reject(second(1), second(0), &rejected(Some(Window::FiveHour), None));
        assert_eq!(lock.map(|lock| lock.until), Some(second(700)));
    }

    #[test]
    fn figures_expire_at_their_reset() {
        let mut limits = ProviderLimits::default();
        let windows = vec![
            WindowUse { window: Window::FiveHour, utilization: 0.5, resets_at: Some(second(700)) },
            WindowUse { window: Window::SevenDay, utilization: f64::NAN, resets_at: None },
        ];
        limits.note(second(0), &LimitReport { windows, ..rejected(None, None) });
        assert!(limits.reported_at(second(699), Window::FiveHour).is_some());
        assert_eq!(limits.next_change(second(0)), Some(second(700)));
        assert!(limits.reported_at(second(700), Window::FiveHour).is_none());
        assert!(limits.reported_at(second(0), Window::SevenDay).is_none());
    }
}
