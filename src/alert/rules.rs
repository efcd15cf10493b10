//! When an alert is sent: from the pool's effects and figures to alerts. Pure; time comes in.
//!
//! **Shares of a week** are told on crossing: once per subscription and threshold, until it is over. It is over when the
//! provider's week has ended, or when use has fallen clearly below the threshold (a rolling week that wavers around it
//! says nothing new). The end is told too, as the same alert with `resolved`, and the threshold is armed again. What has
//! been told survives a change of the rules, so that a reload repeats nothing.
//!
//! **Events** are told as they come, but each kind about one subscription at most once a minute: what comes within that
//! minute is told at its end, in one message with a count. A thousand sessions that leave a subscription together are
//! two messages.

mod open;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};

pub use open::Open;

use super::message::{Alert, Channel, Kind, Severity, TOLERANCE, figures, number};
use crate::pool::{Effect, Runaway, Status, UsageView};
use crate::units::Timestamp;

/// How far below its threshold use must fall for the alert to be over within the same week: as a part of the threshold,
/// and at most this share of the budget.
const HYSTERESIS: (f64, f64) = (0.1, 0.05);

/// How long it is remembered what was told of a subscription that is not seen any more.
const WEEK: Duration = Duration::from_hours(7 * 24);

/// Events of one kind about one subscription within this time are one message.
pub const FOLD: Duration = Duration::from_secs(60);

/// What sets an alert off.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Trigger {
    /// A share of the weekly budget, 1.0 being all of it.
    UsageThreshold {
        /// From here on.
        share: f64,
    },
    /// A level of the quota alerts.
    Quota {
        /// From here on.
        share: f64,
        /// How bad that is.
        severity: Severity,
    },
    /// A request was served by a backend beside the pool, because the pool could not.
    Failover,
    /// A session moved because its subscription could no longer serve it.
    Rotation,
    /// The provider limits a subscription.
    LimitReached,
    /// A subscription cannot log in.
    AuthFailed,
    /// A subscription can be used again.
    Recovered,
    /// The server that replicas share is out of reach.
    ReplicasApart,
    /// The runaway guard stops something that goes in circles.
    Runaway,
}

impl Trigger {
    /// The kind of its alerts.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::UsageThreshold { .. } => Kind::UsageThreshold,
            Self::Quota { .. } => Kind::QuotaAlert,
            Self::Failover => Kind::Failover,
            Self::Rotation => Kind::Rotation,
            Self::LimitReached => Kind::LimitReached,
            Self::AuthFailed => Kind::AuthFailed,
            Self::Recovered => Kind::Recovered,
            Self::ReplicasApart => Kind::ReplicasApart,
            Self::Runaway => Kind::Runaway,
        }
    }
}

/// What sets an alert off, and where it goes.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// What.
    pub trigger: Trigger,
    /// Where to.
    pub channels: BTreeSet<Channel>,
}

/// An alert and where it goes.
#[derive(Clone, Debug, PartialEq)]
pub struct Notice {
    /// What is told.
    pub alert: Alert,
    /// Where to.
    pub channels: BTreeSet<Channel>,
}

/// The rules in force, and what has been told under them.
#[derive(Clone, Debug, Default)]
pub struct Rulebook {
    /// The lowest first; each threshold of a kind once.
    levels: Vec<Level>,
    events: BTreeMap<Kind, BTreeSet<Channel>>,
    /// Thresholds that were crossed and are not over, by subscription.
    told: HashMap<Arc<str>, Vec<Told>>,
    /// The weeks as last seen.
    usage: HashMap<Arc<str>, UsageView>,
    folded: HashMap<EventKey, Fold>,
}

#[derive(Clone, Debug)]
struct Level {
    kind: Kind,
    share: f64,
    severity: Severity,
    channels: BTreeSet<Channel>,
}

/// A threshold that was crossed.
#[derive(Clone, Copy, Debug)]
struct Told {
    kind: Kind,
    share: f64,
    at: Timestamp,
    /// When the week in which it was crossed ends, as far as the provider has said so.
    week_ends: Option<Timestamp>,
    /// Whether a message was sent: of several quota levels crossed at once only the highest is told.
    sent: bool,
}

impl Told {
    fn is(&self, level: &Level) -> bool {
        self.kind == level.kind && (self.share - level.share).abs() < TOLERANCE
    }
}

