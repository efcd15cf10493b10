//! What several replicas of this program have in common, kept in Redis: what each subscription has used of its limits,
//! which requests run on it, where sessions are bound, and what the provider has said.
//!
//! A replica's own [`crate::pool`] decides first, in memory. What it has granted is then put before the others by
//! [`Shared::admit`]: one script on the server checks and counts at once, so that several replicas together stay within
//! the limits of one. What a replica learns is told to the others as [`News`].
//!
//! **Out of reach.** A server that does not answer within [`Settings::timeout`] is left alone for a moment, and each
//! replica counts by itself: together they may then use up to as many times a limit as there are replicas. What was
//! used meanwhile is reported as soon as the server answers again. No request waits longer than that timeout, and
//! while the server is known to be away none waits at all.
//!
//! **Lost replicas.** A replica says that it is alive every [`BEAT`]. The leases of one that has not for [`ALIVE`] go
//! back to the others.
//!
//! One Redis server (or a primary with replicas), version 5 or newer; not a cluster.

mod address;
mod admission;
mod ledger;
mod link;
mod news;
mod reader;
mod registry;
mod scripts;
mod status;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::runtime::tasks::Tasks;

pub use address::{Address, InvalidAddress};
pub use admission::{Admission, Ask, Verdict};
pub use news::{Heard, News, Used};
pub use status::{State, Status};

use link::Link;

/// How often a replica says that it is alive.
pub const BEAT: Duration = Duration::from_secs(5);
/// How long a replica counts as alive after it last said so.
pub const ALIVE: Duration = Duration::from_secs(15);

/// How the common state is kept.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Begins the name of every key.
    pub prefix: String,
    /// How long a key lives without use. Windows that are longer are kept as long as they are.
    pub life: Duration,
    /// How often everything is compared, beside what is told at once.
    pub sync_interval: Duration,
    /// How long one request waits for the server's word.
    pub timeout: Duration,
    /// A session without a request for this long may have to give way.
    pub session_idle_after: Duration,
    /// A session without a request for this long is forgotten.
    pub session_life: Duration,
    /// The short window of limits: a minute.
    pub minute: Duration,
    /// The long window of limits: a day.
    pub day: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            prefix: "claude:capacity:".to_owned(),
            life: Duration::from_mins(5),
            sync_interval: Duration::from_mins(1),
            timeout: Duration::from_millis(50),
            session_idle_after: Duration::from_mins(5),
            session_life: Duration::from_hours(1),
            minute: Duration::from_mins(1),
            day: Duration::from_hours(24),
        }
    }
}

/// The common state as one replica sees it. A cheap handle.
#[derive(Clone, Debug)]
pub struct Shared(Arc<Link>);

impl Shared {
    /// Joins the replicas that use the same server and prefix. `hear` is called with what others tell, and when the
    /// server goes away or comes back; it must be quick.
    pub fn start(
        address: &Address,
        settings: Settings,
        hear: impl Fn(Heard) + Send + Sync + 'static,
        tasks: &Tasks,
        stop: &CancellationToken,
    ) -> Self {
        Self(Link::start(address, settings, Arc::new(hear), tasks, stop))
    }

    /// Waits until the server has answered for the first time and news are listened to, at most `patience`. Whether both
    /// are so.
    pub async fn joined(&self, patience: Duration) -> bool {
        self.0.joined(patience).await
    }

    /// Puts what the own pool has granted before the others. An admission must be settled when the request has ended,
    /// also if the server could not be asked; dropping it settles it as abandoned.
    pub async fn admit(&self, ask: Ask) -> Verdict {
        admission::admit(&self.0, ask).await
    }

    /// Where another replica has bound a session; `None` also if the server cannot say.
    pub async fn home_of(&self, session: String) -> Option<Arc<str>> {
        self.0.find(session).await
    }

    /// Tells the other replicas.
    pub fn tell(&self, news: News) {
        self.0.tell(news);
    }

    /// For the operator: whether the server answers, and who takes part.
    pub fn status(&self) -> Status {
        self.0.status()
    }
}
