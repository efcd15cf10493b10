//! Runs the rules beside the requests.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::channels::{Channels, ChannelsSettings};
use super::message::{Alert, Channel, Kind, Severity};
use super::rules::{Notice, Open, Rule, Rulebook};
use super::webhook::Pace;
use crate::pool::{Effect, UsageView};
use crate::runtime::tasks::Tasks;
use crate::units::Timestamp;

/// How often weeks are looked at.
const TICK: Duration = Duration::from_secs(1);

/// Alerts that a slow listener may be behind before it misses some.
const TOLD_BACKLOG: usize = 256;

/// What is told, and where.
#[derive(Clone)]
pub struct Settings {
    /// The rules in force.
    pub rules: Vec<Rule>,
    /// Where the channels lead.
    pub channels: ChannelsSettings,
    /// How often weeks are looked at; read once.
    pub tick: Duration,
    /// How hard delivery is tried; read once.
    pub pace: Pace,
}

impl Default for Settings {
    fn default() -> Self {
        Self { rules: Vec::new(), channels: ChannelsSettings::default(), tick: TICK, pace: Pace::default() }
    }
}

/// The running alerts. A cheap handle.
#[derive(Clone)]
pub struct Alerts(Arc<Shared>);

struct Shared {
    rules: watch::Sender<Vec<Rule>>,
    book: Mutex<Rulebook>,
    channels: Channels,
    missed: AtomicU64,
    /// Everything that is told, for whoever keeps or shows it.
    told: broadcast::Sender<Alert>,
}

impl Alerts {
    /// Starts the tasks. `effects` is what the pool does from now on; `weeks` looks at all subscriptions.
    pub fn start(
        settings: Settings,
        effects: broadcast::Receiver<(Timestamp, Arc<[Effect]>)>,
        weeks: impl Fn() -> (Timestamp, Vec<UsageView>) + Send + 'static,
        tasks: &Tasks,
        stop: &CancellationToken,
    ) -> Self {
        let Settings { rules, channels, tick, pace } = settings;
        let channels = Channels::start(channels, pace, tasks, stop);
        let book = Mutex::new(Rulebook::new(&rules));
        let (rules, changes) = watch::channel(rules);
        let alerts = Self(Arc::new(Shared {
            rules,
            book,
            channels,
            missed: AtomicU64::new(0),
            told: broadcast::channel(TOLD_BACKLOG).0,
        }));
        let watch = Watch { shared: Arc::clone(&alerts.0), changes, effects, weeks };
        tasks.spawn("alerts", {
            let stop = stop.clone();
            async move {
                stop.run_until_cancelled(watch.run(tick)).await;
            }
        });
        alerts
    }

    /// Puts other rules and addresses in force, also for what waits. What has been told is not repeated.
    pub fn apply(&self, settings: Settings) {
        self.0.channels.apply(settings.channels);
        self.0.rules.send_if_modified(|rules| {
            let changed = *rules != settings.rules;
            if changed {
                *rules = settings.rules;
            }
            changed
        });
    }

    /// Takes in what was told before a restart and is not over, while `bring_back` gives the pool back the use that it
    /// was told of: nobody looks in between. Returns what that says, and what no rule is about any more.
    pub fn recall<T>(&self, open: Vec<Open>, bring_back: impl FnOnce() -> T) -> (T, Vec<Open>) {
        let mut book = self.0.book();
        let brought = bring_back();
        (brought, book.recall(open))
    }

    /// What the operator is told from now on.
    pub fn told(&self) -> broadcast::Receiver<Alert> {
        self.0.told.subscribe()
    }

    /// Tells something that concerns the whole program: it needs no rule, and goes wherever any rule's alerts go.
    pub fn tell(&self, at: Timestamp, kind: Kind, severity: Severity, message: String) {
        self.0.send_everywhere(of_all(at, kind, severity, message, false));
    }

    /// Tells that it is over.
    pub fn over(&self, at: Timestamp, kind: Kind, message: String) {
        self.0.send_everywhere(of_all(at, kind, Severity::Info, message, true));
    }

    /// For the operator's view: rules, events that were missed, and what became of all messages.
    pub fn view(&self) -> Value {
        let Shared { rules, channels, missed, .. } = &*self.0;
        json!({
            "rules": rules.borrow().len(),
            "missedEvents": missed.load(Ordering::Relaxed),
            "channels": channels.counts(),
        })
    }
}

impl Shared {
    fn book(&self) -> MutexGuard<'_, Rulebook> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send_everywhere(&self, alert: Alert) {
        let rules = self.rules.borrow();
        let channels = rules.iter().flat_map(|rule| rule.channels.iter().copied()).chain([Channel::Log]).collect();
        drop(rules);
        self.send(Notice { alert, channels });
    }

    fn send(&self, notice: Notice) {
        self.channels.send(&notice);
        // An error only means that nobody listens.
        let _ = self.told.send(notice.alert);
    }
}

struct Watch<F> {
    shared: Arc<Shared>,
    changes: watch::Receiver<Vec<Rule>>,
    effects: broadcast::Receiver<(Timestamp, Arc<[Effect]>)>,
    weeks: F,
}

impl<F: Fn() -> (Timestamp, Vec<UsageView>)> Watch<F> {
    /// Ends when the pool is gone.
    async fn run(mut self, tick: Duration) {
        // The first tick comes at once.
        let mut ticks = interval(tick);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Ok(()) = self.changes.changed() => self.shared.book().replace(&self.changes.borrow_and_update()),
                _ = ticks.tick() => self.look(),
                effect = self.effects.recv() => match effect {
                    Ok((now, effects)) => {
                        for effect in &*effects {
                            let notices = self.shared.book().hear(now, effect);
                            self.send(notices);
                        }
                    }
                    Err(RecvError::Lagged(missed)) => {
                        self.shared.missed.fetch_add(missed, Ordering::Relaxed);
                        warn!(missed, "too many pool events at once: no alerts are sent for some");
                    }
                    Err(RecvError::Closed) => return,
                },
            }
        }
    }

    fn look(&self) {
        let mut book = self.shared.book();
        let (now, weeks) = (self.weeks)();
        let mut notices = book.look(now, weeks);
        notices.extend(book.unfold(now));
        drop(book);
        self.send(notices);
    }

    fn send(&self, notices: Vec<Notice>) {
        for notice in notices {
            self.shared.send(notice);
        }
    }
}

/// An alert that concerns no subscription but the whole program.
fn of_all(at: Timestamp, kind: Kind, severity: Severity, message: String, resolved: bool) -> Alert {
    Alert { at, kind, severity, subscription: None, message, data: Map::new(), resolved }
}
