//! What the runaway guard stops: told when it begins, and once more when it is over.
//!
//! What goes in circles is stopped a thousand times. The operator hears of it once: as the event `runaway_guard`, from
//! which the alert `runaway` is made, and as `runaway_over` when nothing of the kind was stopped for a while.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::PooledGateway;
use crate::pool::{Effect, Runaway};

/// What was not stopped for this long is over. What comes again afterwards is told again.
const QUIET: Duration = Duration::from_mins(1);

/// What is going on. Clients are those of the configuration, so there are never many.
#[derive(Debug, Default)]
pub(super) struct Runaways(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    going: HashMap<(Runaway, Option<Arc<str>>), Going>,
    /// Starts of CLI processes that were refused, as last seen.
    refused_starts: u64,
}

#[derive(Clone, Copy, Debug)]
struct Going {
    since: Instant,
    last: Instant,
}

impl Runaways {
    /// Takes note of something that was stopped. Whether it has just begun.
    fn stopped(&self, what: Runaway, client: Option<Arc<str>>, now: Instant) -> bool {
        let mut is_new = false;
        let mut state = self.state();
        let going = state.going.entry((what, client)).or_insert_with(|| {
            is_new = true;
            Going { since: now, last: now }
        });
        going.last = now;
        is_new
    }

    /// How many starts were refused since the last time, when it is `refused` by now.
    fn refused_since(&self, refused: u64) -> u64 {
        let mut state = self.state();
        refused.saturating_sub(std::mem::replace(&mut state.refused_starts, refused))
    }

    /// What is over, and how long it went on.
    fn over(&self, now: Instant) -> Vec<(Runaway, Option<Arc<str>>, Duration)> {
        let mut over = Vec::new();
        self.state().going.retain(|(what, client), going| {
            if now.saturating_duration_since(going.last) < QUIET {
                return true;
            }
            over.push((*what, client.clone(), going.last.saturating_duration_since(going.since)));
            false
        });
        over
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PooledGateway {
    /// Something was stopped. Its beginning is news.
    pub(super) fn stopped(&self, what: Runaway, client: Option<Arc<str>>, cause: impl FnOnce() -> String) {
        if self.runaways().stopped(what, client.clone(), Instant::now()) {
            self.announce(Effect::RunawayGuard { what, client, cause: cause() });
        }
    }

    /// Looks whether starts of CLI processes were refused, for requests or for spares, and tells what is over at `now`.
    /// To be called every second or so.
    pub fn look_for_runaways(&self, now: Instant) {
        if self.runaways().refused_since(self.claude().counts().refused) > 0 {
            self.stopped(Runaway::Spawns, None, || "too many of them were started within a minute".to_owned());
        }
        for (what, client, went_on) in self.runaways().over(now) {
            self.announce(Effect::RunawayOver { what, client, after_seconds: went_on.as_secs() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_told_when_it_begins_and_when_it_is_over() {
        let runaways = Runaways::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let (prompts, alice, bob) = (Runaway::RepeatedPrompts, Some("alice".into()), Some("bob".into()));
        assert!(runaways.stopped(prompts, alice.clone(), at(0)));
        assert!(!runaways.stopped(prompts, alice.clone(), at(30)));
        assert!(runaways.stopped(prompts, bob.clone(), at(40)), "somebody else is another matter");
        assert!(runaways.stopped(Runaway::Loop, None, at(50)), "and so is something else");
        assert_eq!(runaways.over(at(89)), []);
        assert_eq!(runaways.over(at(90)), [(prompts, alice.clone(), Duration::from_secs(30))]);
        assert_eq!(runaways.over(at(99)), []);
        let mut over = runaways.over(at(200));
        over.sort_by_key(|(_, client, _)| client.is_none());
        assert_eq!(over, [(prompts, bob, Duration::ZERO), (Runaway::Loop, None, Duration::ZERO)]);
        assert!(runaways.stopped(prompts, alice, at(200)), "it has begun again");
    }

    #[test]
    fn refused_starts_count_once() {
        let runaways = Runaways::default();
        assert_eq!([0, 3, 3, 5].map(|refused| runaways.refused_since(refused)), [0, 3, 0, 2]);
    }
}
