//! Where things are kept over restarts, and for how long: the file's section, what it means, and its check.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::check::Context;
use super::config_dir;
use super::env::DATABASE_URL;
use super::problem::{FieldPath, Findings, Place};
use super::span::{DAY, Span, Unit};

/// The file's name in the state directory.
const FILE: &str = "auth-pool.db";

/// The longest that anything is kept.
const CENTURY: Duration = Duration::from_hours(24 * 36_525);

/// Where usage, limits, sessions and what is registered by the admin API are kept over restarts, and for how long.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Section {
    /// `postgres://USER:PASSWORD@HOST:PORT/DATABASE`, `sqlite:PATH`, or `none` to keep nothing. `DATABASE_URL` in the
    /// environment wins, and is the better place for a password.
    #[schemars(length(min = 1))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) url: Option<String>,
    /// The SQLite file that is used where no URL is given (`~` is the home directory; a relative path starts at this
    /// file's directory). When left out: `auth-pool.db` in the state directory (`AUTH_POOL_STATE_DIR`, else
    /// systemd's, else `~/.local/state/auth-pool`).
    #[schemars(length(min = 1))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) path: Option<String>,
    /// How long single usage records are kept; then only the sums of days are. At least 8 days. A number counts seconds.
    pub(super) usage_retention: Span,
    /// How long the sums of days are kept; a number counts seconds.
    pub(super) usage_days_retention: Span,
    /// How long activities are kept; a number counts seconds.
    pub(super) activity_retention: Span,
    /// How long alerts are kept; a number counts seconds.
    pub(super) alert_retention: Span,
    /// How long the audit log is kept; a number counts seconds.
    pub(super) audit_retention: Span,
}

impl Default for Section {
    fn default() -> Self {
        Self {
            url: None,
            path: None,
            usage_retention: Span::text("30days"),
            usage_days_retention: Span::text("730days"),
            activity_retention: Span::text("30days"),
            alert_retention: Span::text("90days"),
            audit_retention: Span::text("365days"),
        }
    }
}

/// Where things are kept over restarts, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Store {
    /// Where.
    pub place: StorePlace,
    /// Single usage records.
    pub usage_retention: Duration,
    /// The sums of days.
    pub usage_days_retention: Duration,
    /// Activities.
    pub activity_retention: Duration,
    /// Alerts.
    pub alert_retention: Duration,
    /// The audit log.
    pub audit_retention: Duration,
}

/// See [`Store::place`].
#[derive(Clone, PartialEq, Eq)]
pub enum StorePlace {
    /// Nothing is kept.
    Nowhere,
    /// An SQLite file.
    File(PathBuf),
    /// A PostgreSQL database, by its URL. Can hold a password.
    Postgres(String),
}

impl fmt::Debug for StorePlace {
    /// Without the URL.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nowhere => f.write_str("Nowhere"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Postgres(_) => f.debug_tuple("Postgres").finish_non_exhaustive(),
        }
    }
}

pub(super) fn check(section: &Section, context: &Context<'_>, findings: &mut Findings) -> Store {
    let at = FieldPath::field("store");
    let mut span = |name: &str, span: &Span, least: Duration| {
        span.resolve(&at.key(name), Unit::Seconds, least..=CENTURY, findings)
    };
    Store {
        usage_retention: span("usageRetention", &section.usage_retention, DAY * 8),
        usage_days_retention: span("usageDaysRetention", &section.usage_days_retention, DAY),
        activity_retention: span("activityRetention", &section.activity_retention, Duration::from_hours(1)),
        alert_retention: span("alertRetention", &section.alert_retention, Duration::from_hours(1)),
        audit_retention: span("auditRetention", &section.audit_retention, DAY),
        place: place(section, &at, context, findings),
    }
}

fn place(section: &Section, at: &FieldPath, context: &Context<'_>, findings: &mut Findings) -> StorePlace {
    if let Some(url) = context.env.var(DATABASE_URL) {
        let place = Place::Variable(DATABASE_URL.to_owned());
        let here = std::env::current_dir().unwrap_or_default();
        return from_url(url.trim(), place, &here, context, findings);
    }
    if let Some(url) = &section.url {
        if section.path.is_some() {
            findings.problem(at.key("path"), "means nothing beside `url`; leave one of them out");
        }
        return from_url(url, at.key("url").into(), &context.base, context, findings);
    }
    if let Some(path) = &section.path {
        return file(path, at.key("path").into(), &context.base, context, findings);
    }
    if let Some(directory) = context.env.state_dir() {
        return StorePlace::File(directory.join(FILE));
    }
    findings.warning(at, "there is no state directory and no HOME: nothing is kept over a restart");
    StorePlace::Nowhere
}

fn from_url(url: &str, place: Place, base: &Path, context: &Context<'_>, findings: &mut Findings) -> StorePlace {
    if url.eq_ignore_ascii_case("none") {
        return StorePlace::Nowhere;
    }
    if let Some(path) = url.strip_prefix("sqlite:") {
        let path = path.strip_prefix("//").unwrap_or(path);
        if path.is_empty() || path.contains(['?', '#']) || path == ":memory:" {
            findings.problem(place, "must name a file: `sqlite:/path/to/file`");
            return StorePlace::Nowhere;
        }
        return file(path, place, base, context, findings);
    }
    if !(url.starts_with("postgres://") || url.starts_with("postgresql://")) {
        findings.problem(place, "must be `none`, or begin with `sqlite:`, `postgres://` or `postgresql://`");
    } else if reqwest::Url::parse(url).is_err() {
        findings.problem(place, "must look like `postgres://user:password@host:5432/database`");
    }
    StorePlace::Postgres(url.to_owned())
}

fn file(path: &str, place: Place, base: &Path, context: &Context<'_>, findings: &mut Findings) -> StorePlace {
    match config_dir::expand(path, base, context.env.home().as_deref()) {
        Ok(path) => {
            if path.is_dir() {
                findings.problem(place, "is a directory; name a file in it");
            }
            StorePlace::File(path)
        }
        Err(problem) => {
            findings.problem(place, problem);
            StorePlace::Nowhere
        }
    }
}
