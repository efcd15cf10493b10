//! Who is calling.

use std::sync::Arc;

use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;
use subtle::{Choice, ConditionallySelectable as _, ConstantTimeEq as _};

use super::{ClientKey, Settings};
use crate::api::Denial;
use crate::units::Timestamp;

/// Who is calling.
#[derive(Clone, Debug)]
pub(super) struct Client {
    /// The key's name; `anonymous` without keys.
    pub(super) name: Arc<str>,
    /// The key's rights; `None` where there are no keys, or none was needed.
    pub(super) key: Option<ClientKey>,
}

impl Client {
    /// Somebody without a key.
    pub(super) fn anonymous() -> Self {
        Self { name: "anonymous".into(), key: None }
    }

    /// Whether it may use what the operator uses, of its organisation at least.
    pub(super) fn is_admin(&self) -> bool {
        self.key.as_ref().is_some_and(|key| key.admin)
    }

    /// Its organisation; `None` is the house.
    pub(super) fn organization(&self) -> Option<&Arc<str>> {
        self.key.as_ref()?.organization.as_ref()
    }
}

/// Finds the client by the key in the request, under any of the names that OpenAI's, Azure's and Anthropic's clients use.
///
/// Without configured keys everybody is `anonymous`, whatever key they send: OpenAI's clients cannot send none.
pub(super) fn authenticate(settings: &Settings, headers: &HeaderMap, now: Timestamp) -> Result<Client, Denial> {
    if settings.client_keys.is_empty() {
        return Ok(Client::anonymous());
    }
    let mut denial = Denial::MissingKey;
    for sent in keys(headers) {
        match find(&settings.client_keys, sent) {
            Some(key) if key.expires_at.is_some_and(|end| end <= now) => denial = Denial::ExpiredKey,
            Some(key) => return Ok(Client { name: Arc::clone(&key.name), key: Some(key.clone()) }),
            None if denial == Denial::MissingKey => denial = Denial::WrongKey,
            None => {}
        }
    }
    Err(denial)
}

/// Every key that a request carries.
fn keys(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let bearer = headers.get_all(AUTHORIZATION).iter().filter_map(|value| {
        let (scheme, key) = value.as_bytes().split_at_checked("Bearer ".len())?;
        scheme.eq_ignore_ascii_case(b"Bearer ").then(|| key.trim_ascii())
    });
    let others = ["x-api-key", "api-key"].into_iter().flat_map(|name| headers.get_all(name));
    bearer.chain(others.map(|value| value.as_bytes().trim_ascii())).filter(|key| !key.is_empty())
}

/// The known key that was sent. Takes the same time whichever it is, and whether it is one.
fn find<'a>(known: &'a [ClientKey], sent: &[u8]) -> Option<&'a ClientKey> {
    let digest = ClientKey::digest(sent);
    let mut found = Choice::from(0);
    let mut place = 0_u64;
    for (index, key) in (0_u64..).zip(known) {
        let same = key.digest.ct_eq(&digest);
        place.conditional_assign(&index, same);
        found |= same;
    }
    if !bool::from(found) {
        return None;
    }
    known.get(usize::try_from(place).ok()?)
}

#[cfg(test)]
mod tests {
    use hyper::header::{HeaderName, HeaderValue};

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pairs = pairs.iter().map(|(name, value)| {
            (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap_or(HeaderValue::from_static("")))
        });
        pairs.collect()
    }

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    fn settings(keys: &[&str]) -> Settings {
        let client_keys = keys.iter().map(|key| ClientKey {
            name: format!("name of {key}").into(),
            digest: ClientKey::digest(key.as_bytes()),
            models: None,
            chat: true,
            admin: *key == "boss",
            organization: None,
            requests_per_minute: None,
            expires_at: (*key == "old").then_some(NOW),
        });
        Settings { client_keys: client_keys.collect(), ..Settings::default() }
    }

    #[test]
    fn a_key_is_found_under_every_usual_name() {
        let check = |sent: &[(&'static str, &str)], expected: Result<&str, Denial>| {
            let client = authenticate(&settings(&["one", "two", "boss", "old"]), &headers(sent), NOW);
            assert_eq!(client.map(|client| client.name.to_string()), expected.map(str::to_owned), "{sent:?}");
        };
        check(&[("authorization", "Bearer two")], Ok("name of two"));
        check(&[("authorization", "bearer  one ")], Ok("name of one"));
        check(&[("x-api-key", "boss")], Ok("name of boss"));
        check(&[("api-key", "two")], Ok("name of two"));
        check(&[("authorization", "Bearer sk-unused"), ("x-api-key", "one")], Ok("name of one"));
        check(&[("authorization", "Bearer three")], Err(Denial::WrongKey));
        check(&[("authorization", "Bearer old")], Err(Denial::ExpiredKey));
        check(&[("authorization", "Bearer old"), ("x-api-key", "three")], Err(Denial::ExpiredKey));
        check(&[("authorization", "Bearer old"), ("x-api-key", "one")], Ok("name of one"));
        check(&[("authorization", "Basic b25l")], Err(Denial::MissingKey));
        check(&[("authorization", "Bearer ")], Err(Denial::MissingKey));
        check(&[("authorization", "one")], Err(Denial::MissingKey));
        check(&[], Err(Denial::MissingKey));
    }

    #[test]
    fn a_key_counts_until_it_expires() {
        let sent = headers(&[("authorization", "Bearer old")]);
        let before = Timestamp::from_millis(NOW.as_millis() - 1);
        assert!(authenticate(&settings(&["old"]), &sent, before).is_ok());
        assert_eq!(authenticate(&settings(&["old"]), &sent, NOW).err(), Some(Denial::ExpiredKey));
    }

    #[test]
    fn without_keys_everybody_is_anonymous_and_nobody_the_operator() {
        let client = authenticate(&settings(&[]), &headers(&[("authorization", "Bearer x")]), NOW);
        assert!(client.is_ok_and(|client| &*client.name == "anonymous" && !client.is_admin()));
    }
}
