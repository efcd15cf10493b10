//! What happens, for those who follow it as it happens.
//!
//! The last events are kept in a ring. Every follower reads from the ring at its own pace and keeps nothing but its place
//! in it: one that is too slow is told how many it has missed, and costs no memory. An event's id names the process and
//! the event, so a follower that comes back goes on where it was, and learns when the process is another one.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::stream::{self, BoxStream, StreamExt as _};
use serde::Serialize;
use tokio::sync::watch;

use crate::pool::Effect;
use crate::units::{MicroUsd, Timestamp};

/// Events that are kept.
const KEPT: usize = 2048;

/// What an event is about, as it is named on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic {
    /// A request was given a subscription.
    Allocation,
    /// A session moved to another subscription.
    Rotation,
    /// An attempt ended, and this is what it used.
    Usage,
    /// A subscription's state changed: limits, breaker, login, budget.
    Subscription,
    /// An alert fired or was resolved.
    Alert,
    /// An attempt failed and the request goes on elsewhere if it may; or a backend beside the pool served it.
    Failover,
    /// Somebody changed accounts or keys.
    Change,
}

impl Topic {
    /// Every topic.
    pub const ALL: [Self; 7] =
        [Self::Allocation, Self::Rotation, Self::Usage, Self::Subscription, Self::Alert, Self::Failover, Self::Change];

    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allocation => "allocation",
            Self::Rotation => "rotation",
            Self::Usage => "usage",
            Self::Subscription => "subscription",
            Self::Alert => "alert",
            Self::Failover => "failover",
            Self::Change => "change",
        }
    }

    /// The topic with this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|topic| topic.as_str() == name)
    }

    /// What an effect is about.
    pub(super) const fn of(effect: &Effect) -> Self {
        match effect {
            Effect::Rotation { .. } | Effect::Moved { .. } => Self::Rotation,
            Effect::Failover { .. } => Self::Failover,
            _ => Self::Subscription,
        }
    }
}

/// Which events a follower wants.
#[derive(Clone, Debug, Default)]
pub struct FeedFilter {
    /// Only those of this organisation.
    pub organization: Option<Arc<str>>,
    /// Only those about these; empty is all.
    pub topics: Vec<Topic>,
}

/// What a follower reads next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// It follows from this event on. `missed` is how many it can no longer be told, as far as that is known.
    Begin {
        /// The last event before.
        id: String,
        /// `None` where nobody knows: the process was another one.
        missed: Option<u64>,
    },
    /// Something happened.
    Event {
        /// Where a follower that comes back goes on.
        id: String,
        /// What it is about.
        topic: Topic,
        /// A JSON object.
        data: Arc<str>,
    },
    /// It was too slow: this many are gone.
    Missed(u64),
}

/// The events. A cheap handle: clones share them.
#[derive(Clone, Debug)]
pub struct Feed(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Names this process.
    process: String,
    ring: Mutex<Ring>,
    /// The number of the next event; `None` once there will be no more.
    next: watch::Sender<Option<u64>>,
}

#[derive(Debug, Default)]
struct Ring {
    entries: VecDeque<Entry>,
    next: u64,
}

#[derive(Clone, Debug)]
struct Entry {
    number: u64,
    topic: Topic,
    organization: Option<Arc<str>>,
    data: Arc<str>,
}

impl Default for Feed {
    fn default() -> Self {
        let process = uuid::Uuid::new_v4().simple().to_string();
        Self(Arc::new(Shared {
            process: process.chars().take(12).collect(),
            ring: Mutex::default(),
            next: watch::Sender::new(Some(0)),
        }))
    }
}

