//! The Admin API's reports: what was used under which key, counted from the answers given here.
//!
//! Every page holds one item, so that its reader has to turn pages. Money is made up: a cent for a thousand tokens.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use hyper::StatusCode;
use serde_json::{Value, json};

use super::cache::InputUsage;
use super::record::Bearer;
use super::reply::Reply;

/// What admin keys begin with; nothing else may see the reports.
const ADMIN: &str = "sk-ant-admin";

/// What was used, by key and model.
#[derive(Debug, Default)]
pub(super) struct Ledger(Mutex<BTreeMap<(String, String), Used>>);

/// What one key used of one model.
#[derive(Clone, Debug, Default)]
struct Used {
    hint: String,
    uncached: u64,
    written: u64,
    written_1h: u64,
    read: u64,
    output: u64,
}

impl Ledger {
    /// Counts an answer.
    pub(super) fn count(&self, bearer: &Bearer, model: &str, input: InputUsage, output: usize) {
        let Some(hint) = &bearer.hint else { return };
        let mut ledger = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let used = ledger.entry((bearer.name().to_owned(), model.to_owned())).or_default();
        hint.clone_into(&mut used.hint);
        used.uncached += input.fresh;
        used.written += input.written_5m;
        used.written_1h += input.written_1h;
        used.read += input.read;
        used.output += output as u64;
    }

    /// Answers a `GET` below `/v1/organizations/`.
    pub(super) fn reply(&self, secret: Option<&str>, what: &str, query: &str) -> Reply {
        if !secret.is_some_and(|secret| secret.starts_with(ADMIN)) {
            return Reply::error(StatusCode::UNAUTHORIZED, "invalid x-api-key");
        }
        let ledger = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let items: Vec<Value> = match what {
            "api_keys" => {
                let keys: BTreeMap<&String, &Used> = ledger.iter().map(|((name, _), used)| (name, used)).collect();
                keys.into_iter().map(|(name, used)| json!({"id": id(name), "type": "api_key", "name": name, "status": "active", "partial_key_hint": used.hint})).collect()
            }
            "usage_report/messages" => ledger.iter().map(|((name, model), used)| used.item(name, model)).collect(),
            "cost_report" => ledger.values().map(Used::cost).collect(),
            _ => return Reply::error(StatusCode::NOT_FOUND, "Not Found"),
        };
        let wants = |field: &str| query.split('&').find_map(|pair| pair.strip_prefix(field)?.strip_prefix('='));
        if what != "api_keys" && wants("starting_at").is_none() {
            return Reply::error(StatusCode::BAD_REQUEST, "starting_at: Field required");
        }
        let at = match what {
            "api_keys" => wants("after_id")
                .map_or(0, |last| items.iter().position(|item| item["id"] == last).map_or(0, |at| at + 1)),
            _ => wants("page").and_then(|page| page.strip_prefix("page_")?.parse().ok()).unwrap_or(0),
        };
        let has_more = at + 1 < items.len();
        let page: Vec<Value> = items.into_iter().skip(at).take(1).collect();
        let body = if what == "api_keys" {
            let last = page.last().map(|item| item["id"].clone());
            json!({"data": page, "has_more": has_more, "last_id": last})
        } else {
            let bucket = json!({"starting_at": wants("starting_at"), "ending_at": wants("ending_at"), "results": page});
            json!({"data": [bucket], "has_more": has_more, "next_page": has_more.then(|| format!("page_{}", at + 1))})
        };
        Reply::json(StatusCode::OK, &body)
    }
}

impl Used {
    fn item(&self, name: &str, model: &str) -> Value {
        json!({
            "api_key_id": id(name), "workspace_id": null, "model": model, "uncached_input_tokens": self.uncached,
            "cache_creation": {"ephemeral_5m_input_tokens": self.written, "ephemeral_1h_input_tokens": self.written_1h},
            "cache_read_input_tokens": self.read, "output_tokens": self.output,
        })
    }

    fn cost(&self) -> Value {
        let tokens = self.uncached + self.written + self.written_1h + self.read + self.output;
        json!({"amount": format!("{}.{:03}", tokens / 1000, tokens % 1000), "currency": "USD"})
    }
}

fn id(name: &str) -> String {
    format!("apikey_{name}")
}
