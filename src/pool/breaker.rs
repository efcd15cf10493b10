//! The circuit breaker of one subscription.
//!
//! Closed: requests pass. Open, after a number of consecutive failures: none do. Half-open, after a while: one at a time
//! does, and a number of successes close it again, one failure opens it.

use super::BreakerSettings;
use crate::units::Timestamp;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Breaker {
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed { failures: u32 },
    Open { since: Timestamp },
    HalfOpen { successes: u32 },
}

impl Default for State {
    fn default() -> Self {
        Self::Closed { failures: 0 }
    }
}

impl Breaker {
    /// Whether a request may pass while `in_flight` others run. If not: since when, and until when at least.
    pub(super) fn admits(
        &self,
        now: Timestamp,
        in_flight: u32,
        settings: &BreakerSettings,
    ) -> Result<(), (Timestamp, Timestamp)> {
        match self.state {
            State::Open { since } if now < since + settings.reset_after => Err((since, since + settings.reset_after)),
            State::Open { since } if in_flight > 0 => Err((since, now)),
            State::HalfOpen { .. } if in_flight > 0 => Err((now, now)),
            _ => Ok(()),
        }
    }

    pub(super) fn success(&mut self, settings: &BreakerSettings) {
        self.state = match self.state {
            State::Closed { .. } => State::Closed { failures: 0 },
            State::Open { .. } => half_open_after(1, settings),
            State::HalfOpen { successes } => half_open_after(successes + 1, settings),
        };
    }

    pub(super) fn failure(&mut self, now: Timestamp, settings: &BreakerSettings) {
        self.state = match self.state {
            State::Closed { failures } if failures + 1 < settings.failure_threshold => {
                State::Closed { failures: failures + 1 }
            }
            _ => State::Open { since: now },
        };
    }

    pub(super) fn name(&self, now: Timestamp, settings: &BreakerSettings) -> &'static str {
        match self.state {
            State::Closed { .. } => "closed",
            State::Open { since } if now < since + settings.reset_after => "open",
            State::Open { .. } | State::HalfOpen { .. } => "half_open",
        }
    }
}

fn half_open_after(successes: u32, settings: &BreakerSettings) -> State {
    if successes >= settings.success_threshold { State::Closed { failures: 0 } } else { State::HalfOpen { successes } }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
    const SETTINGS: BreakerSettings =
        BreakerSettings { failure_threshold: 5, success_threshold: 2, reset_after: Duration::from_secs(300) };

    #[test]
    fn five_failures_open_it_and_two_successes_close_it() {
        let mut breaker = Breaker::default();
        for _ in 0..4 {
            breaker.failure(NOW, &SETTINGS);
            assert!(breaker.admits(NOW, 3, &SETTINGS).is_ok());
        }
        breaker.failure(NOW, &SETTINGS);
        assert_eq!(breaker.admits(NOW, 0, &SETTINGS), Err((NOW, NOW + Duration::from_secs(300))));
        let later = NOW + Duration::from_secs(300);
        assert_eq!(breaker.name(later, &SETTINGS), "half_open");
        assert!(breaker.admits(later, 0, &SETTINGS).is_ok() && breaker.admits(later, 1, &SETTINGS).is_err());
        breaker.success(&SETTINGS);
        assert!(breaker.admits(later, 1, &SETTINGS).is_err());
        breaker.success(&SETTINGS);
        assert!(breaker.admits(later, 1, &SETTINGS).is_ok());
    }

    #[test]
    fn a_success_between_failures_begins_the_count_anew_and_a_failed_probe_opens_again() {
        let mut breaker = Breaker::default();
        for _ in 0..20 {
            breaker.failure(NOW, &SETTINGS);
            breaker.success(&SETTINGS);
        }
        assert_eq!(breaker.name(NOW, &SETTINGS), "closed");
        for _ in 0..5 {
            breaker.failure(NOW, &SETTINGS);
        }
        let later = NOW + Duration::from_secs(301);
        breaker.failure(later, &SETTINGS);
        assert_eq!(breaker.name(later, &SETTINGS), "open");
    }
}
