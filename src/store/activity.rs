//! Requests of clients, from their start to their end.

use serde::Serialize;

use super::page::Item;
use super::sql::{Row, Sql};
use super::{Page, Paged, Result, Scope, Store, StoreError};
use crate::units::{MicroUsd, Timestamp};

const COLUMNS: [&str; 17] = [
    "id",
    "organization_id",
    "client",
    "session",
    "model",
    "subscription",
    "status",
    "attempts",
    "started_at",
    "updated_at",
    "completed_at",
    "input_tokens",
    "output_tokens",
    "cost",
    "duration_ms",
    "error",
    "revision",
];

/// Activities that one statement writes.
const BATCH: usize = 500;

/// One request of a client.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Activity {
    /// From [`super::new_id`].
    pub id: String,
    /// Whose it is, where there are organisations.
    pub organization_id: Option<String>,
    /// The name of the client's key.
    pub client: String,
    /// The session, as shown in `/debug/auth-pool`.
    pub session: String,
    /// The model's id.
    pub model: String,
    /// Who served it last.
    pub subscription: Option<String>,
    /// How far it is.
    pub status: ActivityStatus,
    /// Subscriptions that were tried so far.
    pub attempts: u64,
    /// When it came.
    pub started_at: Timestamp,
    /// When this was last true.
    pub updated_at: Timestamp,
    /// When it ended.
    pub completed_at: Option<Timestamp>,
    /// Over all attempts.
    pub input_tokens: u64,
    /// Over all attempts.
    pub output_tokens: u64,
    /// Over all attempts, in micro-dollars.
    pub cost: MicroUsd,
    /// How long it took, in milliseconds.
    pub duration_ms: Option<u64>,
    /// Why it failed.
    pub error: Option<String>,
    /// Counts the changes: an older state never replaces a newer one.
    #[serde(skip)]
    pub revision: u64,
}

impl Item for Activity {
    fn id(&self) -> &str {
        &self.id
    }
}

/// How far a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ActivityStatus {
    /// It runs, or waits.
    Running,
    /// Its answer was complete.
    Completed,
    /// It ended with an error.
    Failed,
    /// The client left, or the program was stopped.
    Cancelled,
    /// The program ended without saying what became of it.
    Interrupted,
}

const STATUSES: [ActivityStatus; 5] = [
    ActivityStatus::Running,
    ActivityStatus::Completed,
    ActivityStatus::Failed,
    ActivityStatus::Cancelled,
    ActivityStatus::Interrupted,
];

impl ActivityStatus {
    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Interrupted => "interrupted",
        }
    }

    /// The status with this name.
    pub fn parse(name: &str) -> Option<Self> {
        STATUSES.into_iter().find(|status| status.as_str() == name)
    }
}

/// Which activities are meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ActivityFilter {
    /// Whose.
    pub scope: Scope,
    /// Of the client key with this name.
    pub client: Option<String>,
    /// Served by this subscription last.
    pub subscription: Option<String>,
    /// In this state.
    pub status: Option<ActivityStatus>,
    /// Started from then on.
    pub from: Option<Timestamp>,
    /// Started before then.
    pub until: Option<Timestamp>,
}

impl Store {
    /// Writes the states of activities. No id may come twice.
    pub async fn put_activities(&self, activities: &[Activity]) -> Result<()> {
        self.transaction(upsert(activities)).await.map(drop)
    }

    /// Activities, the newest first.
    pub async fn activities(&self, filter: &ActivityFilter, page: &Page) -> Result<Paged<Activity>> {
        let mut sql = select();
        sql.filter("organization_id =", filter.scope.organization());
        sql.filter("client =", filter.client.as_deref());
        sql.filter("subscription =", filter.subscription.as_deref());
        sql.filter("status =", filter.status.map(ActivityStatus::as_str));
        sql.filter("started_at >=", filter.from);
        sql.filter("started_at <", filter.until);
        self.long_page(sql, page, read).await
    }

