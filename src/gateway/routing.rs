//! Where requests go beside the pool: named backends, and who steps in for whom.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::backend::{Backend, Failure};
use crate::conversation::Usage;

/// A backend beside the pool. A cheap handle.
#[derive(Clone)]
pub struct NamedBackend(Arc<Named>);

struct Named {
    name: Arc<str>,
    kind: &'static str,
    backend: Arc<dyn Backend>,
    takes_tools: bool,
    any_model: bool,
    places: Arc<Semaphore>,
    most: usize,
    counts: Counts,
}

/// What has become of its requests.
#[derive(Default)]
struct Counts {
    requests: AtomicU64,
    failures: AtomicU64,
    input_tokens: AtomicU64,
    output_tokens: AtomicU64,
    last_failure: Mutex<Option<String>>,
}

impl NamedBackend {
    /// `kind` is shown to the operator. `any_model`: whether it knows models that are none of Claude's. It runs at most
    /// `most` requests at the same time.
    pub fn new(
        name: &str,
        kind: &'static str,
        backend: Arc<dyn Backend>,
        takes_tools: bool,
        any_model: bool,
        most: usize,
    ) -> Self {
        let places = Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS)));
        let counts = Counts::default();
        Self(Arc::new(Named { name: name.into(), kind, backend, takes_tools, any_model, places, most, counts }))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    pub(super) fn shared_name(&self) -> &Arc<str> {
        &self.0.name
    }

    pub(super) fn backend(&self) -> &dyn Backend {
        &*self.0.backend
    }

    pub(super) fn takes_tools(&self) -> bool {
        self.0.takes_tools
    }

    /// A place for one request; given back when dropped.
    pub(super) fn place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0.places).try_acquire_owned().ok()
    }

    pub(super) fn note_begin(&self) {
        self.0.counts.requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn note_usage(&self, usage: &Usage) {
        self.0.counts.input_tokens.fetch_add(usage.total_input(), Ordering::Relaxed);
        self.0.counts.output_tokens.fetch_add(usage.output, Ordering::Relaxed);
    }

    pub(super) fn note_failure(&self, failure: &Failure) {
        self.0.counts.failures.fetch_add(1, Ordering::Relaxed);
        let words = format!("{:?}: {failure}", failure.kind);
        *self.0.counts.last_failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(words);
    }

    fn view(&self) -> Value {
        let Named { name, kind, places, most, counts, .. } = &*self.0;
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        json!({
            "name": name,
            "type": kind,
            "inFlight": most.saturating_sub(places.available_permits()),
            "requests": read(&counts.requests),
            "failures": read(&counts.failures),
            "inputTokens": read(&counts.input_tokens),
            "outputTokens": read(&counts.output_tokens),
            "lastFailure": *counts.last_failure.lock().unwrap_or_else(PoisonError::into_inner),
        })
    }
}

/// What a name in `/v1/{name}/chat/completions` leads to.
#[derive(Clone, Debug)]
pub enum Target {
    /// The pool, as without a name.
    Pool,
    /// One subscription of the pool and no other.
    Subscription(Arc<str>),
    /// A backend beside the pool.
    Backend(NamedBackend),
}

/// Who serves, and who steps in. The default is the pool alone.
#[derive(Clone, Debug, Default)]
pub struct Routing {
    /// All names.
    pub named: HashMap<Arc<str>, Target>,
    /// Who is asked first; `None` is the pool.
    pub first: Option<NamedBackend>,
    /// Who steps in when the one before cannot serve, in this order; `None` is the pool.
    pub chain: Vec<Option<NamedBackend>>,
    /// How long a request waits for a busy pool before somebody else steps in.
    pub patience: Duration,
}

impl Routing {
    /// Everybody a request without a name is given to, one after the other.
    pub(super) fn order(&self) -> impl Iterator<Item = &Option<NamedBackend>> {
        std::iter::once(&self.first).chain(&self.chain)
    }

    /// Whether a request without a name can be served by somebody who is not of the pool.
    pub(super) fn leaves_the_pool(&self) -> bool {
        self.order().any(Option::is_some)
    }

    /// Whether somebody steps in for the pool.
    pub(super) fn has_substitute(&self) -> bool {
        self.order().skip_while(|one| one.is_some()).any(Option::is_some)
    }

    /// What the operator sees.
    pub(super) fn view(&self) -> Value {
        let name =
            |one: &Option<NamedBackend>| one.as_ref().map_or("pool".into(), |named| Arc::clone(named.shared_name()));
        let mut backends: Vec<&NamedBackend> = self
            .named
            .values()
            .filter_map(|target| if let Target::Backend(named) = target { Some(named) } else { None })
            .collect();
        backends.sort_by_key(|named| named.name());
        json!({
            "order": self.order().map(name).collect::<Vec<_>>(),
            "backends": backends.into_iter().map(NamedBackend::view).collect::<Vec<_>>(),
        })
    }
}

impl Target {
    /// Whether it knows models that are none of Claude's.
    pub(super) fn takes_any_model(&self) -> bool {
        matches!(self, Self::Backend(named) if named.0.any_model)
    }
}

impl fmt::Debug for NamedBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("NamedBackend").field(&self.0.name).finish()
    }
}
