//! How often each client may ask.
//!
//! Limits go by client key. Where there are no keys they go by the peer's address: what a request says of itself, as in
//! `X-Forwarded-For`, counts for nothing. A limit is a bucket of a minute's requests that fills evenly, so a client that
//! has emptied it may go on at its rate, and no minute holds much more than the limit.

use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use governor::clock::{Clock, DefaultClock, Reference as _};
use governor::middleware::StateInformationMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use hyper::HeaderMap;
use hyper::header::{HeaderName, HeaderValue};

use super::Settings;
use super::auth::Client;
use crate::api::Denial;

const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit-requests");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining-requests");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset-requests");

/// Callers that are remembered before those with a full bucket are forgotten.
const MANY: usize = 4096;

/// Who is counted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Who {
    Key(Arc<str>),
    Address(IpAddr),
}

/// Everybody's buckets.
pub(super) struct Limits<C: Clock = DefaultClock> {
    buckets: DashMap<Who, Bucket<C>>,
    clock: C,
}

type Limiter<C> = RateLimiter<NotKeyed, InMemoryState, C, StateInformationMiddleware>;

struct Bucket<C: Clock> {
    per_minute: NonZeroU32,
    limiter: Arc<Limiter<C>>,
    last_used: C::Instant,
}

/// What is left of a client's limit after a request was counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Allowance {
    per_minute: NonZeroU32,
    remaining: u32,
    /// Until the bucket is full again.
    reset: Duration,
    /// How long this request would have had to wait, if it may not pass.
    wait: Option<Duration>,
}

impl Default for Limits {
    fn default() -> Self {
        Self::new(DefaultClock::default())
    }
}

impl<C: Clock + Clone> Limits<C> {
    fn new(clock: C) -> Self {
        Self { buckets: DashMap::new(), clock }
    }

    /// Counts a request; `None` where there is no limit for its client.
    pub(super) fn count(&self, settings: &Settings, client: &Client, peer: SocketAddr) -> Option<Allowance> {
        let own = client.key.as_ref().and_then(|key| key.requests_per_minute);
        let per_minute = own.or(settings.requests_per_minute)?;
        let who = match &client.key {
            Some(key) => Who::Key(Arc::clone(&key.name)),
            None => Who::Address(peer.ip().to_canonical()),
        };
        Some(self.take(who, per_minute))
    }

    fn take(&self, who: Who, per_minute: NonZeroU32) -> Allowance {
        let now = self.clock.now();
        self.forget_the_full(now);
        let limiter = {
            let mut bucket = self.buckets.entry(who).or_insert_with(|| self.bucket(per_minute));
            // A limit that was changed begins anew.
            if bucket.per_minute != per_minute {
                *bucket = self.bucket(per_minute);
            }
            bucket.last_used = now;
            Arc::clone(&bucket.limiter)
        };
        let interval = interval(per_minute);
        match limiter.check() {
            Ok(state) => {
                let remaining = state.remaining_burst_capacity();
                let missing = per_minute.get().saturating_sub(remaining);
                Allowance { per_minute, remaining, reset: interval * missing, wait: None }
            }
            Err(until) => {
                let wait = until.wait_time_from(self.clock.now());
                // One request's share has come back when it may pass; the others follow.
                let reset = wait + interval * (per_minute.get() - 1);
                Allowance { per_minute, remaining: 0, reset, wait: Some(wait) }
            }
        }
    }

    fn bucket(&self, per_minute: NonZeroU32) -> Bucket<C> {
        let limiter = RateLimiter::direct_with_clock(Quota::per_minute(per_minute), self.clock.clone());
        Bucket { per_minute, limiter: Arc::new(limiter.with_middleware()), last_used: self.clock.now() }
    }

    /// A bucket that nobody took from for a minute is full: it is the same as a new one.
    fn forget_the_full(&self, now: C::Instant) {
        if self.buckets.len() > MANY {
            let minute = Duration::from_mins(1);
            self.buckets.retain(|_, bucket| Duration::from(now.duration_since(bucket.last_used)) < minute);
        }
    }
}

