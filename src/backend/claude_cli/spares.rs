//! Spares: processes that are started before anybody needs them.
//!
//! A start costs the machine about half a CPU second and the client about as long a wait. So for every kind of process
//! that was needed lately (a profile and a model) one is kept ready; taking it makes the maker start the next. The
//! maker is one task and makes one at a time, and no more processes start at once than there are cores, so that starts do
//! not crowd out running answers; what nobody waits for gives way to them besides, see [`super::courtesy`].

mod lent;
mod maker;
mod state;
#[cfg(test)]
mod tests;
mod waiting;

pub(super) use waiting::Starting;

use std::collections::VecDeque;
use std::num::NonZero;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::{Notify, Semaphore, oneshot, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::courtesy::Courtesy;
use super::kinds::Kinds;
use super::launch::Launch;
use super::live::{Live, LiveCounts};
use super::places::{Closed, Place, Places};
use super::process::Process;
use super::start_error::StartError;
use super::upkeep;
use crate::runtime::tasks::Tasks;
use state::{Spare, State};
use waiting::{WaitingForPlace, WaitingToStart};

/// How long a process that starts may keep others from starting.
const START_LIMIT: Duration = Duration::from_secs(5);

/// How long the maker leaves a kind of process alone after one of it would not start.
const RETRY_AFTER: Duration = Duration::from_secs(30);

/// How long the maker leaves the machine to a request that has just got its process. A start keeps a core busy for half
/// a second; at the same moment it would double the time that the request needs until it is with the provider. Afterwards
/// the request waits for the network.
const REFILL_PAUSE: Duration = Duration::from_millis(250);

/// Limits on processes.
#[derive(Clone, Copy, Debug)]
pub struct SpareSettings {
    /// Processes of any kind at the same time: running answers and spares.
    pub max_processes: usize,
    /// Bytes of proportional memory that all processes together may take; can be changed, see
    /// [`super::ClaudeCli::set_max_memory`].
    pub max_memory: u64,
    /// Spares at the same time; can be changed, see [`super::ClaudeCli::retain`].
    pub max_spares: usize,
    /// Ready spares for each kind of process that is in demand.
    pub spares_per_kind: usize,
    /// A kind that nobody asked for in this time loses its spares, the most recently used kind excepted, and a
    /// conversation that nobody goes on with its process; can be changed, see [`super::ClaudeCli::set_idle_timeout`].
    pub idle_timeout: Duration,
    /// The longest line a process may write.
    pub max_line_bytes: usize,
}

/// How many processes there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessCounts {
    /// Processes that belong to a request.
    pub running: usize,
    /// Processes that stay with a conversation until it goes on.
    pub live: usize,
    /// Processes that wait for the results of calls.
    pub parked: usize,
    /// Processes that belong to nobody yet.
    pub spare: usize,
    /// Processes started since this program began.
    pub started: u64,
    /// Starts that the runaway guard has refused since then.
    pub refused: u64,
}

/// The store of spares. A cheap handle.
#[derive(Clone, Debug)]
pub(super) struct Spares(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    settings: SpareSettings,
    tasks: Tasks,
    /// Processes that give way when places are scarce.
    live: Live,
    places: Places,
    /// Starts at the same time. A start keeps a core busy for half a second: more of them than cores only make each
    /// other, and the answers that run, slower.
    starts: Arc<Semaphore>,
    /// How many wait for their turn to start: then nothing gives way any longer.
    waiting_to_start: watch::Sender<usize>,
    courtesy: Courtesy,
    state: Mutex<State>,
    /// Tells the maker that there may be something to do.
    wake: Arc<Notify>,
    /// Tells who waits for a place that a spare is ready.
    spare_ready: Notify,
    closing: CancellationToken,
}

/// See [`Spares::obtain`].
#[derive(Debug)]
pub(super) struct Obtained {
    pub process: Process,
    /// Held for a process that was started for the request, until it has said its first word; `None` for a spare.
    pub start: Option<Starting>,
}

impl Spares {
    /// Starts the maker.
    pub(super) fn new(settings: SpareSettings, live: &Live, tasks: &Tasks) -> Self {
        let spares = Self::unattended(settings, live, tasks);
        spares.attend();
        tasks.spawn("claude-cli-memory", {
            let spares = spares.clone();
            async move {
                let closing = spares.0.closing.clone();
                closing.run_until_cancelled(upkeep::run(spares)).await;
            }
        });
        spares
    }

