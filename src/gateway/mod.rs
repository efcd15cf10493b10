//! One request's life, as the front sees it: [`Gateway::chat`] takes a parsed request and gives a stream of events.
//!
//! Everything between (which subscription, which attempt, which process) happens behind the trait, so that the front can
//! be tested without any of it.

mod admission;
mod ask;
mod attempt;
mod beside;
mod clients;
mod counted;
mod fallback;
mod feed;
mod guard;
mod health;
mod lease;
#[cfg(test)]
mod limits_corpus;
mod looks;
mod models;
mod operate;
mod outbox;
mod pooled;
mod queue;
mod record;
mod routing;
mod runaway;
mod settings;
mod structured;
mod transcripts;
mod tryout;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use serde::Serialize;
use serde_json::Value;

pub use clients::{ClientRules, Clients};
pub use feed::{Feed, FeedFilter, Told, Topic};
pub use health::PartHealth;
pub use lease::{Effects, SharedPool};
pub use pooled::{Backends, PooledGateway};
pub use queue::QueueSettings;
pub use record::{Progress, ProgressState, Recorder, Used};
pub use routing::{NamedBackend, Routing, Target};
pub use settings::Settings;
pub use transcripts::SessionError;

pub use crate::backend::{Failure, FailureKind};
pub use crate::pool::{Priority, RebalanceSettings, RefusalReason};

use crate::conversation::{Catalog, Event, Request};

/// What the front needs of the gateway.
pub trait Gateway: Send + Sync + 'static {
    /// Runs a request. Resolves when the first event has arrived, so that failover is over, or with the error for the
    /// client. Dropping the future cancels the request.
    fn chat(&self, call: Call) -> BoxFuture<'_, Result<Answer, GatewayError>>;

    /// The models a client may ask for.
    fn catalog(&self) -> Arc<Catalog>;

    /// A request that this very program has caused came back to it, and was stopped.
    fn came_back(&self) {}

    /// What `/v1/{name}/...` leads to; `None` where that leads nowhere.
    fn names(&self, name: &str) -> Option<ModelNames> {
        let _ = name;
        None
    }

    /// The models of backends beside the pool that a client may ask for.
    fn models_of_backends(&self, client: &str) -> Vec<BackendModel> {
        let _ = client;
        Vec::new()
    }

    /// The models that a client may ask for at `/v1/{name}/...`, as they are called there; `None` where that leads nowhere.
    fn models_at(&self, name: &str, client: &str) -> Option<ModelsAt> {
        let _ = (name, client);
        None
    }

    /// What `GET /health` tells. Must be quick: monitors ask often.
    fn health(&self) -> HealthReport;

    /// Whether new requests can be served; if not, why not.
    fn ready(&self) -> Result<(), String>;

    /// The services that the program stands on, and how each is doing.
    fn services(&self) -> Vec<(&'static str, PartHealth)> {
        Vec::new()
    }

    /// What `GET /debug/auth-pool` tells the operator.
    fn debug(&self) -> Value;

    /// The last decisions of the pool, each with everybody who was considered and why the others were not taken.
    fn decisions(&self, filter: &DecisionFilter) -> Value;

    /// What happens, for those who follow it.
    fn feed(&self) -> Feed {
        Feed::default()
    }

    /// Runs a rebalancing cycle now; tells what moved and why, or why nothing did.
    fn rebalance(&self) -> Value;
}

/// Which names of models are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelNames {
    /// Those of the catalogue.
    Known,
    /// Any: the backend judges.
    Any,
}

/// A model of a backend beside the pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendModel {
    /// `BACKEND/MODEL`, as `model` of a request takes it; where the path names the backend, the model alone.
    pub id: String,
    /// The backend.
    pub backend: Arc<str>,
}

/// The models behind a name in a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelsAt {
    /// Those of the catalogue: the name is the pool's or a subscription's.
    Catalog,
    /// A backend's own; it may take others too.
    Backend(Vec<BackendModel>),
}

/// Which decisions the operator asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DecisionFilter {
    /// The most to show.
    pub limit: usize,
    /// Only those of this session: its name as the pool shows it (or the beginning of it), or the id that the client
    /// sent.
    pub session: Option<String>,
    /// Only those of this request: the beginning of its id.
    pub request: Option<String>,
    /// Whose session id it is; `anonymous` where no keys are configured.
    pub client: Option<String>,
}

