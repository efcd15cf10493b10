//! What a replica asks before it runs a request, and how the request's end is told.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::ledger::Settlement;
use super::link::{Command, Link};
use super::news::{News, Used};
use super::registry::Lent;
use super::scripts::millis;
use crate::conversation::Usage;
use crate::pool::{Bounds, Placement, Shortage, Standing};
use crate::runtime::clock;
use crate::units::MicroUsd;

/// What the own pool has granted.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Where the request would run.
    pub subscription: Arc<str>,
    /// The session's key; it reveals nothing of the client's own id.
    pub session: String,
    /// Whether the client named the session, so that it holds a client slot.
    pub explicit: bool,
    /// Where this replica has put the session.
    pub placement: Placement,
    /// Estimated input tokens.
    pub tokens: u64,
    /// Estimated cost.
    pub cost: MicroUsd,
    /// The subscription's limits.
    pub bounds: Bounds,
}

/// What the server says.
#[derive(Debug)]
pub enum Verdict {
    /// The request may run; it is counted.
    Admitted(Admission),
    /// The server is out of reach: the own pool's word is all there is. The request is reported later.
    Apart(Admission),
    /// Another replica has bound the session to another subscription.
    Bound(Arc<str>),
    /// All replicas together have used what the subscription may take.
    Full {
        /// Of what.
        shortage: Shortage,
        /// When there is room again; `None` if that depends on running requests.
        wait: Option<Duration>,
    },
}

/// A request that runs and is known to the server, or will be.
#[derive(Debug)]
pub struct Admission {
    link: Arc<Link>,
    id: u64,
    /// Whether it runs; otherwise there is nothing to settle.
    running: bool,
    subscription: Arc<str>,
    session: String,
    explicit: bool,
    home: Arc<str>,
    record: Option<Arc<str>>,
    client: Option<Arc<str>>,
}

impl Admission {
    fn new(link: &Arc<Link>, ask: &Ask) -> Self {
        Self {
            link: Arc::clone(link),
            id: link.registry.next_id(),
            running: false,
            subscription: Arc::clone(&ask.subscription),
            session: ask.session.clone(),
            explicit: ask.explicit,
            home: Arc::clone(&ask.placement.home),
            record: None,
            client: None,
        }
    }

    /// Under which id what the request uses is kept, and on which client's account: all are told.
    pub fn bill(&mut self, record: Arc<str>, client: Arc<str>) {
        (self.record, self.client) = (Some(record), Some(client));
    }

    /// It runs from now on.
    fn begin(mut self, lent: Lent, counted: bool) -> Self {
        self.link.registry.lend(&self.subscription, Lent { id: self.id, counted, ..lent });
        self.running = true;
        self
    }

    /// The request has ended. `answered` if its answer was complete. Does not wait.
    pub fn settle(mut self, answered: bool, usage: Usage, cost: MicroUsd) {
        self.end(answered, usage, cost);
    }

    fn end(&mut self, answered: bool, usage: Usage, cost: MicroUsd) {
        if !std::mem::take(&mut self.running) {
            return;
        }
        let started = self.link.registry.end(self.id).filter(|lent| !lent.counted).map(|lent| lent.started);
        self.link.send(Command::Settle(Settlement {
            lease: self.id,
            session: std::mem::take(&mut self.session),
            explicit: self.explicit,
            home: Arc::clone(&self.home),
            answered,
            used: Used {
                record: self.record.take(),
                client: self.client.take(),
                subscription: Arc::clone(&self.subscription),
                usage,
                cost: cost.max(MicroUsd::ZERO),
            },
            at: clock::now(),
            started,
        }));
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.end(false, Usage::default(), MicroUsd::ZERO);
    }
}

/// A question that waits for its answer.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) question: Question,
    lent: Lent,
    admission: Admission,
    reply: oneshot::Sender<Verdict>,
}

impl Pending {
    /// Passes the server's word on. An admission that nobody waits for any more settles itself.
    pub(super) fn answer(self, answer: Answer) {
        let verdict = match answer {
            Answer::Admitted => Verdict::Admitted(self.admission.begin(self.lent, true)),
            Answer::Bound(home) => Verdict::Bound(home),
            Answer::Full { shortage, wait } => Verdict::Full { shortage, wait },
        };
        let _ = self.reply.send(verdict);
    }
}

