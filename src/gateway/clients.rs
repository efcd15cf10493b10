//! What each client may use of the pool: which subscriptions, how urgently, and for how much money in a week.
//!
//! A request reserves its estimated cost until it is over, so that a burst cannot spend a budget many times over. What was
//! spent is kept by the hour: it counts for seven days, to the hour.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;

use super::GatewayError;
use crate::pool::{Only, Priority};
use crate::runtime::clock;
use crate::units::{MicroUsd, Timestamp};

const HOUR: Duration = Duration::from_hours(1);
const WEEK: Duration = Duration::from_hours(7 * 24);

/// A client's rights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientRules {
    /// Which subscriptions its requests may use; `None` is all.
    pub only: Option<Arc<Only>>,
    /// What it may spend in seven days.
    pub weekly_budget: Option<MicroUsd>,
    /// The highest priority of its requests.
    pub max_priority: Priority,
}

/// The clients by name, and what they have spent. A cheap handle: clones share the same state. Whoever has no rules may
/// use everything.
#[derive(Clone, Debug, Default)]
pub struct Clients(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    rules: ArcSwap<HashMap<Arc<str>, ClientRules>>,
    accounts: Mutex<HashMap<Arc<str>, Account>>,
}

/// What a client has spent.
#[derive(Debug, Default)]
struct Account {
    /// By the hour since 1970, the oldest first; none is older than a week.
    hours: VecDeque<(i64, MicroUsd)>,
    spent: MicroUsd,
    reserved: MicroUsd,
    /// Since when it is kept: what was spent before is not in it unless it was recalled.
    since: Timestamp,
}

impl Clients {
    /// Takes other rules into use. What was spent stays.
    pub fn apply(&self, rules: HashMap<Arc<str>, ClientRules>) {
        let now = clock::now();
        let mut accounts = self.lock();
        accounts.retain(|client, _| rules.contains_key(client));
        for client in rules.keys() {
            accounts.entry(Arc::clone(client)).or_insert_with(|| Account { since: now, ..Account::default() });
        }
        drop(accounts);
        self.0.rules.store(Arc::new(rules));
    }

    /// The clients that have rules, and since when it is kept what each of them spends.
    pub fn joined(&self) -> Vec<(Arc<str>, Timestamp)> {
        self.lock().iter().map(|(client, account)| (Arc::clone(client), account.since)).collect()
    }

    /// Adds what was spent before this process began.
    pub fn recall(&self, now: Timestamp, client: &str, at: Timestamp, cost: MicroUsd) {
        if self.0.rules.load().contains_key(client) && now.since(at) < WEEK {
            self.lock().entry(client.into()).or_default().add(hour_of(at), cost);
        }
    }

    /// What a client has spent in the last seven days.
    pub fn spent(&self, now: Timestamp, client: &str) -> MicroUsd {
        let mut accounts = self.lock();
        let Some(account) = accounts.get_mut(client) else { return MicroUsd::ZERO };
        account.forget_the_old(now);
        account.spent
    }

    /// Which subscriptions a client's requests may use.
    pub(super) fn only(&self, client: &str) -> Option<Arc<Only>> {
        self.0.rules.load().get(client)?.only.clone()
    }

    /// The priority of a client's request that asks for `wanted`.
    pub(super) fn priority(&self, client: &str, wanted: Priority) -> Priority {
        self.0.rules.load().get(client).map_or(wanted, |rules| wanted.min(rules.max_priority))
    }

