//! Spares: processes that are started before anybody needs them.
//!
//! A start costs the machine about half a CPU second and the client about as long a wait. So for every kind of process
//! that was needed lately (a profile and a model) one is kept ready; taking it makes the maker start the next. The
//! maker is one task and makes one at a time, and no more processes start at once than there are cores, so that starts do
//! not crowd out running answers; what nobody waits for gives way to them besides, see [`super::courtesy`].

mod maker;

use std::collections::VecDeque;
use std::num::NonZero;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::{Notify, Semaphore, oneshot, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::courtesy::Courtesy;
use super::kinds::Kinds;
use super::live::{Live, LiveCounts};
use super::places::{Closed, Place, Places};
use super::process::{Launch, Process};
use super::spawns::Spawns;
use super::start_error::StartError;
use super::upkeep;
use crate::runtime::tasks::Tasks;

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

#[derive(Debug, Default)]
struct State {
    /// Ready processes, the longest waiting first.
    ready: VecDeque<Spare>,
    /// The kinds of those that are out for a moment and come back, see [`Spares::lend`].
    lent: Vec<Arc<Launch>>,
    /// How many wait for a place for their process.
    waiting_for_place: usize,
    /// Kinds in demand, the most recently used first.
    demand: VecDeque<Demand>,
    /// Others are never in demand.
    kinds: Kinds,
    /// Before this no process is made; set by the first request since the last one was.
    refill_at: Option<Instant>,
    started: u64,
    refused: u64,
    spawns: Spawns,
    max_spawns: usize,
    max_spares: usize,
    idle_timeout: Duration,
    /// Goes up when the CLI is replaced: a process of an older one becomes no spare any more.
    generation: u64,
    closed: bool,
}

#[derive(Debug)]
struct Spare {
    launch: Arc<Launch>,
    process: Process,
}

#[derive(Debug)]
struct Demand {
    launch: Arc<Launch>,
    used: Instant,
    /// Set after a failed start.
    not_before: Option<Instant>,
}

/// See [`Spares::obtain`].
#[derive(Debug)]
pub(super) struct Obtained {
    pub process: Process,
    /// Held for a process that was started for the request, until it has said its first word; `None` for a spare.
    pub start: Option<Starting>,
}

/// Keeps others from starting while it is held, but for [`START_LIMIT`] at most: one that hangs must not stop everybody.
#[derive(Debug)]
pub(super) struct Starting(#[expect(dead_code, reason = "its drop is what counts")] oneshot::Sender<()>);

/// A spare that is asked something. It goes back when it was left clean, and else is killed, when this is dropped.
#[derive(Debug)]
pub(super) struct Lent {
    spares: Spares,
    launch: Arc<Launch>,
    generation: u64,
    process: Option<Process>,
    is_clean: bool,
}

impl Lent {
    /// The process.
    pub(super) fn process(&mut self) -> Option<&mut Process> {
        self.process.as_mut()
    }

    /// Says that the process is as it was before: everything that was asked is answered.
    pub(super) fn is_clean(&mut self) {
        self.is_clean = true;
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let process = self.process.take();
        let kept = if self.is_clean { process } else { None };
        self.spares.take_back(&self.launch, self.generation, kept);
    }
}

/// Counts among those who wait for their turn to start while it lives.
struct WaitingToStart<'a>(&'a watch::Sender<usize>);

impl<'a> WaitingToStart<'a> {
    fn new(waiting: &'a watch::Sender<usize>) -> Self {
        waiting.send_modify(|count| *count += 1);
        Self(waiting)
    }
}

impl Drop for WaitingToStart<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// Counts among those who wait for a place while it lives.
struct WaitingForPlace<'a>(&'a Spares);

impl<'a> WaitingForPlace<'a> {
    fn new(spares: &'a Spares) -> Self {
        spares.state().waiting_for_place += 1;
        Self(spares)
    }
}

impl Drop for WaitingForPlace<'_> {
    fn drop(&mut self) {
        self.0.state().waiting_for_place -= 1;
    }
}