/// The question as the script reads it.
#[derive(Debug, Serialize)]
pub(super) struct Question {
    lease: u64,
    subscription: Arc<str>,
    session: String,
    explicit: bool,
    home: Arc<str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    moved_from: Option<Arc<str>>,
    tokens: u64,
    cost: i64,
    limits: Limits,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Limits {
    concurrent: u32,
    clients: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    requests_per_minute: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens_per_minute: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    input_tokens_per_minute: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens_per_day: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cost_per_day: Option<i64>,
}

impl From<Bounds> for Limits {
    fn from(Bounds { concurrent, clients, capacity }: Bounds) -> Self {
        Self {
            concurrent,
            clients,
            requests_per_minute: capacity.requests_per_minute,
            tokens_per_minute: capacity.tokens_per_minute,
            input_tokens_per_minute: capacity.input_tokens_per_minute,
            tokens_per_day: capacity.tokens_per_day,
            cost_per_day: capacity.cost_per_day.map(MicroUsd::as_micros),
        }
    }
}

/// The server's word before it has become a [`Verdict`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Admitted,
    Bound(Arc<str>),
    Full { shortage: Shortage, wait: Option<Duration> },
}

impl Answer {
    pub(super) fn decode(text: &str) -> Option<Self> {
        #[derive(serde::Deserialize)]
        struct Raw {
            bound: Option<Arc<str>>,
            full: Option<String>,
            wait: Option<f64>,
        }
        let Raw { bound, full, wait } = serde_json::from_str(text).ok()?;
        if let Some(home) = bound {
            return Some(Self::Bound(home));
        }
        let shortage = match full.as_deref() {
            None => return Some(Self::Admitted),
            Some("requests") => Shortage::Requests,
            Some("slots") => Shortage::Slots,
            Some(_) => Shortage::Capacity,
        };
        let wait = wait.and_then(|millis| Duration::try_from_secs_f64(millis / 1000.0).ok());
        Some(Self::Full { shortage, wait })
    }
}

/// Asks the server, for no longer than the timeout.
pub(super) async fn admit(link: &Arc<Link>, ask: Ask) -> Verdict {
    let lent = Lent {
        id: 0,
        tokens: ask.tokens,
        cost: ask.cost.as_micros(),
        own_slot: !ask.explicit || ask.placement.home != ask.subscription,
        session: ask.session.clone(),
        started_age: None,
        started: clock::now(),
        counted: false,
    };
    if link.is_together() {
        let (reply, verdict) = oneshot::channel();
        let admission = Admission::new(link, &ask);
        let question = Question::new(&ask, admission.id);
        link.send(Command::Admit(Box::new(Pending { question, lent: lent.clone(), admission, reply })));
        match timeout(link.settings.timeout, verdict).await {
            Ok(Ok(verdict)) => return verdict,
            // The link broke, and everybody who waited hears it at once.
            Ok(Err(_)) => {}
            Err(_) => link.note_slow(format!("no answer within {} ms", millis(link.settings.timeout))),
        }
    }
    // Under an id of its own: should the server have admitted the first one all the same, that one goes back by itself.
    Verdict::Apart(Admission::new(link, &ask).begin(lent, false))
}

impl Question {
    fn new(ask: &Ask, lease: u64) -> Self {
        let (since, moved_from) = match &ask.placement.standing {
            Standing::New => (None, None),
            Standing::Since(since) => (Some(since.as_millis()), None),
            Standing::MovedFrom(home) => (None, Some(Arc::clone(home))),
        };
        Self {
            lease,
            subscription: Arc::clone(&ask.subscription),
            session: ask.session.clone(),
            explicit: ask.explicit,
            home: Arc::clone(&ask.placement.home),
            since,
            moved_from,
            tokens: ask.tokens,
            cost: ask.cost.as_micros(),
            limits: ask.bounds.into(),
        }
    }
}

impl From<&Settlement> for News {
    fn from(settlement: &Settlement) -> Self {
        Self::Used(settlement.used.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read() {
        assert_eq!(Answer::decode(r#"{"admitted":true}"#), Some(Answer::Admitted));
        assert_eq!(Answer::decode(r#"{"bound":"sub2"}"#), Some(Answer::Bound("sub2".into())));
        let wait = Some(Duration::from_millis(1500));
        assert_eq!(
            Answer::decode(r#"{"full":"capacity","wait":1500}"#),
            Some(Answer::Full { shortage: Shortage::Capacity, wait })
        );
        assert_eq!(Answer::decode(r#"{"full":"slots"}"#), Some(Answer::Full { shortage: Shortage::Slots, wait: None }));
        assert_eq!(Answer::decode("nonsense"), None);
    }
}
