//! A gateway that answers by script.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use auth_pool::conversation::{Catalog, Event, StopReason, Usage};
use auth_pool::gateway::{Answer, Call, DecisionFilter, Gateway, GatewayError, HealthReport};
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use tokio::sync::mpsc;

pub(super) type Item = Result<Event, GatewayError>;

pub(super) const USAGE: Usage = Usage { input: 10, cache_creation: 20, cache_read: 30, output: 7, reasoning: 2 };

/// What the gateway does with a request.
#[derive(Clone)]
pub(super) enum Script {
    /// Answers with these events.
    Say(Vec<Item>),
    /// Refuses.
    Refuse(GatewayError),
    /// Never decides.
    Hang,
    /// Fails in a way it must not.
    Panic,
    /// Answers with what the test sends, for as long as the test keeps the sender; one answer only.
    Follow(Arc<Mutex<Option<mpsc::UnboundedReceiver<Item>>>>),
    /// Says text without end.
    Flood,
    /// Repeats the last user message, word by word, with pauses.
    Echo(Duration),
}

pub(super) struct FakeGateway {
    script: Script,
    /// Requests and answers that have begun and have neither ended nor been dropped.
    open: Arc<AtomicUsize>,
    pub(super) calls: Mutex<Vec<Call>>,
    ready: Result<(), String>,
    /// What is done with requests that say more than `?`, if not the same.
    other: Option<Script>,
}

impl FakeGateway {
    pub(super) fn new(script: Script) -> Arc<Self> {
        Arc::new(Self { script, open: Arc::default(), calls: Mutex::default(), ready: Ok(()), other: None })
    }

    /// A gateway with one script for requests that only say `?`, and another one for those that do.
    pub(super) fn by_prompt(silent: Script, other: Script) -> Arc<Self> {
        let (open, calls) = (Arc::default(), Mutex::default());
        Arc::new(Self { script: silent, open, calls, ready: Ok(()), other: Some(other) })
    }

    /// A gateway that cannot serve.
    pub(super) fn unready(why: &str) -> Arc<Self> {
        Arc::new(Self {
            script: Script::Hang,
            open: Arc::default(),
            calls: Mutex::default(),
            ready: Err(why.to_owned()),
            other: None,
        })
    }

    pub(super) fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    /// The only call so far.
    pub(super) fn call(&self) -> Call {
        let calls = self.calls.lock().unwrap();
        assert_eq!(calls.len(), 1, "one call");
        calls[0].clone()
    }

    fn events(&self, call: &Call) -> BoxStream<'static, Item> {
        let turn = call.request.turns.last().expect("a turn");
        let says_something = turn.blocks.iter().any(|block| *block != auth_pool::conversation::Block::Text("?".into()));
        match self.other.as_ref().filter(|_| says_something).unwrap_or(&self.script) {
            Script::Say(items) => stream::iter(items.clone()).boxed(),
            Script::Refuse(_) | Script::Hang | Script::Panic => stream::pending().boxed(),
            Script::Follow(receiver) => {
                let mut receiver = receiver.lock().unwrap().take().expect("one answer only");
                stream::poll_fn(move |cx| receiver.poll_recv(cx)).boxed()
            }
            Script::Flood => stream::repeat_with(|| Ok(Event::Text("x".repeat(16 << 10)))).boxed(),
            Script::Echo(pause) => {
                let turn = call.request.turns.last().expect("a turn");
                let auth_pool::conversation::Block::Text(text) = &turn.blocks[0] else { panic!("no text") };
                let words: Vec<Item> = text.split(' ').map(|word| Ok(Event::Text(word.to_owned()))).collect();
                let pause = *pause;
                stream::iter(words.into_iter().chain([finished()]))
                    .then(move |item| async move {
                        tokio::time::sleep(pause).await;
                        item
                    })
                    .boxed()
            }
        }
    }
}

impl Gateway for FakeGateway {
    fn chat(&self, call: Call) -> BoxFuture<'_, Result<Answer, GatewayError>> {
        let guard = Open::new(&self.open);
        let events = self.events(&call);
        self.calls.lock().unwrap().push(call);
        Box::pin(async move {
            match &self.script {
                Script::Refuse(error) => return Err(error.clone()),
                Script::Hang => std::future::pending().await,
                Script::Panic => panic!("on purpose"),
                _ => {}
            }
            let events = events.map(move |item| {
                let _ = &guard;
                item
            });
            Ok(Answer {
                subscription: "claude-a".into(),
                session_id: None,
                decision_reason: "best health 97 — of 3".into(),
                cache_is_warm: false,
                events: events.boxed(),
            })
        })
    }

    fn catalog(&self) -> Arc<Catalog> {
        Arc::new(Catalog::new([("sonnet", "claude-sonnet-5"), ("opus", "claude-opus-4-8")], [("gpt-4o", "sonnet")]))
    }

    fn health(&self) -> HealthReport {
        HealthReport { status: "ok".into(), version: "0.0.0".into(), uptime_seconds: 5, ..HealthReport::default() }
    }

    fn ready(&self) -> Result<(), String> {
        self.ready.clone()
    }

    fn debug(&self) -> serde_json::Value {
        serde_json::json!({ "subscriptions": [] })
    }

    fn decisions(&self, filter: &DecisionFilter) -> serde_json::Value {
        serde_json::json!({ "decisions": [], "limit": filter.limit, "session": filter.session })
    }

    fn rebalance(&self) -> serde_json::Value {
        serde_json::json!({ "moved": [] })
    }
}

/// Counts what is open.
struct Open(Arc<AtomicUsize>);

impl Open {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(count))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[expect(clippy::unnecessary_wraps, reason = "as the stream carries it")]
pub(super) fn text(text: &str) -> Item {
    Ok(Event::Text(text.into()))
}

#[expect(clippy::unnecessary_wraps, reason = "as the stream carries it")]
pub(super) fn finished() -> Item {
    Ok(Event::Finished { stop: StopReason::EndTurn, usage: USAGE })
}

/// An answer that the test writes as it goes.
pub(super) fn follow() -> (mpsc::UnboundedSender<Item>, Script) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (sender, Script::Follow(Arc::new(Mutex::new(Some(receiver)))))
}
