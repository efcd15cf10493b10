//! What an answer's headers say of the account's limits.
//!
//! Two kinds: the *unified* ones of subscriptions, which tell of windows of 5 hours and 7 days, and the *classic* ones of
//! API keys, which tell of requests and tokens in a minute. A minute has no window in the pool: when it is spent, that is
//! a limit without a name that ends when the headers say.

use std::time::Duration;

use http::HeaderMap;
use http::header::RETRY_AFTER;

use crate::conversation::{Family, LimitReport, LimitStatus, Window, WindowUse};
use crate::units::Timestamp;

const UNIFIED: &str = "anthropic-ratelimit-unified-";

/// What a limit per minute counts.
const CLASSIC: [&str; 4] = ["requests", "tokens", "input-tokens", "output-tokens"];

/// What the headers of a good answer say; `None` if they say nothing.
pub(super) fn told(headers: &HeaderMap) -> Option<LimitReport> {
    let status = match text(headers, &format!("{UNIFIED}status"))? {
        "allowed" => LimitStatus::Allowed,
        // The answer is there, whatever the header says: nothing is locked by it.
        _ => LimitStatus::Warning,
    };
    Some(LimitReport { status, window: claim(headers), resets_at: reset(headers, ""), windows: windows(headers) })
}

/// What the headers of a 429 say.
pub(super) fn rejection(headers: &HeaderMap, now: Timestamp) -> LimitReport {
    let window = claim(headers);
    let unified = reset(headers, "").filter(|_| text(headers, &format!("{UNIFIED}status")).is_some());
    let resets_at = unified.or_else(|| retry_after(headers, now)).or_else(|| minute_ends(headers));
    LimitReport { status: LimitStatus::Rejected, window, resets_at, windows: windows(headers) }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

/// The window that decided. A weekly limit of something unknown is taken for the whole week: too careful is better than
/// hammering a limit.
fn claim(headers: &HeaderMap) -> Option<Window> {
    match text(headers, &format!("{UNIFIED}representative-claim"))? {
        "five_hour" => Some(Window::FiveHour),
        "seven_day" => Some(Window::SevenDay),
        name => match Family::of(name.strip_prefix("seven_day_")?) {
            Family::Other => Some(Window::SevenDay),
            family => Some(Window::SevenDayFamily(family)),
        },
    }
}

/// When a window resets; `window` is its prefix, empty for the one that decided.
fn reset(headers: &HeaderMap, window: &str) -> Option<Timestamp> {
    text(headers, &format!("{UNIFIED}{window}reset"))?.parse().ok().map(Timestamp::from_secs)
}

fn windows(headers: &HeaderMap) -> Vec<WindowUse> {
    let window_use = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
        let short = name.as_str().strip_prefix(UNIFIED)?.strip_suffix("-utilization")?;
        let window = match short {
            "5h" => Window::FiveHour,
            "7d" => Window::SevenDay,
            _ => match Family::of(short.strip_prefix("7d")?) {
                // Not in a rejection: what is not known is passed over, it locks nothing.
                Family::Other => return None,
                family => Window::SevenDayFamily(family),
            },
        };
        let utilization: f64 = value.to_str().ok()?.trim().parse().ok()?;
        let resets_at = reset(headers, &format!("{short}-"));
        utilization.is_finite().then_some(WindowUse { window, utilization, resets_at })
    };
    headers.iter().filter_map(window_use).collect()
}

fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Timestamp> {
    let seconds: u64 = text(headers, RETRY_AFTER.as_str())?.parse().ok()?;
    Some(now + Duration::from_secs(seconds))
}

/// When the last of the spent limits per minute is full again.
fn minute_ends(headers: &HeaderMap) -> Option<Timestamp> {
    let of = |what: &str, field: &str| text(headers, &format!("anthropic-ratelimit-{what}-{field}"));
    let spent = CLASSIC.iter().filter(|what| of(what, "remaining") == Some("0"));
    spent.filter_map(|what| Timestamp::parse_rfc3339(of(what, "reset")?)).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_795_000_000);

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (http::HeaderName::from_static(name), value.parse().expect("a value")))
            .collect()
    }

    #[test]
    fn unified_headers_tell_of_every_window() {
        let headers = headers(&[
            ("anthropic-ratelimit-unified-status", "allowed_warning"),
            ("anthropic-ratelimit-unified-reset", "1795003600"),
            ("anthropic-ratelimit-unified-representative-claim", "five_hour"),
            ("anthropic-ratelimit-unified-5h-utilization", "0.92"),
            ("anthropic-ratelimit-unified-5h-reset", "1795003600"),
            ("anthropic-ratelimit-unified-7d-utilization", "0.4"),
            ("anthropic-ratelimit-unified-7d-reset", "1795400000"),
            ("anthropic-ratelimit-unified-7d_opus-utilization", "0.7"),
            ("anthropic-ratelimit-unified-7d_apps-utilization", "0.99"),
        ]);
        let report = told(&headers).expect("a report");
        assert_eq!((report.status, report.window), (LimitStatus::Warning, Some(Window::FiveHour)));
        assert_eq!(report.resets_at, Some(Timestamp::from_secs(1_795_003_600)));
        let used = |window, utilization, reset: Option<i64>| WindowUse {
            window,
            utilization,
            resets_at: reset.map(Timestamp::from_secs),
        };
        assert_eq!(report.windows.len(), 3);
        for expected in [
            used(Window::FiveHour, 0.92, Some(1_795_003_600)),
            used(Window::SevenDay, 0.4, Some(1_795_400_000)),
            used(Window::SevenDayFamily(Family::Opus), 0.7, None),
        ] {
            assert!(report.windows.contains(&expected), "{expected:?}");
        }
        let rejected = rejection(&headers, NOW);
        assert_eq!((rejected.status, rejected.window), (LimitStatus::Rejected, Some(Window::FiveHour)));
        assert_eq!(rejected.resets_at, Some(Timestamp::from_secs(1_795_003_600)));
    }

    #[test]
    fn classic_headers_tell_when_the_minute_is_over() {
        let minute = [
            ("anthropic-ratelimit-requests-remaining", "0"),
            ("anthropic-ratelimit-requests-reset", "2026-11-18T08:26:45Z"),
            ("anthropic-ratelimit-tokens-remaining", "17"),
            ("anthropic-ratelimit-tokens-reset", "2026-11-18T09:00:00Z"),
            ("anthropic-ratelimit-input-tokens-remaining", "0"),
            ("anthropic-ratelimit-input-tokens-reset", "2026-11-18T08:26:50Z"),
        ];
        assert_eq!(told(&headers(&minute)), None);
        let resets_at = |pairs: &[_]| rejection(&headers(pairs), NOW).resets_at;
        assert_eq!(resets_at(&minute), Timestamp::parse_rfc3339("2026-11-18T08:26:50Z"));
        // The provider's own advice is better than a guess.
        assert_eq!(resets_at(&[&minute[..], &[("retry-after", "7")]].concat()), Some(NOW + Duration::from_secs(7)));
        assert_eq!(resets_at(&[]), None, "a throttle without an end");
    }
}
