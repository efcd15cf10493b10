//! The one connection on which a replica asks and tells, and what happens when it breaks.
//!
//! One task owns it. What comes while the server works on one batch goes out together in the next, in the order in which
//! it came: so a place that was given back is free before anybody asks for it.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Pipeline, RedisError, RedisResult};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::address::Address;
use super::admission::{Answer, Pending};
use super::ledger::{Ledger, Settlement};
use super::news::{Heard, News};
use super::registry::{Lent, Registry};
use super::scripts::{Frame, Scripts, millis};
use super::status::{State, Status};
use super::{ALIVE, BEAT, Settings, reader};
use crate::runtime::clock;
use crate::runtime::tasks::Tasks;
use crate::units::Timestamp;

/// The longest the server may take for one batch before the connection counts as broken.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);
/// The longest a connection may take to come about.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// How long a server that was too slow, or away, is left alone; twice as long each time up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// What goes out together at most.
const BATCH: usize = 128;

type Listener = Arc<dyn Fn(Heard) + Send + Sync>;

/// What the task is asked.
#[derive(Debug)]
pub(super) enum Command {
    Admit(Box<Pending>),
    /// Where is this session bound?
    Find {
        session: String,
        reply: oneshot::Sender<Option<Arc<str>>>,
    },
    Settle(Settlement),
    Tell(News),
}

/// This replica's side.
pub(super) struct Link {
    pub(super) settings: Settings,
    pub(super) registry: Registry,
    pub(super) frame: Frame,
    pub(super) scripts: Scripts,
    pub(super) replica: String,
    commands: mpsc::UnboundedSender<Command>,
    /// Whether the server is asked at all.
    together: AtomicBool,
    /// It was too slow for somebody.
    slow: Notify,
    standing: Mutex<Standing>,
    joined: watch::Sender<bool>,
    /// Whether news have been listened to.
    listening: watch::Sender<bool>,
    hear: Listener,
}

#[derive(Debug)]
struct Standing {
    state: State,
    since: Timestamp,
    cause: Option<String>,
    replicas: u64,
    round_trip: Option<Duration>,
    times_apart: u64,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("replica", &self.replica).finish_non_exhaustive()
    }
}

/// Why a connection is given up. Never holds the address or what was sent.
#[derive(Debug)]
pub(super) struct Broken(pub(super) String);

impl From<RedisError> for Broken {
    fn from(error: RedisError) -> Self {
        // Details can hold parts of what was sent; kind and code cannot.
        Self(match error.code() {
            Some(code) => format!("the server answered {code}"),
            None => error.category().to_owned(),
        })
    }
}

impl Link {
    pub(super) fn start(
        address: &Address,
        settings: Settings,
        hear: Listener,
        tasks: &Tasks,
        stop: &CancellationToken,
    ) -> Arc<Self> {
        let replica = uuid::Uuid::new_v4().simple().to_string().split_off(20);
        let (commands, received) = mpsc::unbounded_channel();
        let standing = Standing {
            state: State::Joining,
            since: clock::now(),
            cause: None,
            replicas: 0,
            round_trip: None,
            times_apart: 0,
        };
        let link = Arc::new(Self {
            frame: Frame::new(&replica, &settings),
            scripts: Scripts::new(),
            registry: Registry::default(),
            settings,
            replica,
            commands,
            together: AtomicBool::new(false),
            slow: Notify::new(),
            standing: Mutex::new(standing),
            joined: watch::channel(false).0,
            listening: watch::channel(false).0,
            hear,
        });
        info!(server = %address, replica = link.replica, "limits and sessions are shared with other replicas");
        tasks.spawn("shared", run(Arc::clone(&link), address.clone(), received, stop.clone()));
        tasks.spawn("shared-news", reader::run(Arc::clone(&link), address.clone(), stop.clone()));
        link
    }

    pub(super) async fn joined(&self, patience: Duration) -> bool {
        let both = async {
            for part in [&self.joined, &self.listening] {
                // Its sender is in here, so it cannot be gone.
                let _ = part.subscribe().wait_for(|done| *done).await;
            }
        };
        tokio::time::timeout(patience, both).await.is_ok()
    }