/// What makes two events repetitions of each other: kind, subscription, for limits which one it is, and for what the
/// runaway guard stops whose it is.
type EventKey = (Kind, Arc<str>, String);

/// A kind of event that was just told.
#[derive(Clone, Debug)]
struct Fold {
    since: Timestamp,
    /// The last that was not told, and how many there were.
    waiting: Option<(Alert, u64)>,
}

impl Rulebook {
    /// These rules, under which nothing has been told.
    pub fn new(rules: &[Rule]) -> Self {
        let mut book = Self::default();
        book.replace(rules);
        book
    }

    /// Puts other rules in force. What has been told stays told.
    pub fn replace(&mut self, rules: &[Rule]) {
        self.levels.clear();
        self.events.clear();
        for Rule { trigger, channels } in rules {
            let kind = trigger.kind();
            let (share, severity) = match *trigger {
                Trigger::UsageThreshold { share } => (share, severity_of(share)),
                Trigger::Quota { share, severity } => (share, severity),
                _ => {
                    self.events.entry(kind).or_default().extend(channels);
                    continue;
                }
            };
            let same = |level: &&mut Level| level.kind == kind && (level.share - share).abs() < TOLERANCE;
            if let Some(level) = self.levels.iter_mut().find(same) {
                level.channels.extend(channels);
            } else {
                self.levels.push(Level { kind, share, severity, channels: channels.clone() });
            }
        }
        self.levels.sort_by(|left, right| left.share.total_cmp(&right.share));
    }

    /// Looks at the weeks of all subscriptions.
    pub fn look(&mut self, now: Timestamp, weeks: Vec<UsageView>) -> Vec<Notice> {
        let mut notices = Vec::new();
        let mut told = std::mem::take(&mut self.told);
        for week in &weeks {
            let mut crossed = told.remove(&week.id).unwrap_or_default();
            crossed.retain_mut(|told| self.holds(now, week, told, &mut notices));
            self.cross(now, week, &mut crossed, &mut notices);
            if !crossed.is_empty() {
                self.told.insert(Arc::clone(&week.id), crossed);
            }
        }
        // One that was removed may come back, with its use.
        for (id, mut crossed) in told {
            crossed.retain(|told| now.since(told.at) < WEEK);
            if !crossed.is_empty() {
                self.told.insert(id, crossed);
            }
        }
        self.usage = weeks.into_iter().map(|week| (Arc::clone(&week.id), week)).collect();
        notices
    }

    /// Whether a crossed threshold is not over yet. If it is, that is told.
    fn holds(&self, now: Timestamp, week: &UsageView, told: &mut Told, notices: &mut Vec<Notice>) -> bool {
        // What was told before a restart may be of a week of which nobody knows when it ended, but this one's end is.
        let of_older = told.week_ends.is_none() && week.week_ends.is_some_and(|end| told.at < end - WEEK);
        let new_week = told.week_ends.is_some_and(|end| end <= now) || of_older;
        let below = week.weekly_share + TOLERANCE < told.share;
        let clearly = week.weekly_share < told.share - (told.share * HYSTERESIS.0).min(HYSTERESIS.1);
        if !(clearly || below && new_week) {
            told.week_ends = week.week_ends.or(told.week_ends);
            // Above in a new week is a new crossing.
            return !new_week;
        }
        if let Some(level) = self.levels.iter().find(|level| told.is(level)).filter(|_| told.sent) {
            let message = format!(
                "Subscription {} back at {}% weekly budget, below {}%",
                week.id,
                whole_percent(week.weekly_share),
                number(level.share * 100.0)
            );
            notices.push(level.notice(now, week, message, true));
        }
        false
    }

    fn cross(&self, now: Timestamp, week: &UsageView, crossed: &mut Vec<Told>, notices: &mut Vec<Notice>) {
        let new =
            |level: &&Level| week.weekly_share + TOLERANCE >= level.share && crossed.iter().all(|told| !told.is(level));
        let new: Vec<&Level> = self.levels.iter().filter(new).collect();
        for (index, level) in new.iter().enumerate() {
            let exceeded = |higher: &&Level| level.kind == Kind::QuotaAlert && higher.kind == Kind::QuotaAlert;
            let sent = !new.iter().skip(index + 1).any(exceeded);
            let Level { kind, share, .. } = **level;
            crossed.push(Told { kind, share, at: now, week_ends: week.week_ends, sent });
            if sent {
                let message =
                    format!("Subscription {} at {}% weekly budget", week.id, whole_percent(week.weekly_share));
                notices.push(level.notice(now, week, message, false));
            }
        }
    }

