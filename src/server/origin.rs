//! Browsers: which web pages may use the server (CORS), and how those that may not are kept out.
//!
//! A server on localhost is within reach of every page that its owner visits. Where no client key stands in the way, such
//! pages are told by what browsers send of themselves: the `Origin`, `Sec-Fetch-Site`, and the `Host` that a page had to
//! rebind to this machine.

use std::net::IpAddr;

use hyper::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, HOST, HeaderName, HeaderValue, ORIGIN, VARY,
};
use hyper::http::request::Parts;
use hyper::http::uri::Authority;
use hyper::{HeaderMap, Method};

use super::Settings;
use crate::api::Denial;

/// The headers of answers that a page may read beside the few that it always may.
const EXPOSED: &str = "x-request-id, retry-after, x-should-retry, x-auth-pool-subscription, x-auth-pool-backend, \
                       x-auth-pool-fallback, x-auth-pool-cache, x-auth-pool-decision, x-ratelimit-limit-requests, \
                       x-ratelimit-remaining-requests, x-ratelimit-reset-requests";

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const REQUEST_PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-request-private-network");
const ALLOW_PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-allow-private-network");

/// What a browser is told about its page's origin.
#[derive(Clone, Debug, Default)]
pub(super) struct Cors {
    /// Whether any origin is configured.
    enabled: bool,
    /// The origin of this request, if it is one of the configured.
    allowed: Option<HeaderValue>,
}

impl Cors {
    pub(super) fn of(settings: &Settings, headers: &HeaderMap) -> Self {
        let origin = headers.get(ORIGIN).filter(|origin| {
            settings.cors_origins.iter().any(|allowed| allowed == "*" || allowed.as_bytes() == origin.as_bytes())
        });
        Self { enabled: !settings.cors_origins.is_empty(), allowed: origin.cloned() }
    }

    /// Adds to a response what the browser needs to hand it to its page.
    pub(super) fn apply(&self, headers: &mut HeaderMap) {
        if self.enabled {
            headers.append(VARY, HeaderValue::from_static("Origin"));
        }
        if let Some(origin) = &self.allowed {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
        }
    }

    /// The answer to a preflight; empty where the origin may not.
    pub(super) fn preflight(&self, request: &HeaderMap, allow: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if self.enabled {
            headers.append(
                VARY,
                HeaderValue::from_static("Access-Control-Request-Method, Access-Control-Request-Headers"),
            );
        }
        if self.allowed.is_some() {
            headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(allow));
            headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
            // SDKs send headers of their own (x-stainless-...); none of them means anything dangerous here.
            if let Some(wanted) = request.get(ACCESS_CONTROL_REQUEST_HEADERS) {
                headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, wanted.clone());
            }
            if request.get(REQUEST_PRIVATE_NETWORK).is_some_and(|value| value == "true") {
                headers.insert(ALLOW_PRIVATE_NETWORK, HeaderValue::from_static("true"));
            }
        }
        headers
    }
}

