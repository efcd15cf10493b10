//! Runs the rules beside the requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::channels::{Channels, ChannelsSettings};
use super::message::{Alert, Channel, Kind, Severity};
use super::rules::{Notice, Rule, Rulebook};
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
        let (rules, changes) = watch::channel(rules);
        let alerts = Self(Arc::new(Shared {
            rules,
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

    /// What the operator is told from now on.
    pub fn told(&self) -> broadcast::Receiver<Alert> {
        self.0.told.subscribe()
    }

    /// Tells something that concerns the whole program: it needs no rule, and goes wherever any rule's alerts go.
    pub fn tell(&self, at: Timestamp, kind: Kind, severity: Severity, message: String) {
        self.0.send_everywhere(Alert {
            at,
            kind,
            severity,
            subscription: None,
            message,
            data: Map::new(),
            resolved: false,
        });
    }

    /// Tells that it is over.
    pub fn over(&self, at: Timestamp, kind: Kind, message: String) {
        let severity = Severity::Info;
        self.0.send_everywhere(Alert {
            at,
            kind,
            severity,
            subscription: None,
            message,
            data: Map::new(),
            resolved: true,
        });
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
        let mut book = Rulebook::new(&self.changes.borrow_and_update());
        // The first tick comes at once.
        let mut ticks = interval(tick);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Ok(()) = self.changes.changed() => book.replace(&self.changes.borrow_and_update()),
                _ = ticks.tick() => {
                    let (now, weeks) = (self.weeks)();
                    self.send(book.look(now, weeks));
                    self.send(book.unfold(now));
                }
                effect = self.effects.recv() => match effect {
                    Ok((now, effects)) => {
                        for effect in &*effects {
                            self.send(book.hear(now, effect));
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

    fn send(&self, notices: Vec<Notice>) {
        for notice in notices {
            self.shared.send(notice);
        }
    }
}