    /// From now on no news are missed.
    pub(super) fn note_listening(&self) {
        self.listening.send_replace(true);
    }

    pub(super) fn is_together(&self) -> bool {
        self.together.load(Ordering::Acquire)
    }

    pub(super) fn send(&self, command: Command) {
        // The task is gone only when the program ends.
        let _ = self.commands.send(command);
    }

    pub(super) async fn find(&self, session: String) -> Option<Arc<str>> {
        if !self.is_together() {
            return None;
        }
        let (reply, home) = oneshot::channel();
        self.send(Command::Find { session, reply });
        tokio::time::timeout(self.settings.timeout, home).await.ok()?.ok()?
    }

    pub(super) fn tell(&self, news: News) {
        self.send(Command::Tell(news));
    }

    pub(super) fn hear(&self, heard: Heard) {
        (self.hear)(heard);
    }

    /// The server kept somebody waiting for too long: it is left alone for a moment.
    pub(super) fn note_slow(&self, cause: String) {
        self.part(cause);
        self.slow.notify_one();
    }

    fn part(&self, cause: String) {
        let mut standing = self.lock();
        self.together.store(false, Ordering::Release);
        let news = standing.state != State::Apart;
        if news {
            standing.state = State::Apart;
            standing.since = clock::now();
            standing.times_apart += 1;
        }
        standing.cause = Some(cause.clone());
        drop(standing);
        if news {
            self.hear(Heard::Apart { cause });
        }
    }

    fn unite(&self) {
        let mut standing = self.lock();
        let (was, since) = (standing.state, standing.since);
        standing.cause = None;
        if was != State::Together {
            standing.state = State::Together;
            standing.since = clock::now();
        }
        self.together.store(true, Ordering::Release);
        drop(standing);
        self.joined.send_replace(true);
        if was == State::Apart {
            self.hear(Heard::Together { after: clock::now().since(since) });
        }
    }

    pub(super) fn status(&self) -> Status {
        let standing = self.lock();
        Status {
            state: standing.state,
            since: standing.since,
            cause: standing.cause.clone(),
            replica: self.replica.clone(),
            replicas: standing.replicas,
            running: self.registry.len(),
            round_trip_ms: standing.round_trip.map(|time| (time.as_secs_f64() * 1e6).round() / 1e3),
            times_apart: standing.times_apart,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) async fn connect(address: &Address, answer_limit: Duration) -> Result<MultiplexedConnection, Broken> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_LIMIT))
        .set_response_timeout(Some(answer_limit));
    Ok(address.client().get_multiplexed_async_connection_with_config(&config).await?)
}

