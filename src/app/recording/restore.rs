//! What was known before goes back into the pool: at the start, and to whoever joins later.
//!
//! The store may answer later than the pool begins, and what is registered in it joins later still. So it is noted who
//! was given back what; nothing is written of whoever was not.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::{info, warn};

use super::open_alerts::{self, OpenAlerts};
use crate::alert::Alerts;
use crate::gateway::{Clients, SharedPool};
use crate::pool::{Learned, PastSession, PastUse, Pool, Spent};
use crate::runtime::clock;
use crate::store::{Result, StickySession, Store, SubscriptionState, SumOf, UsageRecord, UsageSum};
use crate::units::Timestamp;

const HOUR: Duration = Duration::from_hours(1);

/// Budgets need this much.
const WEEK: Duration = Duration::from_hours(7 * 24);

/// Sessions are forgotten sooner than this.
const SESSIONS: Duration = Duration::from_hours(24);

/// Sessions that come back at most, the last used first.
const MOST_SESSIONS: u32 = 200_000;

/// Records that are read at once.
const PART: u32 = 10_000;

/// How exactly it is known again when something was used in the last hour, before that, and by clients: as long later
/// it may cease to count.
const STEPS: [Duration; 3] = [Duration::from_secs(1), Duration::from_mins(1), HOUR];

/// The time of which one statement makes sums, for each of [`STEPS`].
const SLICES: [Duration; 3] = [Duration::from_mins(10), Duration::from_hours(3), Duration::from_hours(3)];

/// By name, since when somebody is here.
type Joined = HashMap<Arc<str>, Timestamp>;

/// Who was given back what the store knows of them. A cheap handle.
#[derive(Clone, Default)]
pub(super) struct Recalled(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    members: Joined,
    clients: Joined,
    is_begun: bool,
}

/// Those who know nothing of what was before.
#[derive(Default)]
struct Newcomers {
    members: Joined,
    clients: Joined,
}

/// Those whose past is read.
struct Span {
    from: Timestamp,
    /// What was used from then on they know themselves; `None` at the start, when this process has written nothing yet.
    until: Option<Timestamp>,
}

/// What the store knows of them.
struct Past {
    states: Vec<SubscriptionState>,
    /// What other replicas may tell as well, the oldest first.
    records: Vec<UsageRecord>,
    members: Vec<UsageSum>,
    clients: Vec<UsageSum>,
    sessions: Vec<StickySession>,
    alerts: OpenAlerts,
}

impl Recalled {
    /// Whether what was learned of a member may be written: before, it would replace what is known by nothing.
    pub(super) fn knows(&self, member: &str) -> bool {
        self.lock().members.contains_key(member)
    }

    /// Gives everybody who is new back what the store knows. Reads everything before it changes anything: what fails
    /// half-way is tried again as a whole.
    pub(super) async fn catch_up(
        &self,
        pool: &SharedPool,
        clients: &Clients,
        alerts: &Alerts,
        store: &Store,
    ) -> Result<()> {
        let now = clock::now();
        let (newcomers, is_begun) = self.newcomers(pool, clients);
        if !is_begun {
            let span = Span { from: now - WEEK, until: None };
            self.give_back(&newcomers, &span, pool, clients, alerts, store).await?;
            self.lock().is_begun = true;
            return Ok(());
        }
        // They came one after the other, and each knows what was used since.
        let mut by_time: BTreeMap<Timestamp, Newcomers> = BTreeMap::new();
        for (member, joined) in newcomers.members {
            by_time.entry(joined).or_default().members.insert(member, joined);
        }
        for (client, joined) in newcomers.clients {
            by_time.entry(joined).or_default().clients.insert(client, joined);
        }
        for (joined, newcomers) in by_time {
            let span = Span { from: now - WEEK, until: Some(joined) };
            self.give_back(&newcomers, &span, pool, clients, alerts, store).await?;
        }
        Ok(())
    }

    fn newcomers(&self, pool: &SharedPool, clients: &Clients) -> (Newcomers, bool) {
        let members: Joined = pool.peek(|pool, _| pool.joined()).into_iter().collect();
        let clients: Joined = clients.joined().into_iter().collect();
        let mut known = self.lock();
        // Who has left and came back is new.
        known.members.retain(|member, joined| members.get(member) == Some(joined));
        known.clients.retain(|client, joined| clients.get(client) == Some(joined));
        let new = |all: Joined, known: &Joined| all.into_iter().filter(|(name, _)| !known.contains_key(name)).collect();
        let newcomers = Newcomers { members: new(members, &known.members), clients: new(clients, &known.clients) };
        (newcomers, known.is_begun)
    }

