//! What the store of spares knows: which are there, and which are wanted.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use super::{Launch, Process, RETRY_AFTER};
use crate::backend::claude_cli::kinds::Kinds;
use crate::backend::claude_cli::spawns::Spawns;

#[derive(Debug, Default)]
pub(super) struct State {
    /// Ready processes, the longest waiting first.
    pub ready: VecDeque<Spare>,
    /// The kinds of those that are out for a moment and come back, see [`super::Spares::lend`].
    pub lent: Vec<Arc<Launch>>,
    /// How many wait for a place for their process.
    pub waiting_for_place: usize,
    /// Kinds in demand, the most recently used first.
    pub demand: VecDeque<Demand>,
    /// Others are never in demand.
    pub kinds: Kinds,
    /// Before this no process is made; set by the first request since the last one was.
    pub refill_at: Option<Instant>,
    /// When a process was last let go to make room for a spare that was not made yet.
    pub made_room_at: Option<Instant>,
    pub started: u64,
    pub refused: u64,
    pub spawns: Spawns,
    pub max_spawns: usize,
    pub max_spares: usize,
    pub idle_timeout: Duration,
    /// Goes up when the CLI is replaced: a process of an older one becomes no spare any more.
    pub generation: u64,
    pub closed: bool,
}

#[derive(Debug)]
pub(super) struct Spare {
    pub launch: Arc<Launch>,
    pub process: Process,
}

#[derive(Debug)]
pub(super) struct Demand {
    pub launch: Arc<Launch>,
    pub used: Instant,
    /// Set after a failed start.
    pub not_before: Option<Instant>,
}

impl State {
    /// Lets go of spares that have ended. One that ends by itself would do so again: its kind is left alone for a while.
    pub(super) fn sweep(&mut self) {
        let Self { ready, demand, .. } = self;
        ready.retain(|spare| {
            if !spare.process.has_ended() {
                return true;
            }
            warn!("a spare has ended by itself");
            if let Some(kind) = demand.iter_mut().find(|kind| kind.launch == spare.launch) {
                kind.not_before = Some(Instant::now() + RETRY_AFTER);
            }
            false
        });
    }

    pub(super) fn note_demand(&mut self, launch: &Arc<Launch>) {
        if !self.kinds.have(launch) {
            return;
        }
        let known = self.demand.iter().position(|kind| kind.launch == *launch);
        let not_before = known.and_then(|position| self.demand.remove(position)).and_then(|kind| kind.not_before);
        self.demand.push_front(Demand { launch: Arc::clone(launch), used: Instant::now(), not_before });
    }

    /// How many spares there are, with those that are out for a moment.
    pub(super) fn spares(&self) -> usize {
        self.ready.len() + self.lent.len()
    }

    /// Which of the ready spares has a kind that was used longest ago.
    pub(super) fn least_wanted(&self) -> Option<usize> {
        (0..self.ready.len()).max_by_key(|index| self.rank(*index))
    }

    /// The same, if that kind was used longer ago than the one at this place of those in demand. Of two that are wanted no
    /// less than each other neither goes for the other: that would have no end.
    pub(super) fn less_wanted_than(&self, rank: usize) -> Option<usize> {
        self.least_wanted().filter(|index| self.rank(*index) > rank)
    }

    /// The place of a ready spare's kind among those in demand.
    fn rank(&self, index: usize) -> usize {
        let rank = self.demand.iter().position(|kind| kind.launch == self.ready[index].launch);
        rank.unwrap_or(usize::MAX)
    }

    /// Takes out the ready spares that are more than there may be, those first whose kind was used longest ago. To be
    /// dropped outside the lock.
    pub(super) fn surplus(&mut self) -> Vec<Spare> {
        let mut surplus = Vec::new();
        while self.spares() > self.max_spares
            && let Some(spare) = self.least_wanted().and_then(|index| self.ready.remove(index))
        {
            surplus.push(spare);
        }
        surplus
    }
}