impl Feed {
    /// Tells that something happened at `at`. `data` is written as an object, and holds no secret.
    pub fn publish<T: Serialize>(&self, at: Timestamp, topic: Topic, organization: Option<&Arc<str>>, data: &T) {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Dated<'a, T> {
            at: Timestamp,
            #[serde(skip_serializing_if = "Option::is_none")]
            organization_id: Option<&'a str>,
            #[serde(flatten)]
            data: &'a T,
        }
        let dated = Dated { at, organization_id: organization.map(|id| &**id), data };
        let data = match serde_json::to_string(&dated) {
            Ok(data) => data.into(),
            Err(error) => return tracing::error!(%error, topic = topic.as_str(), "an event could not be written"),
        };
        let next = {
            let mut ring = self.lock();
            let number = ring.next;
            if ring.entries.len() == KEPT {
                ring.entries.pop_front();
            }
            ring.entries.push_back(Entry { number, topic, organization: organization.cloned(), data });
            ring.next += 1;
            ring.next
        };
        // Two at the same time may come here in either order: the larger number counts.
        self.0.next.send_if_modified(|known| {
            let is_news = known.is_some_and(|known| known < next);
            if is_news {
                *known = Some(next);
            }
            is_news
        });
    }

    /// Ends every follower's stream.
    pub fn close(&self) {
        self.0.next.send_replace(None);
    }

    /// What happens from now on, or since the event with the id `after`. Ends when the process does.
    pub fn follow(&self, after: Option<&str>, filter: FeedFilter) -> BoxStream<'static, Told> {
        let (cursor, missed) = self.place(after);
        let begin = Told::Begin { id: self.id_before(cursor), missed };
        let follower = Follower { feed: self.clone(), next: self.0.next.subscribe(), cursor, filter };
        let rest = stream::unfold(follower, |mut follower| async move {
            let told = follower.next().await?;
            Some((told, follower))
        });
        stream::iter([begin]).chain(rest).boxed()
    }

    /// Where a follower goes on, and what it has missed.
    fn place(&self, after: Option<&str>) -> (u64, Option<u64>) {
        let ring = self.lock();
        let oldest = ring.oldest();
        let Some(after) = after else { return (ring.next, Some(0)) };
        let number = after
            .split_once('-')
            .filter(|(process, _)| *process == self.0.process)
            .and_then(|(_, number)| number.parse::<u64>().ok())
            .filter(|number| *number <= ring.next);
        match number {
            // Ids count from 1, so that 0 stands before the first.
            Some(number) => (number.max(oldest), Some(oldest.saturating_sub(number))),
            None => (oldest, None),
        }
    }

    fn id_before(&self, number: u64) -> String {
        format!("{}-{number}", self.0.process)
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.0.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ring {
    fn oldest(&self) -> u64 {
        self.entries.front().map_or(self.next, |entry| entry.number)
    }
}

struct Follower {
    feed: Feed,
    next: watch::Receiver<Option<u64>>,
    /// The number of the event to be read next.
    cursor: u64,
    filter: FeedFilter,
}

impl Follower {
    async fn next(&mut self) -> Option<Told> {
        loop {
            if self.next.borrow_and_update().is_none() {
                return None;
            }
            if let Some(told) = self.read() {
                return Some(told);
            }
            self.next.changed().await.ok()?;
        }
    }

    fn read(&mut self) -> Option<Told> {
        let ring = self.feed.lock();
        let oldest = ring.oldest();
        if self.cursor < oldest {
            let missed = oldest - self.cursor;
            self.cursor = oldest;
            return Some(Told::Missed(missed));
        }
        let skipped = usize::try_from(self.cursor - oldest).unwrap_or(usize::MAX);
        let entry = ring.entries.iter().skip(skipped).find(|entry| self.filter.admits(entry)).cloned();
        self.cursor = entry.as_ref().map_or(ring.next, |entry| entry.number + 1);
        drop(ring);
        let Entry { number, topic, data, .. } = entry?;
        Some(Told::Event { id: self.feed.id_before(number + 1), topic, data })
    }
}

impl FeedFilter {
    fn admits(&self, entry: &Entry) -> bool {
        let about = self.topics.is_empty() || self.topics.contains(&entry.topic);
        about && (self.organization.is_none() || self.organization == entry.organization)
    }
}

/// An allocation, as an event.
#[derive(Debug, Serialize)]
pub(super) struct AllocationTold<'a> {
    pub(super) session: String,
    pub(super) client: &'a str,
    pub(super) subscription: &'a str,
    pub(super) attempt: u32,
    pub(super) kind: &'static str,
    pub(super) reason: String,
}

/// A failed attempt, as an event.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct FailureTold<'a> {
    pub(super) client: &'a str,
    pub(super) subscription: &'a str,
    pub(super) attempt: u32,
    pub(super) cause: &'static str,
    pub(super) goes_on: bool,
}

