//! What the provider says of a subscription: locks, throttles and utilisation.
//!
//! A lock that was learned from a real rejection stands until its reset, whatever a report says meanwhile: a report is
//! about a window or a moment, the rejection was about a request.

use std::time::Duration;

use crate::conversation::{Family, LimitReport, LimitStatus, Window, WindowUse};
use crate::units::Timestamp;

/// The first pause after a throttle that names no reset; it doubles with each further one.
const FIRST_BACK_OFF: Duration = Duration::from_secs(2);
/// The longest pause after throttles.
const LONGEST_BACK_OFF: Duration = Duration::from_mins(5);
/// The pause after a spent window whose reset the provider did not name; doubles up to [`LONGEST_BLIND_LOCK`].
const FIRST_BLIND_LOCK: Duration = Duration::from_mins(1);
/// The longest such pause: then one request finds out.
const LONGEST_BLIND_LOCK: Duration = Duration::from_hours(1);

/// Why a subscription may not be used, or not for some models.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lock {
    /// The models concerned; `None` is all.
    pub family: Option<Family>,
    /// When it ends.
    pub until: Timestamp,
    /// When it began.
    pub since: Timestamp,
    /// For people.
    pub cause: String,
    /// Where it comes from.
    pub source: &'static str,
}

/// The provider's word on one subscription.
#[derive(Clone, Debug, Default)]
pub(super) struct ProviderLimits {
    locks: Vec<Lock>,
    /// Rejections without a reset since the last success.
    strikes: u32,
    windows: Vec<(WindowUse, Timestamp)>,
}

impl ProviderLimits {
    /// Takes note of a rejected request and returns the lock it means.
    pub(super) fn reject(&mut self, now: Timestamp, report: &LimitReport) -> Lock {
        self.note(now, report);
        let family = match report.window {
            Some(Window::SevenDayFamily(family)) => Some(family),
            _ => None,
        };
        let (until, cause) = match (report.window, report.resets_at.filter(|reset| *reset > now)) {
            (Some(window), Some(reset)) => (reset, format!("the provider's {} limit is spent", name(window))),
            (None, Some(reset)) => (reset, "the provider refuses requests until a stated time".to_owned()),
            (Some(window), None) => (
                now + doubled(FIRST_BLIND_LOCK, self.strikes, LONGEST_BLIND_LOCK),
                format!("the provider's {} limit is spent; it named no reset", name(window)),
            ),
            (None, None) => (
                now + doubled(FIRST_BACK_OFF, self.strikes, LONGEST_BACK_OFF),
                "the provider throttles requests".to_owned(),
            ),
        };
        if report.resets_at.is_none_or(|reset| reset <= now) {
            self.strikes = self.strikes.saturating_add(1);
        }
        let lock = Lock { family, until, since: now, cause, source: "rejected request" };
        // A later end wins; an earlier one says nothing about the rejection that is known already.
        match self.locks.iter_mut().find(|known| known.family == family && known.until > now) {
            Some(known) if known.until >= until => return known.clone(),
            Some(known) => *known = Lock { since: known.since, ..lock.clone() },
            None => self.locks.push(lock.clone()),
        }
        lock
    }

    /// Takes note of how full the windows are.
    pub(super) fn note(&mut self, now: Timestamp, report: &LimitReport) {
        self.locks.retain(|lock| lock.until > now);
        let spent = (report.status == LimitStatus::Rejected)
            .then_some(report.window)
            .flatten()
            .map(|window| WindowUse { window, utilization: 1.0, resets_at: report.resets_at });
        let known = report.windows.iter().copied();
        for window in known.chain(spent.filter(|spent| report.windows.iter().all(|known| known.window != spent.window)))
        {
            self.windows.retain(|(known, _)| known.window != window.window);
            self.windows.push((window, now));
        }
    }

    /// A request went through: what was only a passing throttle is over.
    pub(super) fn success(&mut self) {
        self.strikes = 0;
    }

