//! Alerts that were raised before this start and are not over: those that still hold are not told again, the others
//! are closed.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use crate::alert::{Kind, Open};
use crate::pool::Pool;
use crate::store::{Alert, AlertFilter, Page, Result, Store};
use crate::units::Timestamp;

/// What tells of a week is over with it.
const WEEK: Duration = Duration::from_hours(7 * 24);

/// Pages that are read at most: an operator who has more open alerts than this reads none of them.
const MOST_PAGES: usize = 50;

/// See the module's description.
pub(super) struct OpenAlerts {
    /// Shares of weeks: their end is noticed by whoever looks at the weeks.
    pub(super) told: Vec<Open>,
    /// Everything that is open, and not told since this start: of the whole program only what nobody else can have told.
    all: Vec<Alert>,
}

/// Reads what was raised until `began` and is open: of `members`, and at the start also of whom nobody knows, and of the
/// whole program.
pub(super) async fn read(
    store: &Store,
    began: Timestamp,
    members: &HashMap<Arc<str>, Timestamp>,
    is_start: bool,
) -> Result<OpenAlerts> {
    let filter = AlertFilter { resolved: Some(false), until: Some(began), ..AlertFilter::default() };
    let mut page = Page { limit: Page::LARGEST, after: None };
    let mut all = Vec::new();
    for _ in 0..MOST_PAGES {
        let found = store.alerts(&filter, &page).await?;
        all.extend(found.items);
        page.after = found.next;
        if page.after.is_none() {
            break;
        }
    }
    let is_alone = store.location().is_ours_alone();
    all.retain(|alert| match alert.account.as_deref() {
        Some(account) => is_start || members.contains_key(account),
        None => is_start && is_alone,
    });
    let told = all.iter().filter_map(told).filter(|open| members.contains_key(&open.subscription)).collect();
    Ok(OpenAlerts { told, all })
}

fn told(alert: &Alert) -> Option<Open> {
    let kind = Kind::parse(&alert.kind).filter(|kind| is_share(*kind))?;
    let subscription = alert.account.as_deref()?.into();
    Some(Open { subscription, kind, threshold: alert.threshold?, at: alert.created_at })
}

fn is_share(kind: Kind) -> bool {
    matches!(kind, Kind::UsageThreshold | Kind::QuotaAlert)
}

impl OpenAlerts {
    /// The ids of those that hold no more, or whose end nobody would notice. `strangers` are those of
    /// [`OpenAlerts::told`] that no rule is about.
    pub(super) fn over(&self, strangers: &[Open], pool: &Pool, now: Timestamp) -> Vec<String> {
        let here: HashSet<Arc<str>> = pool.joined().into_iter().map(|(member, _)| member).collect();
        let limited: HashSet<Arc<str>> = pool
            .learned(now)
            .into_iter()
            .filter(|(_, learned)| learned.locks.iter().any(|lock| !lock.throttle))
            .map(|(member, _)| member)
            .collect();
        let is_over = |alert: &&Alert| {
            let Some(account) = alert.account.as_deref() else {
                // Of the whole program: what is still so has been told anew, or will be.
                return true;
            };
            if !here.contains(account) {
                // Its account may be registered and only come when that has been read.
                return now.since(alert.created_at) >= WEEK;
            }
            match Kind::parse(&alert.kind) {
                Some(kind) if is_share(kind) => told(alert).is_none_or(|open| strangers.contains(&open)),
                Some(Kind::LimitReached) => !limited.contains(account),
                // A login is tried again by the next request, and what fails then is told then.
                _ => true,
            }
        };
        self.all.iter().filter(is_over).map(|alert| alert.id.clone()).collect()
    }
}
