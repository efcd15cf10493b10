//! What the pool did, on its way to those who listen.
//!
//! It is put here under the pool's lock and handed out behind it: in the order in which it happened, whatever the order
//! in which the threads go on, and without anybody waiting for the handing out.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use crate::pool::{Effect, Pool};
use crate::units::Timestamp;

/// What one command did.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) at: Timestamp,
    /// Never empty.
    pub(super) effects: Arc<[Effect]>,
    /// Whose subscription each is about.
    pub(super) organizations: Vec<Option<Arc<str>>>,
}

/// The batches that wait.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    waiting: Mutex<VecDeque<Batch>>,
    /// Held by the one who hands out.
    turn: Mutex<()>,
}

impl Outbox {
    /// Puts in what `pool` has just done. To be called while it is locked.
    pub(super) fn put(&self, pool: &Pool, at: Timestamp, effects: Vec<Effect>) {
        if effects.is_empty() {
            return;
        }
        let organization = |effect: &Effect| effect.subscription().and_then(|id| pool.organization_of(id));
        let organizations = effects.iter().map(organization).collect();
        self.waiting().push_back(Batch { at, effects: effects.into(), organizations });
    }

    /// Gives every batch to `hand_out`, unless somebody does so already: then that one takes these along.
    pub(super) fn deliver(&self, mut hand_out: impl FnMut(Batch)) {
        while !self.waiting().is_empty() {
            let _turn = match self.turn.try_lock() {
                Ok(turn) => turn,
                Err(TryLockError::Poisoned(turn)) => turn.into_inner(),
                // It looks once more when its turn is over.
                Err(TryLockError::WouldBlock) => return,
            };
            while let Some(batch) = self.next() {
                hand_out(batch);
            }
        }
    }

    fn next(&self) -> Option<Batch> {
        self.waiting().pop_front()
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<Batch>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::thread;

    use super::super::SharedPool;
    use super::super::feed::{FeedFilter, Told};
    use super::*;
    use crate::pool::Settings;
    use futures_util::{FutureExt as _, StreamExt as _};

    fn number(effect: &Effect) -> u64 {
        let Effect::Failover { cause, .. } = effect else { panic!("{effect:?}") };
        cause.parse().unwrap()
    }

    fn numbered(number: u64) -> Effect {
        Effect::Failover { session: String::new(), backend: "b".into(), cause: number.to_string() }
    }

    fn pool() -> SharedPool {
        SharedPool::new(Pool::new(Settings::default(), Timestamp::from_secs(0)))
    }

    #[test]
    fn a_burst_is_one_message_and_hides_nothing_that_follows() {
        let pool = pool();
        let mut effects = pool.effects();
        pool.with(|_, _| ((), (0..5000).map(numbered).collect()));
        pool.with(|_, _| ((), vec![numbered(5000)]));
        let heard: Vec<u64> = std::iter::from_fn(|| effects.try_recv().ok())
            .flat_map(|(_, all)| all.iter().map(number).collect::<Vec<_>>())
            .collect();
        assert_eq!(heard, (0..=5000).collect::<Vec<_>>());
        assert!(matches!(effects.try_recv(), Err(tokio::sync::broadcast::error::TryRecvError::Empty)));
    }

    #[test]
    fn what_happened_first_is_told_first() {
        const EACH: u64 = 200;
        let pool = pool();
        let (next, mut effects) = (AtomicU64::new(0), pool.effects());
        let told = pool.feed().follow(None, FeedFilter::default());
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..EACH {
                        pool.with(|_, _| ((), vec![numbered(next.fetch_add(1, Ordering::Relaxed))]));
                    }
                });
            }
        });
        let all: Vec<u64> = (0..4 * EACH).collect();
        let heard: Vec<u64> = std::iter::from_fn(|| effects.try_recv().ok()).map(|(_, all)| number(&all[0])).collect();
        assert_eq!(heard, all);
        let told: Vec<u64> = told
            .take_while(|told| std::future::ready(!matches!(told, Told::Missed(_))))
            .skip(1)
            .take(all.len())
            .filter_map(|told| async move {
                let Told::Event { data, .. } = told else { return None };
                serde_json::from_str::<serde_json::Value>(&data).unwrap()["cause"].as_str().unwrap().parse::<u64>().ok()
            })
            .collect()
            .now_or_never()
            .expect("all is there");
        assert_eq!(told, all);
    }
}