    /// Takes in what the pool did.
    pub fn hear(&mut self, now: Timestamp, effect: &Effect) -> Vec<Notice> {
        let Some(event) = Event::of(effect) else { return Vec::new() };
        let Some(channels) = self.events.get(&event.kind) else { return Vec::new() };
        let key = event.key();
        let alert = event.alert(now, self.usage.get(&key.1));
        if let Some(fold) = self.folded.get_mut(&key) {
            let count = fold.waiting.take().map_or(0, |(_, count)| count);
            fold.waiting = Some((alert, count + 1));
            return Vec::new();
        }
        self.folded.insert(key, Fold { since: now, waiting: None });
        vec![Notice { alert, channels: channels.clone() }]
    }

    /// Tells what has waited long enough.
    pub fn unfold(&mut self, now: Timestamp) -> Vec<Notice> {
        let mut notices = Vec::new();
        let events = &self.events;
        self.folded.retain(|(kind, ..), fold| {
            if now.since(fold.since) < FOLD {
                return true;
            }
            let Some((mut alert, count)) = fold.waiting.take() else { return false };
            fold.since = now;
            if count > 1 {
                alert.message = format!("{} (and {} more in the last minute)", alert.message, count - 1);
                alert.data.insert("count".to_owned(), Value::from(count));
            }
            // Its rule may have gone meanwhile.
            if let Some(channels) = events.get(kind) {
                notices.push(Notice { alert, channels: channels.clone() });
            }
            true
        });
        // A map has no order, but what happened has.
        notices.sort_by_key(|notice| notice.alert.at);
        notices
    }
}

impl Level {
    fn notice(&self, now: Timestamp, week: &UsageView, message: String, resolved: bool) -> Notice {
        let mut data = figures(week, now);
        data.insert("threshold".to_owned(), number(self.share * 100.0));
        let severity = if resolved { Severity::Info } else { self.severity };
        let subscription = Some(Arc::clone(&week.id));
        let alert = Alert { at: now, kind: self.kind, severity, subscription, message, data, resolved };
        Notice { alert, channels: self.channels.clone() }
    }
}

/// What the quota alerts' own levels are by default.
fn severity_of(share: f64) -> Severity {
    match share + TOLERANCE {
        share if share >= 1.0 => Severity::Emergency,
        share if share >= 0.95 => Severity::Critical,
        _ => Severity::Warning,
    }
}

/// Rounded down: 79.99 has not reached 80.
fn whole_percent(share: f64) -> String {
    format!("{:.0}", ((share + TOLERANCE) * 100.0).floor())
}

