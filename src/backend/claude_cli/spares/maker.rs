//! The maker of spares: one task that starts them one after the other.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};
use tracing::{debug, warn};

use super::state::{Spare, State};
use super::{RETRY_AFTER, Shared, Spares};
use crate::backend::claude_cli::courtesy::GIVES_WAY;
use crate::backend::claude_cli::input;
use crate::backend::claude_cli::launch::Launch;
use crate::backend::claude_cli::output::{self, Line};
use crate::backend::claude_cli::places::Place;
use crate::backend::claude_cli::process::{Process, ReadError};

/// How long a fresh process may take to answer its warm-up before it counts as broken.
const WARM_UP_LIMIT: Duration = Duration::from_secs(30);

/// How often the maker looks for spares that nobody has needed for long.
const SWEEP_INTERVAL: Duration = Duration::from_secs(15);

/// How long the place of a process that was let go may take to be free. Until then no other one makes room.
const GONE_LIMIT: Duration = Duration::from_secs(2);

/// See [`Spares::next_to_make`].
#[derive(Debug)]
pub(super) struct ToMake {
    pub(super) launch: Arc<Launch>,
    pub(super) place: Place,
    pub(super) generation: u64,
}

impl Spares {
    /// Whether a request has a process, and nobody waits for the place of the one that is being made.
    fn is_serving(&self) -> bool {
        // That one counts as running.
        self.counts().running > 1 && self.state().waiting_for_place == 0
    }

    /// The kind of process that should be started next, and a place for it.
    pub(super) fn next_to_make(&self) -> Option<ToMake> {
        let settings = &self.0.settings;
        let now = Instant::now();
        let mut state = self.state();
        if state.closed || state.refill_at.is_some_and(|instant| instant > now) {
            return None;
        }
        state.refill_at = None;
        state.sweep();
        let State { ready, lent, demand, max_spares, idle_timeout, .. } = &mut *state;
        // The kind used last keeps its spare however long ago that was.
        let mut newest = true;
        demand.retain(|kind| std::mem::take(&mut newest) || now.duration_since(kind.used) < *idle_timeout);
        ready.retain(|spare| demand.iter().any(|kind| kind.launch == spare.launch));
        let kinds = max_spares.div_ceil(settings.spares_per_kind.max(1));
        let (rank, wanted) = demand.iter().enumerate().take(kinds).find(|(_, kind)| {
            let ready = ready.iter().filter(|spare| spare.launch == kind.launch).count();
            let have = ready + lent.iter().filter(|launch| **launch == kind.launch).count();
            have < settings.spares_per_kind && kind.not_before.is_none_or(|instant| instant <= now)
        })?;
        let launch = Arc::clone(&wanted.launch);
        // Where there are enough, one of a kind that was used longer ago goes for it. Those that are lent cannot.
        let gives_way = if state.spares() < state.max_spares { None } else { Some(state.less_wanted_than(rank)?) };
        if let Some(place) = self.0.places.try_take() {
            state.made_room_at = None;
            let generation = state.generation;
            let replaced = gives_way.and_then(|index| state.ready.remove(index));
            drop(state);
            drop(replaced);
            return Some(ToMake { launch, place, generation });
        }
        // A process that nobody waits for makes room, but only for the kind used last, and only if nobody else would
        // get its place. It wakes the maker when it is gone.
        let is_newest = rank == 0;
        let is_on_its_way = state.made_room_at.is_some_and(|instant| now.duration_since(instant) < GONE_LIMIT);
        if !is_newest || is_on_its_way || state.waiting_for_place > 0 {
            return None;
        }
        let replaced = gives_way.and_then(|index| state.ready.remove(index));
        drop(state);
        if replaced.is_some() || self.0.live.evict_oldest_idle() {
            self.state().made_room_at = Some(now);
        }
        None
    }

    pub(super) fn put(&self, launch: Arc<Launch>, process: Process, generation: u64) {
        let mut state = self.state();
        if state.closed || state.generation != generation {
            return;
        }
        state.ready.push_back(Spare { launch, process });
        let surplus = state.surplus();
        drop(state);
        drop(surplus);
        self.tell_ready();
    }

    fn postpone(&self, launch: &Arc<Launch>) {
        let mut state = self.state();
        if let Some(kind) = state.demand.iter_mut().find(|kind| kind.launch == *launch) {
            kind.not_before = Some(Instant::now() + RETRY_AFTER);
        }
    }
}

/// The maker: starts what is wanted, one at a time, until the store is closed.
pub(super) async fn make(spares: Spares) {
    loop {
        while let Some(ToMake { launch, place, generation }) = spares.next_to_make() {
            let Some(made) = spares.0.closing.run_until_cancelled(make_one(&spares, &launch, place)).await else {
                return;
            };
            match made {
                Ok(process) => {
                    debug!(pid = process.id(), "a spare is ready");
                    spares.put(launch, process, generation);
                }
                Err(error) => {
                    warn!(%error, "a spare could not be made");
                    spares.postpone(&launch);
                }
            }
        }
        let next_look = {
            let state = spares.state();
            if state.closed {
                return;
            }
            state.refill_at.unwrap_or_else(|| Instant::now() + SWEEP_INTERVAL)
        };
        // A timeout is as good as a wake-up: then it is time for a refill, or old spares are swept.
        let _ = timeout_at(next_look, spares.0.wake.notified()).await;
    }
}

async fn make_one(spares: &Spares, launch: &Launch, place: Place) -> anyhow::Result<Process> {
    let Shared { courtesy, waiting_to_start, .. } = &*spares.0;
    courtesy.moment(|| spares.is_serving()).await;
    let _start = spares.starting().await?;
    let mut process = spares.start_in(launch, place)?;
    let mut gives_way = courtesy.give_way(process.id());
    let mut waiting_to_start = waiting_to_start.subscribe();
    let ready = {
        let mut ready = pin!(timeout(WARM_UP_LIMIT, warm_up(&mut process)));
        let somebody_waits = async {
            let _ = timeout(GIVES_WAY, waiting_to_start.wait_for(|waiting| *waiting > 0)).await;
        };
        tokio::select! {
            ready = &mut ready => ready,
            () = somebody_waits => {
                gives_way = None;
                ready.await
            }
        }
    };
    drop(gives_way);
    match ready {
        Ok(Ok(())) => Ok(process),
        Ok(Err(error)) => anyhow::bail!("{error}; it said: {}", process.stderr_tail()),
        Err(_) => anyhow::bail!("no answer to its warm-up within {}", humantime::format_duration(WARM_UP_LIMIT)),
    }
}

/// Waits until a fresh process has done what it does at its start.
async fn warm_up(process: &mut Process) -> Result<(), ReadError> {
    process.write(&input::warm_up()).await?;
    loop {
        let line = process.read_line().await?;
        if let Ok(Line::Control { id, error: None }) = output::parse(line)
            && id == input::WARM_UP
        {
            return Ok(());
        }
    }
}