/// The time in which one request's share comes back.
fn interval(per_minute: NonZeroU32) -> Duration {
    Duration::from_mins(1) / per_minute.get()
}

impl Allowance {
    /// Why the request may not pass, if it may not.
    pub(super) fn denial(&self) -> Option<Denial> {
        let retry_after = self.wait?;
        Some(Denial::RateLimited { per_minute: self.per_minute.get(), retry_after })
    }

    /// Tells the client in the headers that OpenAI's clients know.
    pub(super) fn tell(&self, headers: &mut HeaderMap) {
        headers.insert(LIMIT, self.per_minute.get().into());
        headers.insert(REMAINING, self.remaining.into());
        if let Ok(reset) = HeaderValue::from_str(&span(self.reset)) {
            headers.insert(RESET, reset);
        }
    }
}

/// As OpenAI writes it: `120ms`, `1s`, `1m30s`.
fn span(span: Duration) -> String {
    if span < Duration::from_secs(1) {
        return format!("{}ms", span.as_millis());
    }
    let seconds = span.as_millis().div_ceil(1000);
    match (seconds / 60, seconds % 60) {
        (0, seconds) => format!("{seconds}s"),
        (minutes, seconds) => format!("{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use governor::clock::FakeRelativeClock;

    use super::*;

    const SIXTY: NonZeroU32 = NonZeroU32::new(60).unwrap();

    fn ann() -> Who {
        Who::Key("ann".into())
    }

    #[test]
    fn sixty_pass_the_next_waits_and_others_do_not_notice() {
        let clock = FakeRelativeClock::default();
        let limits = Limits::new(clock.clone());
        for number in 1..=60 {
            let allowance = limits.take(ann(), SIXTY);
            assert_eq!((allowance.remaining, allowance.denial()), (60 - number, None));
            assert_eq!(allowance.reset, Duration::from_secs(u64::from(number)));
        }
        let refused = limits.take(ann(), SIXTY);
        let retry_after = Duration::from_secs(1);
        assert_eq!(refused.denial(), Some(Denial::RateLimited { per_minute: 60, retry_after }));
        assert_eq!(limits.take(Who::Key("bob".into()), SIXTY).remaining, 59);
        assert_eq!(limits.take(Who::Address([127, 0, 0, 1].into()), SIXTY).remaining, 59);
        // What was promised is true.
        clock.advance(Duration::from_millis(999));
        assert!(limits.take(ann(), SIXTY).denial().is_some());
        clock.advance(Duration::from_millis(1));
        assert_eq!(limits.take(ann(), SIXTY).denial(), None);
        assert!(limits.take(ann(), SIXTY).denial().is_some());
    }

    #[test]
    fn a_changed_limit_counts_at_once() {
        let limits = Limits::new(FakeRelativeClock::default());
        assert_eq!(limits.take(ann(), NonZeroU32::MIN).denial(), None);
        assert!(limits.take(ann(), NonZeroU32::MIN).denial().is_some());
        assert_eq!(limits.take(ann(), SIXTY).remaining, 59);
    }

    #[test]
    fn callers_that_are_long_gone_are_forgotten() {
        let clock = FakeRelativeClock::default();
        let limits = Limits::new(clock.clone());
        for number in 0..=u32::try_from(MANY).unwrap() {
            limits.take(Who::Address(std::net::Ipv4Addr::from_bits(number).into()), SIXTY);
        }
        clock.advance(Duration::from_secs(61));
        limits.take(ann(), SIXTY);
        assert_eq!(limits.buckets.len(), 1);
    }

    #[test]
    fn spans_are_written_as_openai_does() {
        let check = |millis, expected: &str| assert_eq!(span(Duration::from_millis(millis)), expected);
        check(120, "120ms");
        check(1000, "1s");
        check(1001, "2s");
        check(90_000, "1m30s");
    }
}
