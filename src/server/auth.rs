//! Who is calling.

use std::sync::Arc;

use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;
use subtle::{Choice, ConditionallySelectable as _, ConstantTimeEq as _};

use super::{ClientKey, Settings};
use crate::api::Denial;

/// Who is calling.
#[derive(Clone, Debug)]
pub(super) struct Client {
    /// The key's name; `anonymous` without keys.
    pub(super) name: Arc<str>,
    /// See [`ClientKey::models`].
    pub(super) models: Option<Arc<[String]>>,
    /// Whether the key opens the operator's views.
    pub(super) admin: bool,
}

impl Client {
    /// Somebody without a key.
    pub(super) fn anonymous() -> Self {
        Self { name: "anonymous".into(), models: None, admin: false }
    }
}

/// Finds the client by the key in the request, under any of the names that OpenAI's, Azure's and Anthropic's clients use.
///
/// Without configured keys everybody is `anonymous`, whatever key they send: OpenAI's clients cannot send none.
pub(super) fn authenticate(settings: &Settings, headers: &HeaderMap) -> Result<Client, Denial> {
    if settings.client_keys.is_empty() {
        return Ok(Client::anonymous());
    }
    let mut sent = false;
    for key in keys(headers) {
        sent = true;
        if let Some(known) = find(&settings.client_keys, key) {
            let ClientKey { name, models, admin, .. } = known;
            return Ok(Client { name: Arc::clone(name), models: models.clone(), admin: *admin });
        }
    }
    Err(if sent { Denial::WrongKey } else { Denial::MissingKey })
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

    fn settings(keys: &[&str]) -> Settings {
        let client_keys = keys.iter().map(|key| ClientKey {
            name: format!("name of {key}").into(),
            digest: ClientKey::digest(key.as_bytes()),
            models: None,
            admin: *key == "boss",
        });
        Settings { client_keys: client_keys.collect(), ..Settings::default() }
    }

    #[test]
    fn a_key_is_found_under_every_usual_name() {
        let check = |sent: &[(&'static str, &str)], expected: Result<&str, Denial>| {
            let client = authenticate(&settings(&["one", "two", "boss"]), &headers(sent));
            assert_eq!(client.map(|client| client.name.to_string()), expected.map(str::to_owned), "{sent:?}");
        };
        check(&[("authorization", "Bearer two")], Ok("name of two"));
        check(&[("authorization", "bearer  one ")], Ok("name of one"));
        check(&[("x-api-key", "boss")], Ok("name of boss"));
        check(&[("api-key", "two")], Ok("name of two"));
        check(&[("authorization", "Bearer sk-unused"), ("x-api-key", "one")], Ok("name of one"));
        check(&[("authorization", "Bearer three")], Err(Denial::WrongKey));
        check(&[("authorization", "Basic b25l")], Err(Denial::MissingKey));
        check(&[("authorization", "Bearer ")], Err(Denial::MissingKey));
        check(&[("authorization", "one")], Err(Denial::MissingKey));
        check(&[], Err(Denial::MissingKey));
    }

    #[test]
    fn without_keys_everybody_is_anonymous_and_nobody_the_operator() {
        let client = authenticate(&settings(&[]), &headers(&[("authorization", "Bearer x")]));
        assert!(client.is_ok_and(|client| &*client.name == "anonymous" && !client.admin));
    }
}
