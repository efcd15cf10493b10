//! Whose fault it is that a process broke: its subscription's, or that of the program which all have in common.
//!
//! A process can break because of the profile it runs for, or because the build of the CLI is broken. One failure does not
//! tell which. What does is how the same program fares elsewhere: **a subscription is to blame when the program has worked
//! for another one since it last worked for this one, and has not broken there again**. As long as nobody shows that the
//! program works, nobody is to blame, and a new build that crashes everywhere cuts no subscription off; when it is mended
//! all of them serve at once.
//!
//! A request whose process breaks goes on at another subscription, so the evidence is there with the next one.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::warn;

use crate::backend::{Failure, FailureKind};
use crate::conversation::Event;

/// A program, and the subscription it ran for.
type Run = (Arc<Path>, Arc<str>);

/// When the program last did what, in the order of all that is noted; `None` for never.
#[derive(Clone, Copy, Debug, Default)]
struct Last {
    worked: Option<u64>,
    broke: Option<u64>,
}

/// How all programs fare for all subscriptions. A cheap handle.
#[derive(Clone, Debug, Default)]
pub(super) struct Blame(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    noted: u64,
    runs: HashMap<Run, Last>,
}

impl State {
    /// A number for what happens now.
    fn note(&mut self) -> u64 {
        self.noted += 1;
        self.noted
    }
}

impl Blame {
    /// Who tells how `program` fares for `subscription`.
    pub(super) fn witness(&self, program: &Path, subscription: &str) -> Witness {
        Witness { blame: self.clone(), run: (program.into(), subscription.into()) }
    }

    /// Forgets the subscriptions that none of these tell of.
    pub(super) fn retain<'a>(&self, witnesses: impl IntoIterator<Item = &'a Witness>) {
        let mut state = self.state();
        let mut runs = std::mem::take(&mut state.runs);
        let kept = witnesses.into_iter().filter_map(|witness| runs.remove_entry(&witness.run));
        state.runs = kept.collect();
    }

    /// Forgets everything: the program is another one now.
    pub(super) fn forget(&self) {
        self.state().runs.clear();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells how the program fares for one subscription. A cheap handle.
#[derive(Clone, Debug)]
pub(super) struct Witness {
    blame: Blame,
    run: Run,
}

impl Witness {
    /// Hears what a turn says. A failure comes back with the answer whether its subscription is to blame.
    pub(super) fn hear(&self, said: Result<Event, Failure>) -> Result<Event, Failure> {
        match said {
            Ok(event) => {
                if matches!(event, Event::Finished { .. }) {
                    self.worked();
                }
                Ok(event)
            }
            Err(failure) => Err(match failure.kind {
                FailureKind::Crashed | FailureKind::Protocol if !self.broke() => {
                    warn!(
                        subscription = &*self.run.1,
                        detail = %failure,
                        "a CLI process broke; the subscription is not blamed, as the CLI has worked for no other since"
                    );
                    failure.that_blames_nobody()
                }
                _ => failure,
            }),
        }
    }

    fn worked(&self) {
        let mut state = self.blame.state();
        let now = state.note();
        state.runs.entry(self.run.clone()).or_default().worked = Some(now);
    }

    /// Whether the subscription is to blame.
    fn broke(&self) -> bool {
        let mut state = self.blame.state();
        let now = state.note();
        let own = state.runs.entry(self.run.clone()).or_default();
        own.broke = Some(now);
        let since = own.worked;
        let (program, subscription) = &self.run;
        state.runs.iter().any(|((other_program, other), last)| {
            other_program == program && other != subscription && last.worked > since && last.worked > last.broke
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn witnesses<const COUNT: usize>(program: &str, names: [&str; COUNT]) -> (Blame, [Witness; COUNT]) {
        let blame = Blame::default();
        let witnesses = names.map(|name| blame.witness(Path::new(program), name));
        (blame, witnesses)
    }

    #[test]
    fn a_program_that_breaks_everywhere_is_nobody_s_fault() {
        let (_, all) = witnesses("claude", ["a", "b", "c"]);
        for _ in 0..5 {
            assert!(all.iter().all(|one| !one.broke()), "it has never worked");
        }
        all.iter().for_each(Witness::worked);
        // From now on it is broken. Where it worked longest ago that is not known at once, but after one round.
        for one in &all {
            one.broke();
        }
        for _ in 0..5 {
            assert!(all.iter().all(|one| !one.broke()));
        }
    }

    #[test]
    fn a_subscription_whose_processes_alone_break_is_to_blame() {
        let (_, [bad, good]) = witnesses("claude", ["bad", "good"]);
        good.worked();
        assert!(bad.broke(), "it has never worked there, but elsewhere");
        bad.worked();
        assert!(!bad.broke(), "the other one has shown nothing since");
        good.worked();
        assert!(bad.broke() && bad.broke());
        assert!(!good.broke(), "it works for neither now");
        assert!(!bad.broke());
        good.worked();
        assert!(bad.broke());
    }

    #[test]
    fn what_another_program_does_is_no_evidence() {
        let (blame, [bad]) = witnesses("claude", ["bad"]);
        let other = blame.witness(Path::new("/opt/claude"), "other");
        other.worked();
        assert!(!bad.broke());
        let same = blame.witness(Path::new("claude"), "same");
        same.worked();
        assert!(bad.broke());
        blame.forget();
        assert!(!bad.broke(), "the program is another one now");
        same.worked();
        blame.retain([&bad]);
        assert!(!bad.broke(), "the other subscription is gone");
    }
}