/// A request with all the gateway must know about who sent it.
#[derive(Clone, Debug)]
pub struct Call {
    /// The request's id, as the client knows it.
    pub id: Arc<str>,
    /// What is asked.
    pub request: Request,
    /// What the client said about the conversation it belongs to.
    pub session: SessionHint,
    /// The name of the client's key; `anonymous` where no keys are configured. Sessions of different clients never
    /// meet, whatever ids they send.
    pub client: Arc<str>,
    /// Whether the client gets the answer piece by piece. Otherwise it has seen nothing until all of it is there, and
    /// another subscription can be tried until then.
    pub stream: bool,
    /// How much of the owners' reserve the request may use.
    pub priority: Priority,
    /// The backend or subscription that alone may serve it, where its path names one.
    pub backend: Option<Arc<str>>,
}

/// Who serves beside the pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// The backend's name.
    pub backend: Arc<str>,
    /// Why it steps in for the pool; `None` where it was asked in the first place.
    pub instead: Option<String>,
}

/// What the client said about the conversation a request belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SessionHint {
    /// Nothing: the gateway derives a fingerprint from the conversation's beginning.
    #[default]
    None,
    /// A `session_id`: the conversation's name. What was said in it is remembered, see [`SessionError`].
    Session(Arc<str>),
    /// An `X-Session-Id`: sticks to a subscription like a session id, but the client sends the whole history.
    Header(Arc<str>),
    /// A `prompt_cache_key`: sticks to a subscription like a session id, but the client sends the whole history.
    CacheKey(Arc<str>),
}

/// A request that has begun to be answered.
pub struct Answer {
    /// Who answers: a subscription, or the backend beside the pool.
    pub subscription: Arc<str>,
    /// Set where it is not a subscription that answers.
    pub backend: Option<Served>,
    /// The session the request was taken to belong to, where the client should know it.
    pub session_id: Option<String>,
    /// Why this subscription, for people.
    pub decision_reason: String,
    /// Whether the provider has found at least half of the prompt in its cache. A conversation that is carried to another
    /// subscription begins cold.
    pub cache_is_warm: bool,
    /// The answer. Dropping it cancels the run; after [`Event::Finished`] it may be dropped at once, the gateway settles
    /// the rest by itself.
    pub events: BoxStream<'static, Result<Event, GatewayError>>,
}

/// Why a request has no answer, or no more of it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum GatewayError {
    /// No subscription can take it.
    #[error("{message}")]
    Refused {
        /// The cause that decides the client's error.
        reason: RefusalReason,
        /// How long until the pool knows of a change for the better.
        retry_after: Option<Duration>,
        /// For the client.
        message: String,
    },
    /// The client has spent what it may.
    #[error("{message}")]
    ClientBudget {
        /// How long until it may spend again.
        retry_after: Option<Duration>,
        /// For the client.
        message: String,
    },
    /// The client may not have that.
    #[error("{message}")]
    NotAllowed {
        /// For the client.
        message: String,
    },
    /// The client sends the same prompt over and over.
    #[error("{message}")]
    Runaway {
        /// For the client.
        message: String,
        /// When the prompt may come again.
        retry_after: Duration,
    },
    /// It ran and failed.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// The answer does not have the form that was asked for, and a second one had it no more; or it has been streamed.
    #[error("the answer does not have the form asked for: {wrong}")]
    InvalidOutput {
        /// What is wrong with it, for the client. May quote the answer.
        wrong: String,
    },
    /// The session that it belongs to cannot go on like this.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The program is about to end.
    #[error("the server is shutting down")]
    ShuttingDown,
}

/// What `GET /health` tells.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HealthReport {
    /// `ok`, or one word for what is wrong.
    pub status: String,
    /// The program's version.
    pub version: String,
    /// Whole seconds since it started.
    pub uptime_seconds: u64,
    /// The pool in four numbers.
    pub pool: PoolHealth,
    /// The backend's processes.
    pub backend: BackendHealth,
}

/// See [`HealthReport::pool`].
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolHealth {
    /// Members, enabled or not.
    pub subscriptions: usize,
    /// Members that a new session could be given to now.
    pub eligible: usize,
    /// Requests that run.
    pub in_flight: usize,
    /// Sessions known.
    pub sessions: usize,
    /// Requests that wait because all are busy.
    pub waiting: usize,
}

/// See [`HealthReport::backend`].
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendHealth {
    /// Processes that hold a conversation.
    pub live: usize,
    /// Started processes that belong to no conversation yet.
    pub spares: usize,
}
