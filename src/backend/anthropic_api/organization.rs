//! What Anthropic itself counts: the usage and cost reports of an organisation, from its Admin API.
//!
//! The usage report tells tokens by key and model; the cost report tells money, but not by key. So what a key has cost is
//! reckoned from its tokens and the list of prices, and the organisation's total is the provider's own word.

use std::collections::BTreeMap;

use http::StatusCode;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{BASE_URL, classify};
use crate::backend::http::{Deadlines, Endpoint, HttpClient, Key, Timers, read_body, unreachable};
use crate::backend::{Failure, FailureKind};
use crate::conversation::{Model, Price, Usage};
use crate::runtime::clock;
use crate::units::{MicroUsd, Timestamp};

/// Pages that are read of one report at most: more than any week has.
const MOST_PAGES: usize = 100;

/// The Admin API of one organisation.
#[derive(Clone, Debug)]
pub struct Organization {
    endpoint: Endpoint,
}

/// A key of the organisation.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ApiKey {
    /// For example `apikey_01...`.
    pub id: String,
    /// As its owner calls it.
    pub name: String,
    /// The beginning and the end of the key, with dots between.
    #[serde(default)]
    pub partial_key_hint: Option<String>,
}

impl ApiKey {
    /// Whether `secret` is this key, as far as can be told.
    pub fn is(&self, secret: &str) -> bool {
        let parts = self.partial_key_hint.as_deref().and_then(|hint| hint.split_once("..."));
        parts.is_some_and(|(head, tail)| {
            let ends = !head.is_empty() && !tail.is_empty() && secret.len() > head.len() + tail.len();
            ends && secret.starts_with(head) && secret.ends_with(tail)
        })
    }
}

/// What was used under one key with one model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyUsage {
    /// Tokens.
    pub usage: Usage,
    /// What they cost by the list of prices.
    pub cost: MicroUsd,
}

impl Organization {
    /// Reached at `base_url`, Anthropic's own address if there is none, with an admin key.
    pub fn new(client: HttpClient, base_url: Option<&str>, key: Key, timers: Timers) -> Self {
        let base = base_url.unwrap_or(BASE_URL).trim_end_matches('/');
        Self { endpoint: Endpoint::new(client, base.strip_suffix("/v1").unwrap_or(base), Some(key), timers) }
    }

    /// All keys.
    pub async fn keys(&self) -> Result<Vec<ApiKey>, Failure> {
        #[derive(Deserialize)]
        struct Page {
            data: Vec<ApiKey>,
            #[serde(default)]
            has_more: bool,
            #[serde(default)]
            last_id: Option<String>,
        }
        let (mut keys, mut after) = (Vec::new(), None);
        for _ in 0..MOST_PAGES {
            let mut query = vec![("limit", "100".to_owned())];
            query.extend(after.take().map(|id| ("after_id", id)));
            let page: Page = self.get("/v1/organizations/api_keys", &query).await?;
            keys.extend(page.data);
            match page.last_id.filter(|_| page.has_more) {
                Some(last) => after = Some(last),
                None => break,
            }
        }
        Ok(keys)
    }

    /// What was used from `from` until `to`, by key; `None` is use that belongs to no key, for example in the console.
    pub async fn usage(&self, from: Timestamp, to: Timestamp) -> Result<BTreeMap<Option<String>, KeyUsage>, Failure> {
        let mut by_key: BTreeMap<Option<String>, KeyUsage> = BTreeMap::new();
        let query = [("group_by[]", "api_key_id".to_owned()), ("group_by[]", "model".to_owned())];
        for item in self.report::<UsageItem>("/v1/organizations/usage_report/messages", from, to, &query).await? {
            let (usage, short, long) = item.tokens();
            // The dearer rate of long requests is for single ones: what is summed up here has lost its length.
            let price = Price { long: None, ..Model::named(item.model.as_deref().unwrap_or_default()).price };
            let of = by_key.entry(item.api_key_id).or_default();
            of.usage = of.usage.plus(&usage);
            // Cache writes have two prices.
            let rest = Usage { cache_creation: short, ..usage };
            of.cost +=
                price.cost_with_short_cache(&rest) + price.cost(&Usage { cache_creation: long, ..Usage::default() });
        }
        Ok(by_key)
    }