/// An effect that a rule can be about.
struct Event {
    kind: Kind,
    severity: Severity,
    /// Whom it is about, if about one.
    subscription: Option<Arc<str>>,
    message: String,
    details: Vec<(&'static str, Value)>,
    /// Whether it says that an earlier one is over.
    resolved: bool,
}

impl Event {
    fn of(effect: &Effect) -> Option<Self> {
        let event = |kind, severity, subscription: &Arc<str>, message, details| {
            let subscription = Some(Arc::clone(subscription));
            Some(Self { kind, severity, subscription, message, details, resolved: false })
        };
        let of_all = |kind, severity, message, details, resolved| {
            Some(Self { kind, severity, subscription: None, message, details, resolved })
        };
        match effect {
            Effect::Rotation { session, from, to, cause } => event(
                Kind::Rotation,
                Severity::Info,
                from,
                format!("Session {session} moved from {from} to {to}: {cause}"),
                vec![
                    ("session", session.as_str().into()),
                    ("from", (**from).into()),
                    ("to", (**to).into()),
                    ("cause", cause.as_str().into()),
                ],
            ),
            Effect::Failover { session, backend, cause } => event(
                Kind::Failover,
                Severity::Warning,
                backend,
                format!("Session {session} was served by the backend {backend}: {cause}"),
                vec![
                    ("session", session.as_str().into()),
                    ("backend", (**backend).into()),
                    ("cause", cause.as_str().into()),
                ],
            ),
            Effect::LimitReached { subscription, cause, until } => event(
                Kind::LimitReached,
                Severity::Warning,
                subscription,
                format!("Subscription {subscription} is limited until {until}: {cause}"),
                vec![("cause", cause.as_str().into()), ("until", until.to_string().into())],
            ),
            Effect::AuthFailed { subscription, cause } => event(
                Kind::AuthFailed,
                Severity::Critical,
                subscription,
                format!("Subscription {subscription} cannot log in: {cause}"),
                vec![("cause", cause.as_str().into())],
            ),
            Effect::Recovered { subscription, cause } => event(
                Kind::Recovered,
                Severity::Info,
                subscription,
                format!("Subscription {subscription} can be used again; over is: {cause}"),
                vec![("cause", cause.as_str().into())],
            ),
            // Its budget has been out of reach and is not any more.
            Effect::StatusChanged {
                subscription,
                from: Status::Limited,
                to: Status::Available | Status::Approaching,
                cause,
            } => event(
                Kind::Recovered,
                Severity::Info,
                subscription,
                format!("Subscription {subscription} can be used again: {cause}"),
                vec![("cause", cause.as_str().into())],
            ),
            Effect::ReplicasApart { cause } => of_all(
                Kind::ReplicasApart,
                Severity::Warning,
                format!("Redis is out of reach, each replica counts by itself: {cause}"),
                vec![("cause", cause.as_str().into())],
                false,
            ),
            Effect::ReplicasTogether { after_seconds } => of_all(
                Kind::ReplicasApart,
                Severity::Info,
                format!("Redis answers again after {after_seconds} s, limits hold for all replicas together"),
                vec![("afterSeconds", (*after_seconds).into())],
                true,
            ),
            Effect::RunawayGuard { what, client, cause } => of_all(
                Kind::Runaway,
                Severity::Critical,
                format!("The runaway guard stops {}: {cause}", runaway(*what, client.as_deref())),
                of_runaway(*what, client.as_deref(), ("cause", cause.as_str().into())),
                false,
            ),
            Effect::RunawayOver { what, client, after_seconds } => of_all(
                Kind::Runaway,
                Severity::Info,
                format!("The runaway guard need not stop {} any more", runaway(*what, client.as_deref())),
                of_runaway(*what, client.as_deref(), ("afterSeconds", (*after_seconds).into())),
                true,
            ),
            // Throttles and open breakers last for seconds or minutes, and the rebalancer only tidies up: nobody is
            // woken for that. They are in the log and in the metrics.
            Effect::StatusChanged { .. }
            | Effect::Throttled { .. }
            | Effect::BreakerOpened { .. }
            | Effect::Moved { .. } => None,
        }
    }

    fn key(&self) -> EventKey {
        let which = match self.kind {
            Kind::LimitReached => self.detail("cause").to_owned(),
            Kind::Runaway => format!("{} {}", self.detail("what"), self.detail("client")),
            _ => String::new(),
        };
        // The end of something is no repetition of its beginning.
        let which = if self.resolved { format!("{which} resolved") } else { which };
        (self.kind, self.subscription.clone().unwrap_or_default(), which)
    }

    /// What is said under `name`; nothing if that is no text.
    fn detail(&self, name: &str) -> &str {
        self.details.iter().find(|(known, _)| *known == name).and_then(|(_, value)| value.as_str()).unwrap_or_default()
    }

    fn alert(self, now: Timestamp, week: Option<&UsageView>) -> Alert {
        let Self { kind, severity, subscription, message, details, resolved } = self;
        let mut data = week.map_or_else(Map::new, |week| figures(week, now));
        data.extend(details.into_iter().map(|(name, value)| (name.to_owned(), value)));
        Alert { at: now, kind, severity, subscription, message, data, resolved }
    }
}

/// What machines read of it.
fn of_runaway(what: Runaway, client: Option<&str>, more: (&'static str, Value)) -> Vec<(&'static str, Value)> {
    vec![("what", what.as_str().into()), ("client", client.into()), more]
}

/// What goes in circles, and whose it is, for people.
fn runaway(what: Runaway, client: Option<&str>) -> String {
    match (what, client) {
        (Runaway::RepeatedPrompts, client) => format!("the client {}", client.unwrap_or("anonymous")),
        (Runaway::Spawns, _) => "the start of CLI processes".to_owned(),
        (Runaway::Loop, _) => "requests of this server that come back to it".to_owned(),
    }
}

#[cfg(test)]
mod tests;
