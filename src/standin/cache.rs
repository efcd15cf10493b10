//! The prompt cache: how many input tokens are fresh, written to the cache, and read from it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::ask::list;

const HOUR: Duration = Duration::from_hours(1);
const FIVE_MINUTES: Duration = Duration::from_mins(5);
/// The CLI's billing note differs between processes; the provider does not let it spoil the cache, nor charge for it.
const BILLING: &str = "x-anthropic-billing-header:";
/// What a picture costs.
const IMAGE_TOKENS: u64 = 1_600;

/// Input tokens by how they are charged. They do not overlap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct InputUsage {
    pub(super) fresh: u64,
    pub(super) read: u64,
    pub(super) written_5m: u64,
    pub(super) written_1h: u64,
}

impl InputUsage {
    pub(super) const fn written(&self) -> u64 {
        self.written_5m + self.written_1h
    }
}

type Key = [u8; 32];

/// Prefixes of requests that were written to the cache, and until when they are kept.
#[derive(Debug, Default)]
pub(super) struct Cache(Mutex<HashMap<Key, Instant>>);

/// A block of a request: its tokens, the digest of everything up to it, and how long the cache shall keep that.
struct Mark {
    tokens: u64,
    key: Key,
    keep: Option<Duration>,
}

impl Cache {
    /// Counts a request's input and remembers what it writes. Caches belong to one bearer and one model.
    ///
    /// Unlike the real API there is no shortest prefix: small requests are cached too, so that tests can be small.
    pub(super) fn charge(&self, owner: &str, body: &Value) -> InputUsage {
        let marks = marks(owner, body);
        let now = Instant::now();
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|_, until| *until > now);

        let last = marks.iter().rposition(|mark| mark.keep.is_some()).map_or(0, |index| index + 1);
        let (cacheable, rest) = marks.split_at(last);
        let known = cacheable.iter().rposition(|mark| kept.contains_key(&mark.key)).map_or(0, |index| index + 1);
        let (read, written) = cacheable.split_at(known);

        let mut usage = InputUsage { fresh: sum(rest), read: sum(read), ..InputUsage::default() };
        let mut start = 0;
        for (index, mark) in written.iter().enumerate() {
            let Some(keep) = mark.keep else { continue };
            let tokens = sum(&written[start..=index]);
            start = index + 1;
            if keep == HOUR {
                usage.written_1h += tokens;
            } else {
                usage.written_5m += tokens;
            }
        }
        for mark in cacheable {
            if let Some(keep) = mark.keep {
                kept.insert(mark.key, now + keep);
            } else if let Some(until) = kept.get_mut(&mark.key) {
                // A prefix that is read is kept for another while.
                *until = (*until).max(now + FIVE_MINUTES);
            }
        }
        usage
    }

    /// Input tokens of a request, however they would be charged.
    pub(super) fn count(body: &Value) -> u64 {
        sum(&marks("", body))
    }
}

fn sum(marks: &[Mark]) -> u64 {
    marks.iter().map(|mark| mark.tokens).sum()
}

/// Every block in the order in which the provider reads them: tools, system, messages.
fn marks(owner: &str, body: &Value) -> Vec<Mark> {
    let mut reader = Reader { digest: Sha256::new(), marks: Vec::new() };
    reader.digest.update(owner);
    reader.digest.update(body["model"].as_str().unwrap_or_default());
    for tool in list(body, "tools") {
        reader.block("tool", tool);
    }
    match &body["system"] {
        text @ Value::String(_) => reader.block("system", text),
        _ => list(body, "system").iter().for_each(|block| reader.block("system", block)),
    }
    for message in list(body, "messages") {
        let role = message["role"].as_str().unwrap_or_default();
        match &message["content"] {
            text @ Value::String(_) => reader.block(role, text),
            _ => list(message, "content").iter().for_each(|block| reader.block(role, block)),
        }
    }
    reader.marks
}

struct Reader {
    digest: Sha256,
    marks: Vec<Mark>,
}

impl Reader {
    fn block(&mut self, role: &str, block: &Value) {
        if block["text"].as_str().is_some_and(|text| text.starts_with(BILLING)) {
            return;
        }
        let control = &block["cache_control"];
        let keep = control.is_object().then(|| if control["ttl"] == "1h" { HOUR } else { FIVE_MINUTES });
        let mut content = block.clone();
        if let Some(fields) = content.as_object_mut() {
            fields.remove("cache_control");
        }
        self.digest.update(role);
        self.digest.update(content.to_string());
        let key = self.digest.clone().finalize().into();
        self.marks.push(Mark { tokens: tokens(&content), key, keep });
    }
}

/// A quarter of the characters, rounded up.
fn tokens(block: &Value) -> u64 {
    match block["type"].as_str() {
        Some("image") => IMAGE_TOKENS,
        Some("text") => quarter(block["text"].as_str().unwrap_or_default()),
        Some("tool_result") => match &block["content"] {
            Value::Array(content) => content.iter().map(tokens).sum(),
            Value::String(text) => quarter(text),
            _ => 0,
        },
        _ => block.as_str().map_or_else(|| quarter(&block.to_string()), quarter),
    }
}

fn quarter(text: &str) -> u64 {
    text.chars().count().div_ceil(4) as u64
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn body(turns: &[&str], marked: bool) -> Value {
        let mut messages: Vec<Value> = turns
            .iter()
            .enumerate()
            .map(|(index, text)| {
                let role = if index % 2 == 0 { "user" } else { "assistant" };
                json!({"role": role, "content": [{"type": "text", "text": text}]})
            })
            .collect();
        if marked && let Some(last) = messages.last_mut() {
            last["content"][0]["cache_control"] = json!({"type": "ephemeral", "ttl": "1h"});
        }
        json!({
            "model": "claude-sonnet-5",
            "system": [
                {"type": "text", "text": format!("{BILLING} {turns:?}")},
                {"type": "text", "text": "12345678", "cache_control": {"type": "ephemeral"}},
            ],
            "messages": messages,
        })
    }

    #[test]
    fn a_second_turn_reads_what_the_first_one_wrote() {
        let cache = Cache::default();
        let first = cache.charge("alice", &body(&["abcdefgh"], true));
        assert_eq!(first, InputUsage { written_5m: 2, written_1h: 2, ..InputUsage::default() });
        let second = cache.charge("alice", &body(&["abcdefgh", "answer", "next"], true));
        assert_eq!(second, InputUsage { read: 4, written_1h: 3, ..InputUsage::default() });
        let unmarked = cache.charge("alice", &body(&["abcdefgh", "answer", "next"], false));
        assert_eq!(unmarked, InputUsage { read: 2, fresh: 5, ..InputUsage::default() });
    }

    #[test]
    fn caches_belong_to_one_bearer() {
        let cache = Cache::default();
        cache.charge("alice", &body(&["abcdefgh"], true));
        assert_eq!(cache.charge("bob", &body(&["abcdefgh"], true)).read, 0);
    }
}