    /// What the provider says all of it cost.
    pub async fn cost(&self, from: Timestamp, to: Timestamp) -> Result<MicroUsd, Failure> {
        let items = self.report::<CostItem>("/v1/organizations/cost_report", from, to, &[]).await?;
        // The amounts are in cents.
        let cents: f64 = items.iter().filter_map(|item| item.amount.parse::<f64>().ok()).sum();
        Ok(MicroUsd::from_usd(cents / 100.0))
    }

    /// All items of a report by days.
    async fn report<T: DeserializeOwned>(
        &self,
        path: &str,
        from: Timestamp,
        to: Timestamp,
        more: &[(&str, String)],
    ) -> Result<Vec<T>, Failure> {
        let (mut items, mut next) = (Vec::new(), None);
        for _ in 0..MOST_PAGES {
            let mut query = vec![
                ("starting_at", from.to_string()),
                ("ending_at", to.to_string()),
                ("bucket_width", "1d".to_owned()),
            ];
            query.extend(more.iter().cloned());
            query.extend(next.take().map(|page| ("page", page)));
            let page: Report<T> = self.get(path, &query).await?;
            items.extend(page.data.into_iter().flat_map(|bucket| bucket.results));
            match page.next_page.filter(|_| page.has_more) {
                Some(page) => next = Some(page),
                None => break,
            }
        }
        Ok(items)
    }

    async fn get<T: DeserializeOwned>(&self, path: &str, query: &[(&str, String)]) -> Result<T, Failure> {
        let deadlines = Deadlines::start(self.endpoint.timers);
        let mut request = self.endpoint.get(path, query).header("anthropic-version", super::turn::VERSION);
        if let Some(key) = self.endpoint.credential("")? {
            request = request.header("x-api-key", key);
        }
        let response = deadlines.wait(request.send()).await?.map_err(unreachable)?;
        let (status, headers) = (response.status(), response.headers().clone());
        let body = read_body(response, &deadlines).await;
        if status != StatusCode::OK {
            return Err(classify::refused(status, &headers, &body, clock::now()));
        }
        serde_json::from_slice(&body).map_err(|error| {
            Failure::new(FailureKind::Protocol, format!("the Admin API's answer is not understood: {error}"))
        })
    }
}

#[derive(Deserialize)]
struct Report<T> {
    data: Vec<Bucket<T>>,
    #[serde(default)]
    has_more: bool,
    #[serde(default)]
    next_page: Option<String>,
}

#[derive(Deserialize)]
struct Bucket<T> {
    #[serde(default = "Vec::new")]
    results: Vec<T>,
}

#[derive(Deserialize)]
struct CostItem {
    amount: String,
}

#[derive(Deserialize)]
struct UsageItem {
    #[serde(default)]
    api_key_id: Option<String>,
    #[serde(default)]
    model: Option<String>,
    #[serde(default)]
    uncached_input_tokens: u64,
    #[serde(default)]
    cache_creation: Option<CacheWrites>,
    #[serde(default)]
    cache_read_input_tokens: u64,
    #[serde(default)]
    output_tokens: u64,
}

#[derive(Deserialize)]
struct CacheWrites {
    #[serde(default, rename = "ephemeral_5m_input_tokens")]
    short: u64,
    #[serde(default, rename = "ephemeral_1h_input_tokens")]
    long: u64,
}

impl UsageItem {
    /// All tokens, and of the cache writes those for 5 minutes and those for an hour.
    fn tokens(&self) -> (Usage, u64, u64) {
        let (short, long) = self.cache_creation.as_ref().map_or((0, 0), |writes| (writes.short, writes.long));
        let usage = Usage {
            input: self.uncached_input_tokens,
            cache_creation: short + long,
            cache_read: self.cache_read_input_tokens,
            output: self.output_tokens,
            reasoning: 0,
        };
        (usage, short, long)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_known_by_its_beginning_and_end() {
        let key = |hint: Option<&str>| ApiKey {
            id: "apikey_1".into(),
            name: "n".into(),
            partial_key_hint: hint.map(str::to_owned),
        };
        assert!(key(Some("sk-ant-api03-R2D...igAA")).is("sk-ant-api03-R2D2C3POigAA"));
        assert!(!key(Some("sk-ant-api03-R2D...igAA")).is("sk-ant-api03-R2D2C3POigAB"));
        assert!(!key(Some("sk-ant...igAA")).is("sk-antigAA"), "nothing stands between");
        assert!(!key(Some("...")).is("sk-ant") && !key(None).is("sk-ant"));
    }
}