    /// Lets a request begin that is estimated to cost this much, or says when it may.
    pub(super) fn admit(
        &self,
        now: Timestamp,
        client: &Arc<str>,
        estimate: MicroUsd,
    ) -> Result<Spending, GatewayError> {
        let rules = self.0.rules.load();
        let named = Some(Arc::clone(client));
        let Some(rules) = rules.get(client) else { return Ok(Spending { client: named, open: None }) };
        let mut accounts = self.lock();
        let account = accounts.entry(Arc::clone(client)).or_default();
        account.forget_the_old(now);
        if let Some(budget) = rules.weekly_budget
            && account.spent + account.reserved >= budget
        {
            let retry_after = account.room_at(budget).map(|at| at.since(now));
            let message = format!("the weekly budget of this client key, ${:.2}, is spent", budget.as_usd());
            return Err(GatewayError::ClientBudget { retry_after, message });
        }
        account.reserved += estimate;
        let open = Open { clients: self.clone(), client: Arc::clone(client), estimate };
        Ok(Spending { client: named, open: Some(Arc::new(open)) })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Account>> {
        self.0.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Account {
    fn add(&mut self, hour: i64, cost: MicroUsd) {
        let at = self.hours.partition_point(|(known, _)| *known < hour);
        match self.hours.get_mut(at) {
            Some((known, sum)) if *known == hour => *sum += cost,
            _ => self.hours.insert(at, (hour, cost)),
        }
        self.spent += cost;
    }

    fn forget_the_old(&mut self, now: Timestamp) {
        while let Some(&(hour, cost)) = self.hours.front()
            && ends_to_count(hour) <= now
        {
            self.hours.pop_front();
            self.spent -= cost;
        }
    }

    /// When enough of what was spent has ceased to count; `None` if running requests decide.
    fn room_at(&self, budget: MicroUsd) -> Option<Timestamp> {
        let mut left = self.spent;
        if left < budget {
            return None;
        }
        self.hours.iter().find_map(|&(hour, cost)| {
            left -= cost;
            (left < budget).then(|| ends_to_count(hour))
        })
    }
}

/// The hour since 1970 in which an instant is.
fn hour_of(at: Timestamp) -> i64 {
    at.as_secs().div_euclid(3600)
}

/// When what was spent in an hour counts no more: a week after that hour's end.
fn ends_to_count(hour: i64) -> Timestamp {
    Timestamp::from_secs(hour * 3600) + HOUR + WEEK
}

/// A request of a client that may have a budget. Ends its reservation when all its parts are gone.
#[derive(Clone, Debug, Default)]
pub(super) struct Spending {
    client: Option<Arc<str>>,
    open: Option<Arc<Open>>,
}

#[derive(Debug)]
struct Open {
    clients: Clients,
    client: Arc<str>,
    estimate: MicroUsd,
}

impl Spending {
    /// Who spends; empty where nobody does.
    pub(super) fn client(&self) -> &str {
        self.client.as_deref().unwrap_or_default()
    }

    /// Books what an attempt has cost.
    pub(super) fn book(&self, now: Timestamp, cost: MicroUsd) {
        if let Some(open) = &self.open
            && cost > MicroUsd::ZERO
            && let Some(account) = open.clients.lock().get_mut(&open.client)
        {
            account.add(hour_of(now), cost);
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(account) = self.clients.lock().get_mut(&self.client) {
            account.reserved = (account.reserved - self.estimate).max(MicroUsd::ZERO);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    fn usd(dollars: f64) -> MicroUsd {
        MicroUsd::from_usd(dollars)
    }

    fn clients(budget: f64) -> Clients {
        let rules = ClientRules { only: None, weekly_budget: Some(usd(budget)), max_priority: Priority::Normal };
        let clients = Clients::default();
        clients.apply(HashMap::from([("ann".into(), rules)]));
        clients
    }

    fn admit(clients: &Clients, now: Timestamp, estimate: f64) -> Result<Spending, GatewayError> {
        clients.admit(now, &"ann".into(), usd(estimate))
    }

    #[test]
    fn a_budget_is_spent_and_comes_back_to_the_hour() {
        let clients = clients(10.0);
        admit(&clients, NOW, 1.0).unwrap().book(NOW, usd(4.0));
        admit(&clients, NOW + HOUR, 1.0).unwrap().book(NOW + HOUR, usd(7.0));
        let later = NOW + HOUR * 2;
        assert_eq!(clients.spent(later, "ann"), usd(11.0));
        let Err(GatewayError::ClientBudget { retry_after: Some(wait), message }) = admit(&clients, later, 1.0) else {
            panic!("the budget is spent")
        };
        assert_eq!(message, "the weekly budget of this client key, $10.00, is spent");
        let just_before = Timestamp::from_millis((later + wait).as_millis() - 1);
        assert!(admit(&clients, just_before, 1.0).is_err());
        assert!(admit(&clients, later + wait, 1.0).is_ok());
        assert_eq!(clients.spent(later + wait, "ann"), usd(7.0));
        assert_eq!(clients.spent(later + WEEK + HOUR, "ann"), MicroUsd::ZERO);
    }

    #[test]
    fn a_burst_cannot_spend_a_budget_many_times_over() {
        let clients = clients(1.0);
        let running: Vec<_> = (0..100).filter_map(|_| admit(&clients, NOW, 0.25).ok()).collect();
        assert_eq!(running.len(), 4);
        // Nothing is known of when they end.
        assert!(matches!(admit(&clients, NOW, 0.25), Err(GatewayError::ClientBudget { retry_after: None, .. })));
        drop(running);
        assert!(admit(&clients, NOW, 0.25).is_ok());
        assert_eq!(clients.spent(NOW, "ann"), MicroUsd::ZERO);
    }

    #[test]
    fn what_was_spent_before_is_recalled_in_any_order() {
        let clients = clients(10.0);
        let now = NOW + WEEK;
        for (at, cost) in [(NOW + HOUR * 5, 1.0), (NOW + HOUR, 2.0), (NOW, 100.0), (NOW + HOUR * 5, 3.0)] {
            clients.recall(now, "ann", at, usd(cost));
            clients.recall(now, "nobody", at, usd(cost));
        }
        assert_eq!(clients.spent(now, "ann"), usd(6.0));
        assert_eq!(clients.spent(now, "nobody"), MicroUsd::ZERO);
        assert_eq!(clients.spent(now + HOUR * 2, "ann"), usd(4.0));
    }

    #[test]
    fn rules_may_change_and_strangers_have_none() {
        let clients = clients(1.0);
        admit(&clients, NOW, 0.0).unwrap().book(NOW, usd(2.0));
        assert!(admit(&clients, NOW, 0.0).is_err());
        assert_eq!(clients.priority("ann", Priority::High), Priority::Normal);
        assert_eq!(clients.priority("ann", Priority::Low), Priority::Low);
        assert_eq!(clients.priority("bob", Priority::High), Priority::High);
        let rules = ClientRules { only: None, weekly_budget: Some(usd(3.0)), max_priority: Priority::High };
        clients.apply(HashMap::from([("ann".into(), rules)]));
        assert!(admit(&clients, NOW, 0.0).is_ok(), "what was spent is kept, the budget is another");
        assert_eq!(clients.spent(NOW, "ann"), usd(2.0));
        assert!(clients.admit(NOW, &"bob".into(), usd(1e6)).is_ok());
    }
}