    async fn give_back(
        &self,
        newcomers: &Newcomers,
        span: &Span,
        pool: &SharedPool,
        clients: &Clients,
        alerts: &Alerts,
        store: &Store,
    ) -> Result<()> {
        let Past { states, records, members, clients: spent, sessions, alerts: open } =
            Past::read(newcomers, span, pool, store).await?;
        let now = clock::now();
        // Other replicas with the same store may have told some of it already.
        let records = pool.uncounted(records, |record| &record.id);
        let of_records = records.iter().map(|record| (record.client.as_str(), record.at, record.cost));
        let of_sums = spent.iter().map(|sum| (sum.name.as_str(), sum.at, sum.cost));
        for (client, at, cost) in
            of_sums.chain(of_records).filter(|(client, ..)| newcomers.clients.contains_key(*client))
        {
            clients.recall(now, client, at, cost);
        }
        let usage = members.into_iter().chain(records.iter().map(UsageSum::from));
        let (counts, strangers) = alerts.recall(open.told.clone(), || {
            pool.with(|pool, now| {
                let counts = newcomers.take_in(pool, now, states, usage, sessions);
                let mut known = self.lock();
                known.members.extend(newcomers.members.clone());
                known.clients.extend(newcomers.clients.clone());
                (counts, Vec::new())
            })
        });
        let Counts { usage, states, sessions } = counts;
        let (members, clients) = (newcomers.members.len(), newcomers.clients.len());
        info!(store = %store.location(), members, clients, usage, states, sessions, "what was known before is known again");
        let over = pool.peek(|pool, now| open.over(&strangers, pool, now));
        match store.close_alerts(&over, clock::now()).await {
            Ok(0) => {}
            Ok(closed) => info!(closed, "what alerts told of was over before this start"),
            Err(error) => warn!(%error, "alerts stay open of which nobody knows whether they still hold"),
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How much was taken in.
struct Counts {
    usage: usize,
    states: usize,
    sessions: usize,
}

impl Newcomers {
    fn take_in(
        &self,
        pool: &mut Pool,
        now: Timestamp,
        states: Vec<SubscriptionState>,
        usage: impl Iterator<Item = UsageSum>,
        sessions: Vec<StickySession>,
    ) -> Counts {
        // Whoever has left meanwhile and come back is given everything next time.
        let present: Joined = pool.joined().into_iter().collect();
        let is_new = |member: &str| self.members.get(member).is_some_and(|joined| present.get(member) == Some(joined));
        let mut known = 0;
        for kept in states.into_iter().filter(|kept| is_new(&kept.subscription)) {
            match serde_json::from_value::<Learned>(kept.state) {
                Ok(learned) => known += usize::from(pool.recall_learned(now, &kept.subscription, &learned)),
                Err(error) => warn!(subscription = kept.subscription, %error, "what was learned cannot be read"),
            }
        }
        let usage = usage.filter(|sum| is_new(&sum.name)).map(|sum| PastUse {
            subscription: sum.name.into(),
            at: sum.at,
            spent: Spent { usage: sum.usage, cost: sum.cost },
        });
        let usage = pool.recall_usage(now, usage);
        let past = sessions.into_iter().filter(|kept| is_new(&kept.subscription)).map(|kept| PastSession {
            id: kept.id,
            subscription: kept.subscription.into(),
            since: kept.since,
            last_used: kept.last_used,
        });
        Counts { usage, states: known, sessions: pool.recall_sessions(now, past) }
    }
}

impl Past {
    async fn read(newcomers: &Newcomers, span: &Span, pool: &SharedPool, store: &Store) -> Result<Self> {
        let names = |joined: &Joined| joined.keys().map(ToString::to_string).collect::<Vec<_>>();
        let (members, clients) = (names(&newcomers.members), names(&newcomers.clients));
        let states = if members.is_empty() { Vec::new() } else { store.subscription_states().await? };
        let now = clock::now();
        let end = span.until.unwrap_or(Timestamp::from_millis(i64::MAX));
        let singles = match pool.may_come_twice() {
            0 => None,
            _ if span.until.is_some() => None,
            count => Some(store.newest_usage(count).await?.unwrap_or(span.from).max(span.from)),
        };
        let sums_end = singles.unwrap_or(end);
        let records = match singles {
            Some(from) => read_usage(store, from).await?,
            None => Vec::new(),
        };
        let recent = (now - HOUR).max(span.from).min(sums_end);
        let mut of_members = Vec::new();
        if !members.is_empty() {
            of_members = read_sums(store, SumOf::Subscription, &members, (span.from, recent), 1).await?;
            of_members.extend(read_sums(store, SumOf::Subscription, &members, (recent, sums_end), 0).await?);
        }
        let mut of_clients = Vec::new();
        if !clients.is_empty() {
            of_clients = read_sums(store, SumOf::Client, &clients, (span.from, sums_end), 2).await?;
        }
        let sessions =
            if members.is_empty() { Vec::new() } else { store.sessions(now - SESSIONS, MOST_SESSIONS).await? };
        let alerts =
            open_alerts::read(store, span.until.unwrap_or(now), &newcomers.members, span.until.is_none()).await?;
        Ok(Self { states, records, members: of_members, clients: of_clients, sessions, alerts })
    }
}

/// Sums by `STEPS[exactness]`, in as many slices of time as it takes.
async fn read_sums(
    store: &Store,
    of: SumOf,
    names: &[String],
    (from, until): (Timestamp, Timestamp),
    exactness: usize,
) -> Result<Vec<UsageSum>> {
    // A clock that was set back leaves records of the future; they come with the last slice.
    let (mut sums, mut from, last) = (Vec::new(), from, clock::now().min(until));
    loop {
        let end = from + SLICES[exactness];
        let end = if end >= last { until } else { end };
        if from < end {
            sums.extend(store.usage_sums(of, names, from, end, STEPS[exactness]).await?);
        }
        if end >= until {
            return Ok(sums);
        }
        from = end;
    }
}

async fn read_usage(store: &Store, from: Timestamp) -> Result<Vec<UsageRecord>> {
    let (mut read, mut after) = (Vec::new(), None);
    loop {
        let part = store.usage_since(from, after.as_ref(), PART).await?;
        let is_last = part.len() < PART as usize;
        after = part.last().map(|last| (last.at, last.id.clone())).or(after);
        read.extend(part);
        if is_last {
            return Ok(read);
        }
    }
}
