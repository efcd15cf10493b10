//! The circuit breaker of one subscription: after too many failures in a row it is left alone for a while, then
//! tried with one request at a time.

use crate::units::Timestamp;

use super::command::BreakerSettings;

/// Whether requests may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Breaker {
    /// Yes.
    Closed {
        /// Failures since the last success.
        failures: u32,
    },
    /// No.
    Open {
        /// When it opened.
        since: Timestamp,
        /// When a probe may pass.
        until: Timestamp,
    },
    /// One at a time.
    HalfOpen {
        /// When it became so.
        since: Timestamp,
        /// Probes that succeeded.
        successes: u32,
        /// Whether a probe is on its way.
        probing: bool,
    },
}

/// What a verdict on a request did to the breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BreakerChange {
    /// Nothing that others need to know.
    None,
    /// It cut the subscription off until then.
    Opened(Timestamp),
    /// It lets everything pass again.
    Closed,
}

impl Default for Breaker {
    fn default() -> Self {
        Self::Closed { failures: 0 }
    }
}

impl Breaker {
    /// The state at `now`: time alone turns open into half-open.
    pub(super) fn at(self, now: Timestamp) -> Self {
        match self {
            Self::Open { until, .. } if now >= until => Self::HalfOpen { since: until, successes: 0, probing: false },
            state => state,
        }
    }

    /// A request starts. Returns whether it is a probe.
    pub(super) fn start(&mut self, now: Timestamp) -> bool {
        *self = self.at(now);
        let Self::HalfOpen { probing, .. } = self else { return false };
        *probing = true;
        true
    }

    /// A request succeeded.
    pub(super) fn succeed(&mut self, probe: bool, rules: &BreakerSettings) -> BreakerChange {
        match self {
            Self::Closed { failures } => *failures = 0,
            Self::HalfOpen { successes, probing, .. } if probe => {
                *probing = false;
                *successes += 1;
                if *successes >= rules.success_threshold {
                    *self = Self::default();
                    return BreakerChange::Closed;
                }
            }
            // A request from before it opened says nothing about now.
            Self::Open { .. } | Self::HalfOpen { .. } => {}
        }
        BreakerChange::None
    }

    /// A request failed.
    pub(super) fn fail(&mut self, now: Timestamp, probe: bool, rules: &BreakerSettings) -> BreakerChange {
        let opens = match self {
            Self::Closed { failures } => {
                *failures = failures.saturating_add(1);
                *failures >= rules.failure_threshold
            }
            Self::HalfOpen { .. } => probe,
            Self::Open { .. } => false,
        };
        if !opens {
            return BreakerChange::None;
        }
        let until = now + rules.reset_after;
        *self = Self::Open { since: now, until };
        BreakerChange::Opened(until)
    }

    /// A request ended in a way that says nothing about the subscription.
    pub(super) fn pass(&mut self, probe: bool) {
        if let Self::HalfOpen { probing, .. } = self
            && probe
        {
            *probing = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const RULES: BreakerSettings =
        BreakerSettings { failure_threshold: 5, success_threshold: 2, reset_after: Duration::from_mins(5) };

    fn second(second: i64) -> Timestamp {
        Timestamp::from_secs(second)
    }

    fn opened() -> Breaker {
        let mut breaker = Breaker::default();
        for _ in 0..5 {
            breaker.fail(second(0), false, &RULES);
        }
        breaker
    }

    #[test]
    fn five_failures_in_a_row_open_it() {
        let mut breaker = Breaker::default();
        for _ in 0..4 {
            assert_eq!(breaker.fail(second(0), false, &RULES), BreakerChange::None);
        }
        breaker.succeed(false, &RULES);
        for _ in 0..4 {
            assert_eq!(breaker.fail(second(1), false, &RULES), BreakerChange::None);
        }
        assert_eq!(breaker.fail(second(2), false, &RULES), BreakerChange::Opened(second(302)));
    }

    #[test]
    fn after_300_seconds_two_probes_close_it() {
        let mut breaker = opened();
        assert!(matches!(breaker.at(second(299)), Breaker::Open { .. }));
        assert!(breaker.start(second(300)));
        assert!(matches!(breaker, Breaker::HalfOpen { probing: true, .. }));
        assert_eq!(breaker.succeed(true, &RULES), BreakerChange::None);
        assert!(breaker.start(second(301)));
        assert_eq!(breaker.succeed(true, &RULES), BreakerChange::Closed);
        assert_eq!(breaker, Breaker::default());
    }

    #[test]
    fn a_failed_probe_opens_it_again_and_late_answers_do_not_matter() {
        let mut breaker = opened();
        assert_eq!(breaker.fail(second(10), false, &RULES), BreakerChange::None);
        assert_eq!(breaker.succeed(false, &RULES), BreakerChange::None);
        assert!(breaker.start(second(300)));
        assert_eq!(breaker.succeed(false, &RULES), BreakerChange::None);
        assert_eq!(breaker.fail(second(310), false, &RULES), BreakerChange::None);
        breaker.pass(true);
        assert!(matches!(breaker, Breaker::HalfOpen { probing: false, successes: 0, .. }));
        assert!(breaker.start(second(311)));
        assert_eq!(breaker.fail(second(312), true, &RULES), BreakerChange::Opened(second(612)));
    }
}