    /// A store in which nothing happens by itself.
    fn unattended(settings: SpareSettings, live: &Live, tasks: &Tasks) -> Self {
        let wake = Arc::default();
        Self(Arc::new(Shared {
            settings,
            tasks: tasks.clone(),
            live: live.clone(),
            places: Places::new(settings.max_processes, settings.max_memory, &wake),
            starts: Arc::new(Semaphore::new(std::thread::available_parallelism().map_or(1, NonZero::get))),
            waiting_to_start: watch::channel(0).0,
            courtesy: Courtesy::find(),
            state: Mutex::new(State {
                max_spares: settings.max_spares,
                max_spawns: usize::MAX,
                idle_timeout: settings.idle_timeout,
                ..State::default()
            }),
            wake,
            spare_ready: Notify::new(),
            closing: CancellationToken::new(),
        }))
    }

    /// Starts the maker, and who tells those that wait of what may give way.
    fn attend(&self) {
        self.0.tasks.spawn("claude-cli-spares", maker::make(self.clone()));
        self.0.tasks.spawn("claude-cli-idle", {
            let spares = self.clone();
            async move {
                // Who waits for a place finds somebody that may give way now.
                let tell = async {
                    loop {
                        spares.0.live.has_idle().await;
                        spares.0.places.look_again();
                    }
                };
                spares.0.closing.run_until_cancelled(tell).await;
            }
        });
    }

    /// A process for a request: a spare of the kind `launch`, or else a new one. The kind is in demand from now on.
    ///
    /// `fresh`: whether it must be a new one.
    pub(super) async fn obtain(&self, launch: &Arc<Launch>, fresh: bool) -> Result<Obtained, StartError> {
        // Requests that follow do not put the refill off any longer: under constant load there must be spares too.
        self.state().refill_at.get_or_insert_with(|| Instant::now() + REFILL_PAUSE);
        self.want(launch);
        // First the place, then the start, here and in the maker: nobody holds what another waits for.
        let place = {
            let mut place = pin!(self.place());
            loop {
                let ready = self.0.spare_ready.notified();
                // The place may be that of a process which becomes a spare of this very kind.
                if !fresh && let Some(process) = self.take(launch) {
                    return Ok(Obtained { process, start: None });
                }
                tokio::select! {
                    biased;
                    () = ready => {}
                    place = &mut place => break place?,
                }
            }
        };
        let start = {
            let _waiting = WaitingToStart::new(&self.0.waiting_to_start);
            self.starting().await?
        };
        // Meanwhile a spare may have become ready.
        if !fresh && let Some(process) = self.take(launch) {
            return Ok(Obtained { process, start: None });
        }
        let process = self.start_in(launch, place)?;
        Ok(Obtained { process, start: Some(start) })
    }

    async fn starting(&self) -> Result<Starting, StartError> {
        let permit = Arc::clone(&self.0.starts).acquire_owned().await.map_err(|_| StartError::Closed)?;
        let (held, dropped) = oneshot::channel();
        self.0.tasks.spawn("claude-cli-start", async move {
            // Either way it is over.
            let _ = timeout(START_LIMIT, dropped).await;
            drop(permit);
        });
        Ok(Starting(held))
    }

    fn take(&self, launch: &Arc<Launch>) -> Option<Process> {
        let mut state = self.state();
        state.sweep();
        let position = state.ready.iter().position(|spare| spare.launch == *launch)?;
        let taken = state.ready.remove(position).map(|spare| spare.process);
        drop(state);
        self.0.wake.notify_one();
        taken
    }

    /// Asks for a spare of this kind without taking one.
    pub(super) fn want(&self, launch: &Arc<Launch>) {
        self.state().note_demand(launch);
        self.0.wake.notify_one();
    }

    /// Starts a process apart from any request.
    pub(super) async fn start(&self, launch: &Launch) -> Result<Process, StartError> {
        let place = self.place().await?;
        self.start_in(launch, place)
    }

    /// A place for a process. Spares give way, then live processes; when all places are taken by answers, one of them has
    /// to end.
    async fn place(&self) -> Result<Place, StartError> {
        if let Some(place) = self.0.places.try_take() {
            return Ok(place);
        }
        let _waiting = WaitingForPlace::new(self);
        self.0.places.take(|| self.give_way()).await.map_err(|Closed| StartError::Closed)
    }

    /// Lets the oldest spare go, or the live process used longest ago; its place is free when it is gone.
    fn give_way(&self) {
        let oldest = {
            let mut state = self.state();
            // The place of one that has ended is taken by somebody else already.
            state.sweep();
            state.ready.pop_front()
        };
        if oldest.is_none() {
            self.0.live.evict_oldest();
        }
        drop(oldest);
    }

