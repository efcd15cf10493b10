//! What several replicas share, over a real Redis server.

/// Runs each of these rules with what every replica keeps in its own memory, and with a real Redis server.
macro_rules! memory_and_redis {
    ($($rule:ident),* $(,)?) => {
        mod memory {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $rule() {
                super::$rule(crate::shared::contract::Common::Memory).await;
            })*
        }

        mod redis {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $rule() {
                let server = crate::shared::server::RedisServer::start();
                super::$rule(crate::shared::contract::Common::Redis(server)).await;
            })*
        }
    };
}

mod contract;
mod limits;
mod outage;
mod rights;
mod server;
mod tls;
mod together;

use std::sync::Arc;
use std::time::{Duration, Instant};

use auth_pool::conversation::Usage;
use auth_pool::pool::{Bounds, CapacityLimits, Placement, Standing};
use auth_pool::runtime::tasks::Tasks;
use auth_pool::shared::{Admission, Ask, Heard, Settings, Shared, Verdict};
use auth_pool::units::MicroUsd;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use server::RedisServer;

/// One replica, as far as it shares.
struct Replica {
    shared: Shared,
    heard: mpsc::UnboundedReceiver<Heard>,
    tasks: Tasks,
    stop: CancellationToken,
}

/// The machine may be busy with other tests: nobody is called away for being slow.
fn patient() -> Settings {
    Settings { timeout: Duration::from_secs(20), ..Settings::default() }
}

impl Replica {
    async fn join(server: &RedisServer, settings: Settings) -> Self {
        let replica = Self::start(server, settings);
        assert!(replica.shared.joined(Duration::from_secs(20)).await, "{:?}", replica.shared.status());
        replica
    }

    fn start(server: &RedisServer, settings: Settings) -> Self {
        let (tell, heard) = mpsc::unbounded_channel();
        let (tasks, stop) = <(Tasks, CancellationToken)>::default();
        let hear = move |heard| drop(tell.send(heard));
        let shared = Shared::start(&server.address(), settings, hear, &tasks, &stop);
        Self { shared, heard, tasks, stop }
    }

    async fn admit(&self, ask: &Ask) -> Verdict {
        self.shared.admit(ask.clone()).await
    }

    async fn admitted(&self, ask: &Ask) -> Admission {
        match self.admit(ask).await {
            Verdict::Admitted(admission) => admission,
            other => panic!("{other:?}"),
        }
    }

    /// Waits until the server has carried out all that was sent to it so far: questions are answered in their order.
    async fn flushed(&self) {
        self.shared.home_of("nobody".to_owned()).await;
    }

    /// The next thing heard that `wanted` is about.
    async fn hears<T>(&mut self, mut wanted: impl FnMut(&Heard) -> Option<T>) -> T {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let heard =
                tokio::time::timeout(left, self.heard.recv()).await.expect("it is not heard").expect("a listener");
            if let Some(found) = wanted(&heard) {
                return found;
            }
        }
    }

    async fn leave(self) {
        self.stop.cancel();
        tokio::time::timeout(Duration::from_secs(20), self.tasks.finished()).await.expect("its tasks end");
    }
}

const ROOMY: Bounds = Bounds {
    concurrent: 1000,
    clients: 1000,
    capacity: CapacityLimits {
        requests_per_minute: None,
        tokens_per_minute: None,
        input_tokens_per_minute: None,
        tokens_per_day: None,
        cost_per_day: None,
    },
};

/// A request of a session that nobody has seen yet.
fn ask(session: &str) -> Ask {
    Ask {
        subscription: "sub1".into(),
        session: session.to_owned(),
        explicit: true,
        placement: Placement { home: "sub1".into(), standing: Standing::New },
        tokens: 10,
        cost: MicroUsd::from_usd(0.1),
        bounds: ROOMY,
    }
}

fn at(subscription: &str, ask: Ask) -> Ask {
    let home: Arc<str> = subscription.into();
    Ask { subscription: Arc::clone(&home), placement: Placement { home, ..ask.placement }, ..ask }
}

fn standing(standing: Standing, ask: Ask) -> Ask {
    Ask { placement: Placement { standing, ..ask.placement }, ..ask }
}

fn bounds(ask: Ask, adjust: impl FnOnce(&mut Bounds)) -> Ask {
    let mut bounds = ask.bounds;
    adjust(&mut bounds);
    Ask { bounds, ..ask }
}

fn input(tokens: u64) -> Usage {
    Usage { input: tokens, ..Usage::default() }
}