    /// An activity by its id.
    pub async fn activity(&self, scope: &Scope, id: &str) -> Result<Option<Activity>> {
        let mut sql = select();
        sql.filter("id =", Some(id)).filter("organization_id =", scope.organization());
        self.fetch(sql).await?.first().map(read).transpose()
    }

    /// Says of activities that they run: those that were said to be interrupted are not.
    pub async fn touch_activities(&self, ids: &[String], now: Timestamp) -> Result<()> {
        let (running, interrupted) = (ActivityStatus::Running.as_str(), ActivityStatus::Interrupted.as_str());
        for ids in ids.chunks(BATCH) {
            let mut sql = Sql::new("UPDATE activities SET status = ");
            sql.bind(running).push(", completed_at = NULL, updated_at = ").bind(now);
            sql.push(" WHERE status IN (").bind(running).push(", ").bind(interrupted).push(")");
            sql.one_of("id", ids);
            self.execute(sql).await?;
        }
        Ok(())
    }

    /// Says of activities that are still running, and were last heard of before `quiet_since`, that nobody knows what
    /// became of them. Returns how many there were.
    pub async fn interrupt_activities(&self, quiet_since: Timestamp, now: Timestamp) -> Result<u64> {
        let mut sql = Sql::new("UPDATE activities SET status = ");
        sql.bind(ActivityStatus::Interrupted.as_str()).push(", completed_at = ").bind(now);
        sql.push(" WHERE status = ").bind(ActivityStatus::Running.as_str());
        sql.filter("updated_at <", Some(quiet_since));
        self.execute(sql).await
    }
}

/// The statements that write `activities`.
pub(super) fn upsert(activities: &[Activity]) -> Vec<Sql> {
    let statement = |activities: &[Activity]| {
        let mut sql = Sql::new("INSERT INTO activities (");
        sql.push(&COLUMNS.join(", ")).push(") VALUES ");
        for (index, activity) in activities.iter().enumerate() {
            sql.tuple(
                if index == 0 { "" } else { ", " },
                [
                    (&activity.id).into(),
                    (&activity.organization_id).into(),
                    (&activity.client).into(),
                    (&activity.session).into(),
                    (&activity.model).into(),
                    (&activity.subscription).into(),
                    activity.status.as_str().into(),
                    activity.attempts.into(),
                    activity.started_at.into(),
                    activity.updated_at.into(),
                    activity.completed_at.into(),
                    activity.input_tokens.into(),
                    activity.output_tokens.into(),
                    activity.cost.into(),
                    activity.duration_ms.into(),
                    (&activity.error).into(),
                    activity.revision.into(),
                ],
            );
        }
        sql.push(" ON CONFLICT (id) DO UPDATE SET ");
        for (index, column) in COLUMNS[1..].iter().enumerate() {
            sql.push(if index == 0 { "" } else { ", " }).push(column).push(" = excluded.").push(column);
        }
        sql.push(" WHERE excluded.revision > activities.revision");
        sql
    };
    activities.chunks(BATCH).map(statement).collect()
}

fn select() -> Sql {
    let mut sql = Sql::new("SELECT ");
    sql.push(&COLUMNS.join(", ")).push(" FROM activities WHERE TRUE");
    sql
}

fn read(row: &Row) -> Result<Activity> {
    Ok(Activity {
        id: row.text("id")?,
        organization_id: row.maybe_text("organization_id")?,
        client: row.text("client")?,
        session: row.text("session")?,
        model: row.text("model")?,
        subscription: row.maybe_text("subscription")?,
        status: ActivityStatus::parse(&row.text("status")?).ok_or(StoreError::Unreadable("status"))?,
        attempts: row.count("attempts")?,
        started_at: row.time("started_at")?,
        updated_at: row.time("updated_at")?,
        completed_at: row.maybe_time("completed_at")?,
        input_tokens: row.count("input_tokens")?,
        output_tokens: row.count("output_tokens")?,
        cost: row.money("cost")?,
        duration_ms: row.maybe_count("duration_ms")?,
        error: row.maybe_text("error")?,
        revision: row.count("revision")?,
    })
}
