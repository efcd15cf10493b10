//! The front door: where it listens and who may come in.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::Context;
use crate::config::env::{HOST, parse_host};
use crate::config::model::{Queue, Server};
use crate::config::problem::{FieldPath, Findings, Place};
use crate::config::raw;
use crate::config::span::{DAY, HOUR, Unit};
use crate::config::store::StorePlace;

pub(super) fn server(file: &raw::File, store: &StorePlace, context: &Context<'_>, findings: &mut Findings) -> Server {
    let section = &file.server;
    let at = FieldPath::field("server");
    let (listen, decided_by) = listen(section, context, findings);
    let keys = FieldPath::field("clientKeys");
    if !is_loopback(listen.ip()) && file.client_keys.is_empty() && !findings.is_unusable(&keys) {
        let reach = format!("{listen} can be reached from other machines, so `clientKeys` must say who may use it");
        if *store == StorePlace::Nowhere {
            findings.problem(decided_by, reach);
        } else {
            // What is registered there is known when the program starts.
            findings.warning(decided_by, format!("{reach}, or the store has to hold a key (`auth-pool keys create`)"));
        }
    }
    let mut span = |name: &str, span: &crate::config::span::Span, least: Duration| {
        span.resolve(&at.key(name), Unit::Seconds, least..=DAY, findings)
    };
    let drain_timeout = span("drainTimeout", &section.drain_timeout, Duration::ZERO);
    let header_read_timeout = span("headerReadTimeout", &section.header_read_timeout, Duration::from_millis(100));
    let queue = Queue {
        max_waiting: section.queue.max_waiting,
        timeout: section.queue.timeout.resolve(
            &at.key("queue").key("timeout"),
            Unit::Seconds,
            Duration::ZERO..=HOUR,
            findings,
        ),
    };
    if section.max_body_bytes_total < section.max_body_bytes {
        findings.problem(at.key("maxBodyBytesTotal"), "must be at least `maxBodyBytes`");
    }
    Server {
        listen,
        cors_origins: cors_origins(&section.cors_origins, &at.key("corsOrigins"), findings),
        max_body_bytes: section.max_body_bytes,
        max_body_bytes_total: section.max_body_bytes_total,
        drain_timeout,
        header_read_timeout,
        max_connections: section.max_connections,
        requests_per_minute: section.requests_per_minute,
        queue,
    }
}

fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

/// The address to listen on and what decided it: `--listen`, else `HOST` and `PORT`, else the file.
fn listen(section: &raw::Server, context: &Context<'_>, findings: &mut Findings) -> (SocketAddr, Place) {
    const RULE: &str = "must be an IP address or `localhost`, and a port, for example `127.0.0.1:3000`";
    let fallback = SocketAddr::from(([127, 0, 0, 1], 3000));
    let mut parse = |text: &str, place: &Place| {
        parse_listen(text).unwrap_or_else(|| {
            findings.problem(place.clone(), RULE);
            fallback
        })
    };
    if let Some(text) = context.listen {
        let place = Place::Argument("--listen".to_owned());
        return (parse(text, &place), place);
    }
    let mut place = Place::from(FieldPath::field("server").key("listen"));
    let mut address = parse(&section.listen, &place);
    if let Some(port) = context.settings.port {
        address.set_port(port);
    }
    if let Some(host) = context.settings.host {
        address.set_ip(host);
        place = Place::Variable(HOST.to_owned());
    }
    (address, place)
}

fn parse_listen(text: &str) -> Option<SocketAddr> {
    let (host, port) = text.trim().rsplit_once(':')?;
    // Without brackets the last group of an IPv6 address would be taken for the port.
    if host.contains(':') && !host.starts_with('[') {
        return None;
    }
    Some(SocketAddr::new(parse_host(host)?, port.parse().ok()?))
}

fn cors_origins(origins: &[Option<String>], at: &FieldPath, findings: &mut Findings) -> Vec<String> {
    for (index, origin) in origins.iter().enumerate() {
        let Some(origin) = origin else { continue };
        let at = at.index(index);
        if origin == "*" {
            if origins.len() > 1 {
                findings.problem(at, "`*` allows every origin, so it must stand alone");
            }
            continue;
        }
        let host = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
        let is_host =
            |host: &str| !host.is_empty() && host.chars().all(|c| c.is_ascii_graphic() && !"/?#@\\*\"".contains(c));
        if !host.is_some_and(is_host) {
            findings.problem(
                at,
                "must be an origin: scheme and host without a path, for example `https://app.example.com`",
            );
        } else if origin.chars().any(|c| c.is_ascii_uppercase()) {
            findings.problem(at, "must be in lower case, as browsers send it");
        }
    }
    origins.iter().flatten().cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_to_listen_on_has_a_host_and_a_port() {
        let parsed = |text: &str| parse_listen(text).map(|address| address.to_string());
        assert_eq!(parsed("127.0.0.1:0").as_deref(), Some("127.0.0.1:0"));
        assert_eq!(parsed("localhost:80").as_deref(), Some("127.0.0.1:80"));
        assert_eq!(parsed("[::1]:3000").as_deref(), Some("[::1]:3000"));
        for bad in ["3000", ":3000", "::1", "::1:3000", "example.com:3000", "127.0.0.1:70000", ""] {
            assert_eq!(parsed(bad), None, "{bad}");
        }
    }
}