    /// Lets go of what is worth least while memory is short, and says what it was; `None` when everything that is left
    /// serves somebody. Processes that wait for a client's tools are the last to go.
    pub(super) fn let_go(&self) -> Option<&'static str> {
        if self.drop_spare(1) {
            Some("a spare")
        } else if self.0.live.evict_oldest_idle() {
            Some("the conversation used longest ago")
        } else if self.drop_spare(0) {
            Some("the last spare")
        } else {
            self.0.live.evict_oldest().then_some("a conversation that waits for tools")
        }
    }

    /// Lets go of the spare whose kind was used longest ago, if there are more than `keep`.
    fn drop_spare(&self, keep: usize) -> bool {
        let mut state = self.state();
        if state.ready.len() <= keep {
            return false;
        }
        let victim = state.least_wanted().and_then(|index| state.ready.remove(index));
        drop(state);
        victim.is_some()
    }

    /// The places of all processes.
    pub(super) fn places(&self) -> &Places {
        &self.0.places
    }

    /// Tells everybody whom it may concern that a spare is ready. Who waits for a place takes it, or has it give way.
    fn tell_ready(&self) {
        self.0.spare_ready.notify_waiters();
        self.0.places.look_again();
    }

    fn start_in(&self, launch: &Launch, place: Place) -> Result<Process, StartError> {
        self.count_spawn()?;
        let process = Process::start(launch, place, self.0.settings.max_line_bytes, &self.0.tasks)
            .map_err(|source| StartError::Io { command: launch.command().display().to_string(), source })?;
        self.state().started += 1;
        Ok(process)
    }

    /// Counts a start, or refuses it: what goes in circles must not take the machine with it.
    fn count_spawn(&self) -> Result<(), StartError> {
        let mut state = self.state();
        let most = state.max_spawns;
        let Err(after) = state.spawns.admit(most, Instant::now()) else { return Ok(()) };
        state.refused += 1;
        drop(state);
        error!(most, "the runaway guard stops the start of CLI processes");
        Err(StartError::Runaway { most, after: Duration::from_secs(after.as_secs() + 1) })
    }

    /// Changes how many processes may be started within a minute.
    pub(super) fn set_max_spawns(&self, most: usize) {
        self.state().max_spawns = most;
    }

    /// Changes how long a kind that nobody asks for keeps its spares.
    pub(super) fn set_idle_timeout(&self, idle_timeout: Duration) {
        self.state().idle_timeout = idle_timeout;
        self.0.wake.notify_one();
    }

    /// Keeps only these kinds from now on, and no more than `max_spares`: after a change of the configuration.
    pub(super) fn retain(&self, max_spares: usize, kinds: &Kinds) {
        let dropped: (VecDeque<Spare>, Vec<Spare>) = {
            let mut state = self.state();
            state.max_spares = max_spares;
            state.kinds = kinds.clone();
            state.demand.retain(|kind| kinds.have(&kind.launch));
            let (kept, unwanted) =
                std::mem::take(&mut state.ready).into_iter().partition(|spare| kinds.have(&spare.launch));
            state.ready = kept;
            (unwanted, state.surplus())
        };
        drop(dropped);
        self.0.wake.notify_one();
    }

    /// Lets go of every spare, so that new ones are made: the CLI was replaced.
    pub(super) fn renew(&self) {
        let ready = {
            let mut state = self.state();
            state.generation += 1;
            // A new build may well start where the old one did not.
            state.demand.iter_mut().for_each(|kind| kind.not_before = None);
            std::mem::take(&mut state.ready)
        };
        drop(ready);
        self.0.wake.notify_one();
    }

    /// Kills all spares and makes no more. Running answers are not touched.
    pub(super) fn close(&self) {
        let ready = {
            let mut state = self.state();
            state.closed = true;
            std::mem::take(&mut state.ready)
        };
        drop(ready);
        self.0.closing.cancel();
        self.0.places.close();
        self.0.starts.close();
        self.0.wake.notify_one();
    }

    pub(super) fn counts(&self) -> ProcessCounts {
        let state = self.state();
        let spare = state.spares();
        let LiveCounts { idle: live, parked } = self.0.live.counts();
        let all = self.0.places.taken();
        let running = all.saturating_sub(spare + live + parked);
        ProcessCounts { running, live, parked, spare, started: state.started, refused: state.refused }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