impl Spares {
    /// Starts the maker.
    pub(super) fn new(settings: SpareSettings, live: &Live, tasks: &Tasks) -> Self {
        let wake = Arc::default();
        let spares = Self(Arc::new(Shared {
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
        }));
        tasks.spawn("claude-cli-spares", maker::make(spares.clone()));
        tasks.spawn("claude-cli-idle", {
            let spares = spares.clone();
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
        tasks.spawn("claude-cli-memory", {
            let spares = spares.clone();
            async move {
                let closing = spares.0.closing.clone();
                closing.run_until_cancelled(upkeep::run(spares)).await;
            }
        });
        spares
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
        let oldest = self.state().ready.pop_front();
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
        let State { ready, demand, .. } = &mut *state;
        let rank = |spare: &Spare| demand.iter().position(|kind| kind.launch == spare.launch).unwrap_or(usize::MAX);
        let victim = (0..ready.len()).max_by_key(|index| rank(&ready[*index]));
        let victim = victim.and_then(|index| ready.remove(index));
        drop(state);
        victim.is_some()
    }

    /// The places of all processes.
    pub(super) fn places(&self) -> &Places {
        &self.0.places
    }

    /// A spare of any model that differs from `kind` in nothing else, for a question that leaves it as it is. `None` when
    /// there is none that is ready.
    pub(super) fn lend(&self, kind: &Launch) -> Option<Lent> {
        let mut state = self.state();
        state.sweep();
        // The youngest: requests take the oldest of theirs.
        let position = state.ready.iter().rposition(|spare| kind.is_same_but_for_the_model(&spare.launch))?;
        let spare = state.ready.remove(position)?;
        state.lent.push(Arc::clone(&spare.launch));
        let generation = state.generation;
        drop(state);
        let Spare { launch, process } = spare;
        Some(Lent { spares: self.clone(), launch, generation, process: Some(process), is_clean: false })
    }

    /// Takes back what was lent. `process` is `None` when it cannot be used any more.
    fn take_back(&self, launch: &Arc<Launch>, generation: u64, process: Option<Process>) {
        let mut state = self.state();
        if let Some(position) = state.lent.iter().position(|lent| lent == launch) {
            state.lent.swap_remove(position);
        }
        // Meanwhile somebody may wait for its place, its subscription may be gone, or everything may be over.
        let is_wanted = !state.closed
            && state.generation == generation
            && state.waiting_for_place == 0
            && state.demand.iter().any(|kind| kind.launch == *launch);
        let unwanted = match process {
            Some(process) if is_wanted => {
                state.ready.push_back(Spare { launch: Arc::clone(launch), process });
                None
            }
            process => process,
        };
        drop(state);
        drop(unwanted);
        self.0.wake.notify_one();
    }

    fn start_in(&self, launch: &Launch, place: Place) -> Result<Process, StartError> {
        self.count_spawn()?;
        let process = Process::start(launch, place, self.0.settings.max_line_bytes, &self.0.tasks)
            .map_err(|source| StartError::Io { command: launch.command.display().to_string(), source })?;
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
        let dropped = {
            let mut state = self.state();
            state.max_spares = max_spares;
            state.kinds = kinds.clone();
            state.demand.retain(|kind| kinds.have(&kind.launch));
            let (kept, dropped) =
                std::mem::take(&mut state.ready).into_iter().partition(|spare| kinds.have(&spare.launch));
            state.ready = kept;
            let _: &VecDeque<Spare> = &dropped;
            dropped
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
        let spare = state.ready.len() + state.lent.len();
        let LiveCounts { idle: live, parked } = self.0.live.counts();
        let all = self.0.places.taken();
        let running = all.saturating_sub(spare + live + parked);
        ProcessCounts { running, live, parked, spare, started: state.started, refused: state.refused }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Lets go of spares that have ended. One that ends by itself would do so again: its kind is left alone for a while.
    fn sweep(&mut self) {
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

    fn note_demand(&mut self, launch: &Arc<Launch>) {
        if !self.kinds.have(launch) {
            return;
        }
        let known = self.demand.iter().position(|kind| kind.launch == *launch);
        let not_before = known.and_then(|position| self.demand.remove(position)).and_then(|kind| kind.not_before);
        self.demand.push_front(Demand { launch: Arc::clone(launch), used: Instant::now(), not_before });
    }
}