    /// What keeps requests for `family` out now: of several locks the last to end.
    pub(super) fn lock(&self, now: Timestamp, family: Option<Family>) -> Option<&Lock> {
        let concerns = |lock: &&Lock| lock.until > now && (lock.family.is_none() || lock.family == family);
        self.locks.iter().filter(concerns).max_by_key(|lock| lock.until)
    }

    /// The share of a window that is used as the provider sees it; `None` once the window has been reset.
    pub(super) fn utilization(&self, now: Timestamp, window: Window) -> Option<f64> {
        self.windows(now).find(|known| known.window == window).map(|known| known.utilization)
    }

    /// The windows that are known and have not been reset since.
    pub(super) fn windows(&self, now: Timestamp) -> impl Iterator<Item = &WindowUse> {
        self.windows.iter().map(|(window, _)| window).filter(move |window| {
            // Without a reset it is as good as its age; the provider repeats itself with every answer.
            window.resets_at.is_none_or(|reset| reset > now)
        })
    }
}

fn doubled(first: Duration, times: u32, longest: Duration) -> Duration {
    first.saturating_mul(2_u32.saturating_pow(times.min(16))).min(longest)
}

fn name(window: Window) -> String {
    match window {
        Window::FiveHour => "5-hour".to_owned(),
        Window::SevenDay => "weekly".to_owned(),
        Window::SevenDayFamily(family) => format!("weekly {family}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    fn rejected(window: Option<Window>, resets_in: Option<u64>) -> LimitReport {
        LimitReport {
            status: LimitStatus::Rejected,
            window,
            resets_at: resets_in.map(|secs| NOW + Duration::from_secs(secs)),
            windows: Vec::new(),
        }
    }

    #[test]
    fn a_far_reset_is_neither_cut_nor_forgotten() {
        let mut limits = ProviderLimits::default();
        let week = 6 * 24 * 3600;
        limits.reject(NOW, &rejected(Some(Window::SevenDay), Some(week)));
        let allowed = LimitReport { status: LimitStatus::Allowed, ..rejected(Some(Window::FiveHour), None) };
        limits.note(NOW + Duration::from_secs(10), &allowed);
        let later = NOW + Duration::from_secs(week - 1);
        assert_eq!(limits.lock(later, None).map(|lock| lock.until), Some(NOW + Duration::from_secs(week)));
        assert_eq!(limits.lock(NOW + Duration::from_secs(week), None), None);
    }

    #[test]
    fn a_models_limit_concerns_that_model_only() {
        let mut limits = ProviderLimits::default();
        limits.reject(NOW, &rejected(Some(Window::SevenDayFamily(Family::Opus)), Some(60)));
        assert!(limits.lock(NOW, Some(Family::Opus)).is_some());
        assert!(limits.lock(NOW, Some(Family::Sonnet)).is_none());
        assert!(limits.lock(NOW, None).is_none());
    }

    #[test]
    fn throttles_back_off_and_a_success_begins_anew() {
        let mut limits = ProviderLimits::default();
        let mut now = NOW;
        for secs in [2, 4, 8, 16] {
            let lock = limits.reject(now, &rejected(None, None));
            assert_eq!(lock.until.since(now), Duration::from_secs(secs));
            now = lock.until;
        }
        limits.success();
        assert_eq!(limits.reject(now, &rejected(None, None)).until.since(now), Duration::from_secs(2));
        for _ in 0..40 {
            now = limits.reject(now, &rejected(None, None)).until;
        }
        assert_eq!(limits.reject(now, &rejected(None, None)).until.since(now), LONGEST_BACK_OFF);
    }

    #[test]
    fn utilisation_ends_with_its_window() {
        let mut limits = ProviderLimits::default();
        limits.reject(NOW, &rejected(Some(Window::FiveHour), Some(60)));
        assert_eq!(limits.utilization(NOW, Window::FiveHour), Some(1.0));
        assert_eq!(limits.utilization(NOW + Duration::from_secs(60), Window::FiveHour), None);
    }
}