/// What an attempt used, as an event.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct UsageTold<'a> {
    pub(super) subscription: &'a str,
    pub(super) client: &'a str,
    pub(super) outcome: &'a str,
    #[serde(rename = "costUsd", serialize_with = "as_usd")]
    pub(super) cost: MicroUsd,
    pub(super) input_tokens: u64,
    pub(super) output_tokens: u64,
    pub(super) cache_creation_tokens: u64,
    pub(super) cache_read_tokens: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes fields so")]
fn as_usd<S: serde::Serializer>(cost: &MicroUsd, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(cost.as_usd())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    fn publish(feed: &Feed, topic: Topic, organization: Option<&str>, number: usize) {
        feed.publish(NOW, topic, organization.map(Arc::from).as_ref(), &json!({ "n": number }));
    }

    fn event(told: Option<Told>) -> (String, u64) {
        let Some(Told::Event { id, data, .. }) = told else { panic!("{told:?}") };
        let data: serde_json::Value = serde_json::from_str(&data).unwrap();
        (id, data["n"].as_u64().unwrap())
    }

    #[tokio::test]
    async fn a_follower_goes_on_where_it_was() {
        let feed = Feed::default();
        publish(&feed, Topic::Usage, None, 0);
        let mut stream = feed.follow(None, FeedFilter::default());
        let Some(Told::Begin { id: begin, missed: Some(0) }) = stream.next().await else { panic!("a beginning") };
        for number in 1..4 {
            publish(&feed, Topic::Usage, None, number);
        }
        let (first, number) = event(stream.next().await);
        assert_eq!(number, 1);
        drop(stream);
        let mut again = feed.follow(Some(&first), FeedFilter::default());
        assert_eq!(again.next().await, Some(Told::Begin { id: first, missed: Some(0) }));
        assert_eq!((event(again.next().await).1, event(again.next().await).1), (2, 3));
        // One that has read nothing but the beginning misses nothing either.
        let mut early = feed.follow(Some(&begin), FeedFilter::default());
        early.next().await;
        assert_eq!(event(early.next().await).1, 1);
        feed.close();
        assert_eq!(again.next().await, None);
    }

    #[tokio::test]
    async fn whoever_is_too_slow_is_told_what_is_gone_and_holds_nothing() {
        let feed = Feed::default();
        let mut slow = feed.follow(None, FeedFilter::default());
        slow.next().await;
        for number in 0..KEPT + 10 {
            publish(&feed, Topic::Usage, None, number);
        }
        assert_eq!(feed.lock().entries.len(), KEPT);
        assert_eq!(slow.next().await, Some(Told::Missed(10)));
        assert_eq!(event(slow.next().await).1, 10);
        let mut late = feed.follow(Some(&format!("{}-3", feed.0.process)), FeedFilter::default());
        assert!(matches!(late.next().await, Some(Told::Begin { missed: Some(7), .. })));
        assert_eq!(event(late.next().await).1, 10);
    }

    #[tokio::test]
    async fn of_another_process_nobody_knows_what_was_missed() {
        let feed = Feed::default();
        publish(&feed, Topic::Alert, None, 0);
        let own = &feed.0.process;
        for foreign in ["0123456789ab-7", "", "-", "nonsense", &format!("{own}-"), &format!("{own}-9"), "\u{1F980}-1"] {
            let mut stream = feed.follow(Some(foreign), FeedFilter::default());
            assert!(matches!(stream.next().await, Some(Told::Begin { missed: None, .. })), "{foreign}");
            assert_eq!(event(stream.next().await).1, 0, "{foreign}");
        }
    }

    #[tokio::test]
    async fn everybody_hears_of_their_own() {
        let feed = Feed::default();
        let own = FeedFilter { organization: Some("acme".into()), topics: vec![Topic::Usage] };
        let mut stream = feed.follow(None, own);
        stream.next().await;
        publish(&feed, Topic::Usage, None, 0);
        publish(&feed, Topic::Usage, Some("other"), 1);
        publish(&feed, Topic::Alert, Some("acme"), 2);
        publish(&feed, Topic::Usage, Some("acme"), 3);
        let (id, number) = event(stream.next().await);
        assert_eq!((number, id), (3, format!("{}-4", feed.0.process)));
    }
}