async fn run(
    link: Arc<Link>,
    address: Address,
    mut commands: mpsc::UnboundedReceiver<Command>,
    stop: CancellationToken,
) {
    let mut ledger = Ledger::default();
    let mut pause = FIRST_PAUSE;
    loop {
        let connecting = connect(&address, ANSWER_LIMIT);
        let Some(connection) = keeping(connecting, &mut commands, &mut ledger, &stop).await else { return };
        let broken = match connection {
            Ok(connection) => {
                let mut session = Session { link: &link, connection, ledger: &mut ledger, stop: &stop };
                match session.serve(&mut commands).await {
                    Ok(()) => return,
                    Err(broken) => broken,
                }
            }
            Err(broken) => broken,
        };
        if link.is_together() {
            pause = FIRST_PAUSE;
        }
        link.part(broken.0);
        if keeping(sleep(pause), &mut commands, &mut ledger, &stop).await.is_none() {
            return;
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Waits for `future` while what ends is kept; `None` when the program stops.
async fn keeping<T>(
    future: impl Future<Output = T>,
    commands: &mut mpsc::UnboundedReceiver<Command>,
    ledger: &mut Ledger,
    stop: &CancellationToken,
) -> Option<T> {
    tokio::pin!(future);
    loop {
        tokio::select! {
            () = stop.cancelled() => return None,
            value = &mut future => return Some(value),
            command = commands.recv() => keep(command?, ledger),
        }
    }
}

fn keep(command: Command, ledger: &mut Ledger) {
    match command {
        // Whoever waits hears that nobody answers, and goes on without.
        Command::Admit(_) | Command::Find { .. } => {}
        Command::Settle(settlement) => ledger.keep(settlement),
        Command::Tell(news) => ledger.keep_news(news),
    }
}

/// One connection's life.
struct Session<'a> {
    link: &'a Arc<Link>,
    connection: MultiplexedConnection,
    ledger: &'a mut Ledger,
    stop: &'a CancellationToken,
}

#[derive(Serialize)]
struct Beat {
    alive: u64,
}

#[derive(Deserialize)]
struct Beaten {
    known: bool,
    replicas: u64,
}

#[derive(Serialize)]
struct Reconcile {
    subscription: Arc<str>,
    leases: Vec<Lent>,
}

#[derive(Serialize)]
struct Condition {
    name: String,
    ends_in: u64,
    over: bool,
    news: String,
}

impl Session<'_> {
    /// Serves until the program stops or the connection breaks.
    async fn serve(&mut self, commands: &mut mpsc::UnboundedReceiver<Command>) -> Result<(), Broken> {
        let () = self.link.scripts.load().query_async(&mut self.connection).await?;
        self.beat().await?;
        self.catch_up().await?;
        self.link.unite();
        let mut beats = interval(BEAT);
        let mut syncs = interval(self.link.settings.sync_interval);
        for ticks in [&mut beats, &mut syncs] {
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks.reset();
        }
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            tokio::select! {
                biased;
                _ = beats.tick() => {
                    if !self.beat().await? {
                        warn!("this replica was taken for lost: its running requests are reported again");
                        self.reconcile().await?;
                    }
                }
                _ = syncs.tick() => self.reconcile().await?,
                () = self.link.slow.notified() => self.rest(commands).await?,
                count = commands.recv_many(&mut batch, BATCH) => {
                    if count == 0 {
                        return Ok(());
                    }
                    self.send(std::mem::take(&mut batch)).await?;
                }
                () = self.stop.cancelled() => return self.leave(commands).await,
            }
        }
    }

    /// The server was too slow for somebody: it is left alone for a moment, then told what happened meanwhile.
    async fn rest(&mut self, commands: &mut mpsc::UnboundedReceiver<Command>) -> Result<(), Broken> {
        if keeping(sleep(FIRST_PAUSE), commands, self.ledger, self.stop).await.is_none() {
            return Ok(());
        }
        self.beat().await?;
        self.catch_up().await?;
        self.link.unite();
        Ok(())
    }

    /// Tells what happened while the server was away, and what runs.
    async fn catch_up(&mut self) -> Result<(), Broken> {
        self.tell_kept().await?;
        self.reconcile().await
    }

    async fn tell_kept(&mut self) -> Result<(), Broken> {
        let lost = self.ledger.take_lost();
        if lost > 0 {
            warn!(lost, "too many requests ended while the server was away: the oldest are not reported");
        }
        while !self.ledger.is_empty() {
            let (settlements, news) = self.ledger.next(BATCH);
            let settlements = settlements.into_iter().map(Command::Settle);
            self.send(settlements.chain(news.into_iter().map(Command::Tell)).collect()).await?;
        }
        Ok(())
    }

    /// Says that this replica is alive. Returns whether it still counted as such.
    async fn beat(&mut self) -> Result<bool, Broken> {
        let alive = Beat { alive: millis(ALIVE) };
        let call = self.link.frame.call(&self.link.scripts.beat, &alive);
        let begun = Instant::now();
        let answer: String = call.query_async(&mut self.connection).await?;
        let round_trip = begun.elapsed();
        let Ok(Beaten { known, replicas }) = serde_json::from_str(&answer) else {
            return Err(Broken("the server answered nonsense".to_owned()));
        };
        let mut standing = self.link.lock();
        standing.replicas = replicas;
        standing.round_trip = Some(round_trip);
        Ok(known)
    }

    /// Makes the server's view of this replica's leases exact.
    async fn reconcile(&mut self) -> Result<(), Broken> {
        let all = self.link.registry.all(clock::now());
        let counted: Vec<u64> = all.iter().flat_map(|(_, leases)| leases.iter().map(|lent| lent.id)).collect();
        self.lend(all).await?;
        self.link.registry.note_counted(counted);
        Ok(())
    }

    /// Tells what this replica has lent on these subscriptions, and that it is all.
    async fn lend(&mut self, all: Vec<(Arc<str>, Vec<Lent>)>) -> Result<(), Broken> {
        let mut pipeline = Pipeline::new();
        for (subscription, leases) in all {
            let question = Reconcile { subscription, leases };
            pipeline.add_command(self.link.frame.call(&self.link.scripts.reconcile, &question)).ignore();
        }
        if !pipeline.is_empty() {
            let () = pipeline.query_async(&mut self.connection).await?;
        }
        Ok(())
    }

    /// Sends a batch and hands out the answers. What was not carried out is kept.
    async fn send(&mut self, batch: Vec<Command>) -> Result<(), Broken> {
        let now = clock::now();
        let Link { frame, scripts, .. } = &**self.link;
        let mut pipeline = Pipeline::new();
        for command in &batch {
            pipeline.add_command(match command {
                Command::Admit(pending) => frame.call(&scripts.admit, &pending.question),
                Command::Find { session, .. } => {
                    let mut find = redis::cmd("GET");
                    find.arg(frame.key("session:") + session);
                    find
                }
                Command::Settle(settlement) => frame.call(&scripts.settle, &settlement.question(now)),
                Command::Tell(news) => {
                    let condition = news.condition();
                    let until = condition.as_ref().and_then(|condition| condition.until);
                    let question = Condition {
                        over: condition.is_some() && until.is_none(),
                        ends_in: until.map_or(0, |until| millis(until.since(now))),
                        name: condition.map_or_else(String::new, |condition| condition.name),
                        news: news.encode(),
                    };
                    frame.call(&scripts.condition, &question)
                }
            });
        }
        let answers: RedisResult<Vec<RedisResult<Option<String>>>> =
            pipeline.ignore_errors().query_async(&mut self.connection).await;
        let mut broken = None;
        let mut answers = match answers {
            Ok(answers) => answers.into_iter(),
            Err(error) => {
                broken = Some(Broken::from(error));
                Vec::new().into_iter()
            }
        };
        for command in batch {
            let answer = match answers.next() {
                Some(Ok(answer)) => answer,
                Some(Err(error)) => {
                    broken.get_or_insert(error.into());
                    keep(command, self.ledger);
                    continue;
                }
                None => {
                    keep(command, self.ledger);
                    continue;
                }
            };
            match command {
                Command::Admit(pending) => {
                    if let Some(answer) = answer.as_deref().and_then(Answer::decode) {
                        pending.answer(answer);
                    }
                }
                Command::Find { reply, .. } => {
                    // Since when, whether it was answered, where.
                    let home = answer.as_deref().and_then(|answer| answer.splitn(3, ' ').nth(2)).map(Arc::from);
                    let _ = reply.send(home);
                }
                Command::Settle(_) | Command::Tell(_) => {}
            }
        }
        broken.map_or(Ok(()), Err)
    }

    /// The program stops: what has ended is told, and what is still out goes back at once.
    async fn leave(&mut self, commands: &mut mpsc::UnboundedReceiver<Command>) -> Result<(), Broken> {
        while let Ok(command) = commands.try_recv() {
            keep(command, self.ledger);
        }
        self.tell_kept().await?;
        let nothing =
            self.link.registry.all(clock::now()).into_iter().map(|(subscription, _)| (subscription, Vec::new()));
        self.lend(nothing.collect()).await?;
        let mut farewell = redis::cmd("ZREM");
        farewell.arg(self.link.frame.key("replicas")).arg(&self.link.replica);
        let () = farewell.query_async(&mut self.connection).await?;
        Ok(())
    }
}
