//! What the stand-in remembers of each request.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hyper::header::{AUTHORIZATION, HeaderMap};
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::units::Timestamp;

/// Headers worth remembering; none of them can hold a secret.
const HEADERS: [&str; 8] = [
    "anthropic-beta",
    "anthropic-version",
    "content-length",
    "content-type",
    "user-agent",
    "x-app",
    "x-claude-code-session-id",
    "x-stainless-retry-count",
];

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It is still being answered.
    Pending,
    /// The whole answer was sent.
    Completed,
    /// The client closed the connection before that.
    ClientGone,
    /// The stand-in broke the connection, as its script said.
    Cut,
}

/// One request as it came in.
#[derive(Clone, Debug, Serialize)]
pub struct Recorded {
    /// 1 for the first request, and so on; goes on counting when requests are forgotten.
    pub number: u64,
    /// When it came in.
    pub at: Timestamp,
    /// The method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Whose request it is: the label of a token that holds `-fake-` (what follows that word), or the token's fingerprint.
    pub bearer: Option<String>,
    /// Some of its headers.
    pub headers: BTreeMap<String, String>,
    /// The body, `null` if there was none or it was not JSON.
    pub body: Value,
    /// The status it was answered with, once known.
    pub status: Option<u16>,
    /// How it ended.
    pub outcome: Outcome,
}

/// Who makes a request, without the secret that proves it.
///
/// A token that holds `-fake-` is nobody's secret, and what follows that word is the bearer's label
/// (`sk-ant-oat01-fake-alice`: `alice`). Any other token is known by its fingerprint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bearer {
    label: Option<String>,
    fingerprint: String,
    /// An API key's beginning and end, as the Admin API shows it.
    pub(super) hint: Option<String>,
    /// Whether it is an API key rather than a subscription's token.
    pub(super) api_key: bool,
}

impl Bearer {
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let token = text(AUTHORIZATION.as_str()).and_then(|value| value.strip_prefix("Bearer "));
        match (token, text("x-api-key")) {
            (Some(token), _) => Some(Self::from_secret(token, false)),
            (None, Some(key)) => Some(Self::from_secret(key, true)),
            (None, None) => None,
        }
    }

    fn from_secret(secret: &str, api_key: bool) -> Self {
        let label = secret.split_once("-fake-").map(|(_, label)| label.to_owned());
        let hint = api_key.then(|| secret.get(..12).zip(secret.get(secret.len().saturating_sub(4)..)));
        let hint = hint.flatten().map(|(head, tail)| format!("{head}...{tail}"));
        Self { label, fingerprint: fingerprint(secret), hint, api_key }
    }

    /// The label, or the fingerprint.
    pub(super) fn name(&self) -> &str {
        self.label.as_deref().unwrap_or(&self.fingerprint)
    }

    /// Whether `name` means this bearer: by label, by fingerprint, or by the token itself.
    pub(super) fn is(&self, name: &str) -> bool {
        self.label.as_deref() == Some(name) || self.fingerprint == name || self.fingerprint == fingerprint(name)
    }
}

/// The first 12 hexadecimal digits of the secret's SHA-256.
fn fingerprint(secret: &str) -> String {
    let digest = Sha256::digest(secret.as_bytes());
    digest.iter().take(6).fold(String::with_capacity(12), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The requests seen so far. A cheap handle.
#[derive(Clone, Debug)]
pub(super) struct Log(Arc<Mutex<Entries>>);

#[derive(Debug)]
struct Entries {
    requests: VecDeque<Recorded>,
    next: u64,
    keep: usize,
}

impl Log {
    pub(super) fn new(keep: usize) -> Self {
        Self(Arc::new(Mutex::new(Entries { requests: VecDeque::new(), next: 1, keep })))
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers a request and returns the ticket through which its end is reported.
    pub(super) fn begin(
        &self,
        head: &hyper::http::request::Parts,
        bearer: Option<&Bearer>,
        body: Value,
        at: Timestamp,
    ) -> Ticket {
        let headers = HEADERS
            .iter()
            .filter_map(|&name| Some((name.to_owned(), head.headers.get(name)?.to_str().ok()?.to_owned())))
            .collect();
        let mut entries = self.entries();
        let number = entries.next;
        entries.next += 1;
        entries.requests.push_back(Recorded {
            number,
            at,
            method: head.method.to_string(),
            path: head.uri.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string),
            bearer: bearer.map(|bearer| bearer.name().to_owned()),
            headers,
            body,
            status: None,
            outcome: Outcome::Pending,
        });
        while entries.requests.len() > entries.keep {
            entries.requests.pop_front();
        }
        drop(entries);
        Ticket { log: self.clone(), number }
    }

    /// The requests after `number`, oldest first.
    pub(super) fn since(&self, number: u64) -> Vec<Recorded> {
        self.entries().requests.iter().filter(|request| request.number > number).cloned().collect()
    }

    pub(super) fn clear(&self) {
        self.entries().requests.clear();
    }

    fn update(&self, number: u64, change: impl FnOnce(&mut Recorded)) {
        if let Some(request) = self.entries().requests.iter_mut().find(|request| request.number == number) {
            change(request);
        }
    }
}

/// Reports how a request ends. Dropped before [`Ticket::finish`] it reports that the client went away: hyper drops an
/// answer that nobody is there to receive.
#[derive(Debug)]
pub(super) struct Ticket {
    log: Log,
    pub(super) number: u64,
}

impl Ticket {
    pub(super) fn answered(&self, status: u16) {
        self.log.update(self.number, |request| request.status = Some(status));
    }

    pub(super) fn finish(&self, outcome: Outcome) {
        self.log.update(self.number, |request| request.outcome = outcome);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.log.update(self.number, |request| {
            if request.outcome == Outcome::Pending {
                request.outcome = Outcome::ClientGone;
            }
        });
    }
}