pub(super) fn is_preflight(parts: &Parts) -> bool {
    parts.method == Method::OPTIONS
        && parts.headers.contains_key(ORIGIN)
        && parts.headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

/// Refuses what a foreign web page sends through a browser on this machine, and what was sent to a foreign name.
///
/// For requests that nothing else vouches for. A client key does: a page does not have it.
pub(super) fn check_local(parts: &Parts, cors: &Cors) -> Result<(), Denial> {
    let mut names = names(parts).peekable();
    let own = names.peek().copied();
    if let Some(foreign) = names.find(|name| !is_local(name)) {
        return Err(Denial::ForeignHost { host: shown(foreign) });
    }
    if cors.allowed.is_some() {
        return Ok(());
    }
    if let Some(origin) = parts.headers.get(ORIGIN) {
        let origin = String::from_utf8_lossy(origin.as_bytes());
        let host = origin.split_once("://").map(|(_, host)| host);
        return if host.is_some() && host == own {
            Ok(())
        } else {
            Err(Denial::CrossSite { origin: Some(shown(&origin)) })
        };
    }
    if parts.headers.get(SEC_FETCH_SITE).is_some_and(|site| site == "cross-site") {
        return Err(Denial::CrossSite { origin: None });
    }
    Ok(())
}

/// Whether a reverse proxy has passed the request on, so that the peer is not who asks.
pub(super) fn is_forwarded(headers: &HeaderMap) -> bool {
    ["forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via"]
        .iter()
        .any(|name| headers.contains_key(*name))
}

/// The names that the request was sent to: of its target, and of its `Host` header.
fn names(parts: &Parts) -> impl Iterator<Item = &str> {
    let target = parts.uri.authority().map(Authority::as_str);
    // A header that is no text is no name of ours.
    let host = parts.headers.get_all(HOST).iter().map(|host| host.to_str().unwrap_or("?"));
    target.into_iter().chain(host)
}

/// Whether `name`, with or without port, is this machine's own in every browser's eyes.
fn is_local(name: &str) -> bool {
    let Ok(authority) = name.parse::<Authority>() else { return false };
    // A user's name has no business here; what stands before an @ is only there to confuse.
    if authority.as_str().contains('@') {
        return false;
    }
    let host = authority.host();
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.eq_ignore_ascii_case("localhost") || address.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

/// A stranger's text, fit to be repeated.
fn shown(text: &str) -> String {
    text.chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use hyper::Request;

    use super::*;

    fn check(pairs: &[(&str, &str)], origins: &[&str]) -> Result<(), Denial> {
        let mut request = Request::builder().uri("/v1/models");
        for (name, value) in pairs {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).map_or_else(|error| panic!("{error}"), Request::into_parts);
        let cors_origins = origins.iter().map(|origin| (*origin).to_owned()).collect();
        let settings = Settings { cors_origins, ..Settings::default() };
        check_local(&parts, &Cors::of(&settings, &parts.headers))
    }

    #[test]
    fn only_names_of_this_machine_are_served() {
        for host in ["localhost", "LOCALHOST:3000", "127.0.0.1:1", "127.1.2.3", "[::1]:3000", "[::1]"] {
            assert_eq!(check(&[("host", host)], &[]), Ok(()), "{host}");
        }
        for host in
            ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "192.168.0.1", "::1", "a@localhost:1x"]
        {
            assert_eq!(check(&[("host", host)], &[]), Err(Denial::ForeignHost { host: host.into() }), "{host}");
        }
        assert_eq!(check(&[], &[]), Ok(()));
        assert!(check(&[("host", "localhost"), ("host", "evil.example")], &[]).is_err());
    }

    #[test]
    fn foreign_pages_are_kept_out_unless_configured() {
        let host = ("host", "localhost:3000");
        let refused = |origin: &str| Err(Denial::CrossSite { origin: Some(origin.into()) });
        assert_eq!(check(&[host, ("origin", "http://localhost:3000")], &[]), Ok(()));
        assert_eq!(check(&[host, ("origin", "http://localhost:5173")], &[]), refused("http://localhost:5173"));
        assert_eq!(check(&[host, ("origin", "https://evil.example")], &[]), refused("https://evil.example"));
        assert_eq!(check(&[host, ("origin", "null")], &[]), refused("null"));
        assert_eq!(check(&[host, ("origin", "https://app.example")], &["https://app.example"]), Ok(()));
        assert_eq!(
            check(&[host, ("origin", "https://b.example")], &["https://app.example"]),
            refused("https://b.example")
        );
        assert_eq!(check(&[host, ("origin", "https://b.example")], &["*"]), Ok(()));
        assert_eq!(check(&[host, ("sec-fetch-site", "cross-site")], &[]), Err(Denial::CrossSite { origin: None }));
        assert_eq!(check(&[host, ("sec-fetch-site", "none")], &[]), Ok(()));
    }
}
