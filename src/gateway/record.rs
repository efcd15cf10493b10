//! What requests leave behind, for whoever keeps it.
//!
//! A [`Trace`] goes with a request: its leases hold it, and whoever runs the request does. Each ended lease is told to
//! the [`Recorder`], and so is the request's own state: when it comes, when an attempt begins, and at the end, which is
//! when nobody holds the trace any more. So the end is told however it comes about.

use std::sync::{Arc, Mutex, PoisonError};

use super::{Call, GatewayError};
use crate::conversation::Usage;
use crate::pool::{Outcome, PastSession, SessionKey, SessionLabel, Spent};
use crate::runtime::clock;
use crate::units::{MicroUsd, Timestamp};

/// Keeps what requests leave behind. Is called while requests run: it must not wait for anything.
pub trait Recorder: Send + Sync + 'static {
    /// An attempt has ended, and used something.
    fn used(&self, used: Used<'_>);

    /// The state of a request has changed.
    fn progress(&self, progress: &Progress);

    /// A session was used.
    fn session(&self, session: PastSession);
}

/// What an attempt used.
#[derive(Clone, Copy, Debug)]
pub struct Used<'a> {
    /// Names it, wherever it is told or kept.
    pub id: uuid::Uuid,
    /// The request.
    pub request: &'a Progress,
    /// Who served.
    pub subscription: &'a Arc<str>,
    /// When it ended.
    pub at: Timestamp,
    /// What it used.
    pub spent: Spent,
    /// How long it took, in milliseconds.
    pub duration_ms: u64,
    /// How it ended, in a word.
    pub outcome: &'static str,
}

/// A request from its start to its end.
#[derive(Clone, Debug)]
pub struct Progress {
    /// Names the request; later ones sort behind earlier ones.
    pub id: uuid::Uuid,
    /// The name of the client's key.
    pub client: Arc<str>,
    /// Its session, as the operator sees it.
    pub session: SessionLabel,
    /// The model's id.
    pub model: Arc<str>,
    /// When it came.
    pub started_at: Timestamp,
    /// When this was so.
    pub updated_at: Timestamp,
    /// Who served it last.
    pub subscription: Option<Arc<str>>,
    /// Attempts so far.
    pub attempts: u32,
    /// Tokens of all attempts.
    pub usage: Usage,
    /// Cost of all attempts.
    pub cost: MicroUsd,
    /// How it is.
    pub state: ProgressState,
    /// What last went wrong.
    pub error: Option<String>,
    /// Counts the changes.
    pub revision: u64,
}

/// See [`Progress::state`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProgressState {
    /// It runs, or waits.
    Running,
    /// Its answer was complete.
    Completed,
    /// It ended with an error.
    Failed,
    /// The client left.
    Cancelled,
}

/// Goes with one request.
pub(super) struct Trace {
    recorder: Arc<dyn Recorder>,
    key: SessionKey,
    progress: Mutex<Progress>,
}

impl std::fmt::Debug for Trace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trace").finish_non_exhaustive()
    }
}

impl Trace {
    /// A request has come.
    pub(super) fn start(recorder: Arc<dyn Recorder>, call: &Call, key: SessionKey) -> Arc<Self> {
        let now = clock::now();
        let progress = Progress {
            id: uuid::Uuid::now_v7(),
            client: Arc::clone(&call.client),
            session: SessionLabel::from(&key),
            model: Arc::from(call.request.model.id.as_str()),
            started_at: now,
            updated_at: now,
            subscription: None,
            attempts: 0,
            usage: Usage::default(),
            cost: MicroUsd::ZERO,
            state: ProgressState::Running,
            error: None,
            revision: 1,
        };
        recorder.progress(&progress);
        Arc::new(Self { recorder, key, progress: Mutex::new(progress) })
    }

    /// What it belongs to.
    pub(super) const fn session(&self) -> &SessionKey {
        &self.key
    }

    /// An attempt begins.
    pub(super) fn attempt(&self, subscription: &Arc<str>) {
        self.change(|progress| {
            progress.attempts += 1;
            progress.subscription = Some(Arc::clone(subscription));
            progress.state = ProgressState::Running;
        });
    }

    /// The request has no answer.
    pub(super) fn failed(&self, error: &GatewayError) {
        self.note(|progress| {
            progress.error = Some(error.to_string());
            progress.state = ProgressState::Failed;
        });
    }

    /// A lease has ended; what it used has this id.
    pub(super) fn ended(
        &self,
        (id, subscription): (uuid::Uuid, &Arc<str>),
        (granted_at, at): (Timestamp, Timestamp),
        outcome: (&'static str, ProgressState),
        spent: Spent,
        session: Option<PastSession>,
    ) {
        let progress = self.note(|progress| {
            let sum = &mut progress.usage;
            sum.input += spent.usage.input;
            sum.output += spent.usage.output;
            sum.cache_creation += spent.usage.cache_creation;
            sum.cache_read += spent.usage.cache_read;
            sum.reasoning += spent.usage.reasoning;
            progress.cost += spent.cost;
            progress.state = outcome.1;
            if outcome.1 == ProgressState::Failed {
                progress.error = Some(outcome.0.to_owned());
            }
        });
        if spent.cost > MicroUsd::ZERO || spent.usage.total() > 0 {
            let duration_ms = u64::try_from(at.since(granted_at).as_millis()).unwrap_or(u64::MAX);
            let outcome = outcome.0;
            self.recorder.used(Used { id, request: &progress, subscription, at, spent, duration_ms, outcome });
        }
        if let Some(session) = session {
            self.recorder.session(session);
        }
    }

    fn change(&self, change: impl FnOnce(&mut Progress)) {
        let progress = self.note(change);
        self.recorder.progress(&progress);
    }

    /// Changes it without telling: more follows at once.
    fn note(&self, change: impl FnOnce(&mut Progress)) -> Progress {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut progress);
        progress.updated_at = clock::now();
        progress.revision += 1;
        progress.clone()
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        self.change(|progress| {
            if progress.state == ProgressState::Running {
                // Nobody said how it ended: the client left before anything was known.
                progress.state = ProgressState::Cancelled;
            }
        });
    }
}

/// How a lease ended, in a word, and what that says of the request if no other attempt follows.
pub(super) const fn in_a_word(outcome: &Outcome) -> (&'static str, ProgressState) {
    match outcome {
        Outcome::Completed => ("completed", ProgressState::Completed),
        Outcome::Abandoned => ("abandoned", ProgressState::Cancelled),
        Outcome::ClientError => ("client_error", ProgressState::Failed),
        Outcome::Limited(_) => ("limited", ProgressState::Failed),
        Outcome::Unavailable => ("unavailable", ProgressState::Failed),
        Outcome::Overloaded => ("overloaded", ProgressState::Failed),
        Outcome::BackendFailed => ("backend_failed", ProgressState::Failed),
        Outcome::Unauthenticated { .. } => ("unauthenticated", ProgressState::Failed),
    }
}
